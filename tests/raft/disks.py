"""Storage in memory that loses what was not synced when it crashes. Implements `Storage`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from nimsnats.raft.machine import BLOCK
from nimsnats.runtime import Runtime
from nimsnats.storage import CompactionPoint, Corrupt, StoredEntry, StoredGroup
from nimsnats.storage.interface import Synced


@dataclass
class Kept:
    """One group on disk."""

    name: str
    term: int
    vote: str
    members: bytes
    snapshot: tuple[int, int, int] = (0, 0, 0)
    state: bytes | None = None
    notes: dict[int, bytes] = field(default_factory=dict[int, bytes])
    rows: dict[int, StoredEntry] = field(default_factory=dict[int, StoredEntry])


class MemoryDisk:
    """What is synced, and what is not yet. `delay` is the time of a sync in seconds."""

    def __init__(self, runtime: Runtime, delay: float = 0.002) -> None:
        self.runtime = runtime
        self.delay = delay
        self.durable: dict[int, Kept] = {}
        self.seen: dict[int, Kept] = {}
        self.syncs = 0
        self.error: Exception | None = None
        self._newest = 0
        self._queue: list[tuple[Callable[[dict[int, Kept]], None], ...]] = []
        self._steps: list[Callable[[dict[int, Kept]], None]] = []
        self._done: list[Synced] = []
        self._busy = False
        self._life = 0

    def crash(self) -> None:
        """Everything that was not synced is gone, and nobody is called back."""
        self._life += 1
        self._busy = False
        self._steps, self._done = [], []
        self.seen = copy.deepcopy(self.durable)

    def _queue_step(self, step: Callable[[dict[int, Kept]], None]) -> None:
        step(self.seen)
        self._steps.append(step)

    def sync(self, done: Synced) -> None:
        self._done.append(done)
        if not self._busy:
            self._start()

    def _start(self) -> None:
        self._busy = True
        steps, self._steps = self._steps, []
        done, self._done = self._done, []
        self.runtime.call_later(self.delay, self._finish, self._life, steps, done)

    def _finish(self, life: int, steps: list[Callable[[dict[int, Kept]], None]], done: list[Synced]) -> None:
        if life != self._life:
            return
        self.syncs += 1
        error = self.error
        if error is None:
            for step in steps:
                step(self.durable)
        else:
            self._steps, behind = [], self._done
            self._done = []
            done = done + behind
            self.seen = copy.deepcopy(self.durable)
        self._busy = False
        for each in done:
            each(error)
        if (self._done or self._steps) and not self._busy and self._done:
            self._start()

    def group_names(self) -> list[str]:
        return [group.name for group in self.seen.values()]

    def create_group(self, name: str, term: int, vote: str, members: bytes) -> int:
        assert name not in self.group_names()
        self._newest += 1
        number = self._newest
        self._queue_step(lambda groups: groups.__setitem__(number, Kept(name, term, vote, members)))
        return number

    def remove_group(self, group: int) -> None:
        self._queue_step(lambda groups: groups.pop(group, None) and None)

    def rename_group(self, group: int, name: str) -> None:
        self._queue_step(lambda groups: setattr(groups[group], "name", name))

    def set_hard_state(self, group: int, term: int, vote: str) -> None:
        def step(groups: dict[int, Kept]) -> None:
            groups[group].term, groups[group].vote = term, vote

        self._queue_step(step)

    def append(self, group: int, index: int, term: int, kind: int, messages: int, total: int, data: bytes) -> None:
        self._queue_step(
            lambda groups: groups[group].rows.__setitem__(index, StoredEntry(index, term, kind, messages, total, data))
        )

    def truncate(self, group: int, index: int) -> None:
        def step(groups: dict[int, Kept]) -> None:
            rows = groups[group].rows
            for each in [each for each in rows if each >= index]:
                del rows[each]

        self._queue_step(step)

    def compact(self, group: int, point: CompactionPoint) -> None:
        def step(groups: dict[int, Kept]) -> None:
            kept = groups[group]
            before = kept.snapshot[0]
            kept.snapshot = (point.index, point.term, point.total)
            kept.members, kept.state = point.members, point.state
            kept.notes.update(point.notes)
            for index in point.dropped:
                kept.notes.pop(index, None)
                kept.rows.pop(index, None)
            for index in [each for each in kept.rows if before < each <= point.index]:
                if not kept.rows[index].kind & BLOCK:
                    del kept.rows[index]

        self._queue_step(step)

    def rewrite(self, group: int, index: int, data: bytes) -> None:
        def step(groups: dict[int, Kept]) -> None:
            if index in groups[group].rows:
                row = groups[group].rows[index]
                groups[group].rows[index] = StoredEntry(index, row.term, row.kind, row.messages, row.total, data)

        self._queue_step(step)

    async def load_group(self, name: str) -> StoredGroup | None:
        for number, kept in self.seen.items():
            if kept.name == name:
                blocks = sorted(kept.notes.items())
                last = max([kept.snapshot[0], *kept.rows])
                group = StoredGroup(number, name, kept.term, kept.vote, *kept.snapshot, kept.members)
                group.state, group.blocks, group.last = kept.state, blocks, last
                return group
        return None

    async def read_log(self, group: int, first: int, last: int, max_bytes: int) -> list[StoredEntry]:
        found: list[StoredEntry] = []
        size = 0
        for index in sorted(self.seen[group].rows):
            if first <= index <= last and (not found or size < max_bytes):
                found.append(copy.copy(self.seen[group].rows[index]))
                size += len(found[-1].data or b"")
        return found

    async def read_block(self, group: int, index: int) -> bytes:
        data = self.read_block_now(group, index)
        if data is None:
            raise Corrupt(f"block {index} of group {group} is missing")
        return data

    def read_block_now(self, group: int, index: int) -> bytes | None:
        row = self.seen[group].rows.get(index)
        return row.data if row is not None else None
