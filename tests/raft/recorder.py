"""A state machine that remembers everything, for tests of storage and Raft."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack

from nimsnats.raft.host import Host
from nimsnats.raft.machine import BLOCK, BlockRecord, Entry, LogDamage, Snapshot, StoredBlock
from nimsnats.raft.refusals import Refusals
from nimsnats.runtime import Runtime
from nimsnats.storage import Database, open_database

MESSAGES = BLOCK | 1


class Recorder:
    """Keeps what was applied by index. Blocks stay in storage after a snapshot; other entries go into the
    state."""

    def __init__(self) -> None:
        self.refusals = Refusals()
        self.entries: dict[int, bytes] = {}
        self.contexts: list[object] = []
        self.refused: list[tuple[object, Exception]] = []
        self.lost: dict[int, int] = {}
        self.damaged_blocks: list[int] = []
        self.leading: list[tuple[bool, int]] = []
        self.restored = False
        self.state_lost = False
        self.foreseen: list[int] = []
        self.changed = asyncio.Event()
        self.drop: list[int] = []
        self._fresh_blocks: list[int] = []
        self._blocks: set[int] = set()

    async def restore(self, state: bytes, blocks: Sequence[StoredBlock]) -> None:
        self.state_lost = not state
        kept: Any = {"entries": {}, "lost": {}} if not state else msgpack.unpackb(state, strict_map_key=False)
        self.restored = True
        self.entries = dict(kept["entries"])
        self.lost = dict(kept["lost"])
        for block in blocks:
            self._blocks.add(block.index)
            data = block.data
            if data is None:
                self.damaged_blocks.append(block.index)
            else:
                self.entries[block.index] = data
            assert block.note == b"note %d" % block.index

    def foresee(self, entry: Entry) -> None:
        assert not self.lost
        self.foreseen.append(entry.index)

    def damaged(self, damage: LogDamage) -> None:
        self.lost.update(damage.entries)

    def apply(self, entry: Entry) -> None:
        assert entry.index not in self.entries and entry.index not in self.lost
        self.entries[entry.index] = entry.data
        if entry.kind & BLOCK:
            self._fresh_blocks.append(entry.index)
        if entry.context is not None:
            self.contexts.append(entry.context)
        self.changed.set()

    def refuse(self, context: object, error: Exception) -> None:
        self.refused.append((context, error))
        self.changed.set()

    def leadership(self, leading: bool, term: int) -> None:
        self.leading.append((leading, term))

    def snapshot(self) -> Snapshot:
        self._blocks.update(self._fresh_blocks)
        for index in self.drop:
            self._blocks.discard(index)
            self.entries.pop(index, None)
        plain = {index: data for index, data in self.entries.items() if index not in self._blocks}
        state: bytes = msgpack.packb({"entries": plain, "lost": self.lost})
        notes = [BlockRecord(index, b"note %d" % index) for index in self._fresh_blocks if index not in self.drop]
        dropped, self.drop, self._fresh_blocks = self.drop, [], []
        return Snapshot(state, notes, dropped)

    async def until(self, count: int) -> None:
        """Wait until so many contexts have come back, applied or refused."""
        while len(self.contexts) + len(self.refused) < count:
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def running(path: Path, **options: Any) -> AsyncIterator[tuple[Database, Host]]:
    """A database and a host on `path`, closed in order at the end."""
    runtime = Runtime.real()
    database = await open_database(path, runtime, "n1", **options)
    host = Host(database, runtime, "n1")
    try:
        yield database, host
    finally:
        await host.stop()
        await database.close()
