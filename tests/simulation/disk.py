"""A disk in memory that outlives its processes, and the storage that a process opens on it.

Owns what is durable. Commits are atomic and in order, as SQLite's are: a crash keeps every finished commit, perhaps
the one under way, and nothing behind it. It keeps the promises of `Database`, and has its ways of failing: slow, full,
broken at a sync, and damaged rows, which read as damaged and never as something else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from nimsnats.identity import nuid
from nimsnats.raft.machine import BLOCK
from nimsnats.runtime import Runtime
from nimsnats.storage import CompactionPoint, Corrupt, StorageFailed, StorageFull, StoredEntry, StoredGroup
from nimsnats.storage.directory import Identity
from nimsnats.storage.interface import Synced


@dataclass
class Kept:
    """One group on disk. `last` is the highest index that was ever acknowledged, as the real storage's witness has it;
    `counts` are the messages of what it has seen."""

    name: str
    term: int
    vote: str
    members: bytes
    snapshot: tuple[int, int, int] = (0, 0, 0)
    state: bytes | None = None
    notes: dict[int, bytes] = field(default_factory=dict)
    rows: dict[int, StoredEntry] = field(default_factory=dict)
    last: int = 0
    damage: list[str] = field(default_factory=list)

    def copy(self) -> Kept:
        """Another one with the same content; rows are never changed in place."""
        return Kept(
            *(self.name, self.term, self.vote, self.members, self.snapshot, self.state),
            *(dict(self.notes), dict(self.rows), self.last, list(self.damage)),
        )


Step = Callable[[dict[int, Kept]], None]


class Disk:
    """What one node's disk holds. `delay` is the mean time of a sync in seconds."""

    def __init__(self, random: Random, node: str) -> None:
        self.random = random
        self.identity = Identity(nuid(random), node)
        self.groups: dict[int, Kept] = {}
        self.newest = 0
        self.delay = 0.001
        self.full = False
        self.breaks = False
        """The next sync fails for good, as after an I/O error: nobody knows what of it is on disk."""
        self.lies = False
        """Syncs are reported and only done now and then (a planted bug)."""
        self._unsynced = 0
        self._safe: dict[int, Kept] = {}
        self.storage: SimStorage | None = None

    def open(self, runtime: Runtime) -> SimStorage:
        """As `open_database`."""
        assert self.storage is None, "another process has the directory"
        self.storage = SimStorage(self, runtime)
        return self.storage

    def crash(self) -> None:
        """The process is gone: what was under way became durable or not."""
        storage, self.storage = self.storage, None
        if storage is not None and not storage.closed:
            under_way = storage.under_way
            storage.closed = True
            if self.lies:
                self.groups = {number: kept.copy() for number, kept in self._safe.items()}
            elif under_way and self.random.random() < 0.5:
                self.write(under_way)

    def suffer(self) -> str:
        """Damage what is stored, as flipped bits and torn pages do; in words. No process may have the disk open."""
        assert self.storage is None
        random = self.random
        kinds = random.sample(["rows", "tail", "snapshot"], random.randrange(1, 4))
        for kept in self.groups.values():
            rows = sorted(kept.rows)
            if "rows" in kinds and rows:
                for index in random.sample(rows, min(len(rows), random.choice([1, 1, 5]))):
                    row = kept.rows[index]
                    kept.rows[index] = StoredEntry(index, row.term, row.kind, row.messages, row.total, None)
            if "tail" in kinds and random.random() < 0.5:
                for index in rows[-random.randrange(1, 6) :]:
                    if index > kept.snapshot[0]:
                        row = kept.rows[index]
                        kept.rows[index] = StoredEntry(index, 0, 0, row.messages, 0, None, True)
                kept.vote = "?"
            if "snapshot" in kinds and kept.snapshot[0] and random.random() < 0.5:
                kept.state = None
                kept.damage = ["the snapshot is damaged"]
        return ", ".join(kinds)

    def write(self, steps: list[Step]) -> None:
        """Make steps durable."""
        for step in steps:
            step(self.groups)
        self._unsynced += 1
        if self.lies and self._unsynced % 10 == 0:
            self._safe = {number: kept.copy() for number, kept in self.groups.items()}


class SimStorage:
    """Implements `Storage`, and what else a node asks of its `Database`."""

    def __init__(self, disk: Disk, runtime: Runtime) -> None:
        self.disk = disk
        self.runtime = runtime
        self.identity = disk.identity
        self.observers: list[Callable[[Any], None]] = []
        self.failure: StorageFailed | None = None
        self.full = False
        self.damage = [f"group {kept.name}: {text}" for kept in disk.groups.values() for text in kept.damage]
        self.damaged_reads = 0
        self.closed = False
        self.under_way: list[Step] = []
        self._seen = {number: kept.copy() for number, kept in disk.groups.items()}
        self._steps: list[Step] = []
        self._done: list[Synced] = []
        self._busy = False

    async def close(self) -> None:
        """Commit what is queued and close."""
        while self._busy or self._done:
            await self.runtime.sleep(self.disk.delay)
        self.failure = self.failure or StorageFailed("the storage is closed")
        self.closed = True
        if self.disk.storage is self:
            self.disk.storage = None

    # Writing

    def _queue(self, step: Step) -> None:
        step(self._seen)
        self._steps.append(step)

    def sync(self, done: Synced) -> None:
        """Have `done` called when everything queued so far is durable, or is refused."""
        self._done.append(done)
        if not self._busy:
            self._busy = True
            self.runtime.call_soon(self._start)

    def _start(self) -> None:
        self.under_way, self._steps = self._steps, []
        done, self._done = self._done, []
        disk = self.disk
        delay = disk.delay * (0.3 + disk.random.expovariate(1.4))
        self.runtime.call_later(delay, self._finish, done)

    def _finish(self, done: list[Synced]) -> None:
        if self.closed:
            return
        disk, steps, error = self.disk, self.under_way, self.failure
        if error is None and disk.breaks:
            disk.breaks = False
            if disk.random.random() < 0.5:
                disk.write(steps)
            error = self.failure = StorageFailed("the sync failed")
        if error is None and disk.full:
            self.full = True
            self._refuse(done, StorageFull("no space left"))
            return
        self.under_way = []
        if error is not None:
            self._refuse(done, error)
            return
        self.full = False
        disk.write(steps)
        self._go_on()
        for each in done:
            each(None)

    def _refuse(self, done: list[Synced], error: Exception) -> None:
        """Nothing of it is stored, and nothing of what is queued behind."""
        self.under_way, self._steps = [], []
        behind, self._done = self._done, []
        self._seen = {number: kept.copy() for number, kept in self.disk.groups.items()}
        self._busy = False
        for each in (*done, *behind):
            self.runtime.call_soon(each, error)

    def _go_on(self) -> None:
        self._busy = bool(self._done)
        if self._busy:
            self._start()

    def group_names(self) -> list[str]:
        """Names of the groups that exist now, in order of creation."""
        return [group.name for group in self._seen.values()]

    def create_group(self, name: str, term: int, vote: str, members: bytes) -> int:
        """Queue a new group."""
        assert name not in self.group_names()
        self.disk.newest += 1
        number = self.disk.newest
        self._queue(lambda groups: groups.__setitem__(number, Kept(name, term, vote, members)))
        return number

    def remove_group(self, group: int) -> None:
        """Queue the removal of a group."""
        self._queue(lambda groups: groups.pop(group, None) and None)

    def rename_group(self, group: int, name: str) -> None:
        """Queue another name."""
        self._queue(lambda groups: setattr(groups[group], "name", name))

    def set_hard_state(self, group: int, term: int, vote: str) -> None:
        """Queue term and vote."""

        def step(groups: dict[int, Kept]) -> None:
            groups[group].term, groups[group].vote = term, vote

        self._queue(step)

    def append(self, group: int, index: int, term: int, kind: int, messages: int, total: int, data: bytes) -> None:
        """Queue one log entry."""
        entry = StoredEntry(index, term, kind, messages, total, data)

        def step(groups: dict[int, Kept]) -> None:
            kept = groups.get(group)
            if kept is not None:
                kept.rows[index] = entry
                kept.last = max(kept.last, index)

        self._queue(step)

    def truncate(self, group: int, index: int) -> None:
        """Queue the removal of all entries from `index` on."""

        def step(groups: dict[int, Kept]) -> None:
            kept = groups[group]
            for each in [each for each in kept.rows if each >= index]:
                del kept.rows[each]
            kept.last = min(kept.last, index - 1)

        self._queue(step)

    def compact(self, group: int, point: CompactionPoint) -> None:
        """Queue a snapshot and the end of the log before it."""

        def step(groups: dict[int, Kept]) -> None:
            kept = groups[group]
            before = kept.snapshot[0]
            kept.snapshot = (point.index, point.term, point.total)
            kept.members, kept.state, kept.damage = point.members, point.state, []
            kept.notes.update(point.notes)
            for index in point.dropped:
                kept.notes.pop(index, None)
                kept.rows.pop(index, None)
            for index in [each for each in kept.rows if before < each <= point.index]:
                if not kept.rows[index].kind & BLOCK:
                    del kept.rows[index]
            kept.last = max(kept.last, point.index)

        self._queue(step)

    def rewrite(self, group: int, index: int, data: bytes) -> None:
        """Queue other bytes for a block."""

        def step(groups: dict[int, Kept]) -> None:
            row = groups[group].rows.get(index) if group in groups else None
            if row is not None and row.data is not None:
                groups[group].rows[index] = StoredEntry(index, row.term, row.kind, row.messages, row.total, data)

        self._queue(step)

    # Reading: what is committed, as the real storage's readers see it

    async def _pause(self) -> None:
        if self.closed:
            raise StorageFailed("the storage is closed")
        if self.disk.random.random() < 0.5:
            await asyncio.sleep(0)
        else:
            await self.runtime.sleep(self.disk.delay * self.disk.random.random())

    async def load_group(self, name: str) -> StoredGroup | None:
        """The group's state, or None when there is no such group."""
        found = next(((number, kept) for number, kept in self._seen.items() if kept.name == name), None)
        if found is None:
            return None
        number, seen = found
        group = StoredGroup(number, name, seen.term, seen.vote, *seen.snapshot, seen.members)
        await self._pause()
        kept = self.disk.groups.get(number)
        if kept is None:
            return group
        group.blocks = sorted(kept.notes.items())
        group.last = kept.last
        if group.snapshot_index and kept.snapshot[0] == group.snapshot_index and kept.state is not None:
            group.state = kept.state
        elif group.snapshot_index:
            group.damage.append("both copies of the snapshot are damaged")
        group.damage.extend(kept.damage)
        group.witnessed = {index: row.messages for index, row in kept.rows.items() if row.data is None}
        return group

    async def read_log(self, group: int, first: int, last: int, max_bytes: int) -> list[StoredEntry]:
        """Entries from `first` to `last`."""
        await self._pause()
        found: list[StoredEntry] = []
        size = 0
        kept = self.disk.groups.get(group)
        rows = {} if kept is None else kept.rows
        for index in range(first, min(last, max(rows, default=0)) + 1):
            row = rows.get(index)
            if row is None:
                continue
            if found and size >= max_bytes:
                break
            found.append(_shown(row))
            size += len(row.data or b"")
            self.damaged_reads += row.data is None
        return found

    async def read_block(self, group: int, index: int) -> bytes:
        """The bytes of an entry."""
        await self._pause()
        data = self.read_block_now(group, index)
        if data is None:
            self.damaged_reads += 1
            raise Corrupt(f"block {index} of group {group} is damaged or missing")
        return data

    def read_block_now(self, group: int, index: int) -> bytes | None:
        """The same without waiting."""
        kept = self.disk.groups.get(group)
        row = kept.rows.get(index) if kept is not None else None
        return row.data if row is not None else None


def _shown(row: StoredEntry) -> StoredEntry:
    if row.data is None:
        return StoredEntry(row.index, 0, 0, row.messages if row.placeholder else 0, 0, None, row.placeholder)
    return StoredEntry(row.index, row.term, row.kind, row.messages, row.total, row.data)
