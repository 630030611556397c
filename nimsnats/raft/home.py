"""Where a group keeps what must outlast it: a file group in storage, a memory group here.

Owns the differences between the two, so that the group need not know them. A memory group of several members
has a record in storage too, with nothing but its term and vote: a member that has forgotten its log must know
that it once had one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nimsnats.raft.machine import StoredBlock
from nimsnats.raft.wire import Block
from nimsnats.storage.errors import Corrupt
from nimsnats.storage.interface import CompactionPoint, Storage
from nimsnats.storage.layout import STAGED_MARK as STAGED_MARK

MEMORY_MARK: Final = "~"
"""Before the name of a memory group's record in storage."""
PROVISIONAL_MARK: Final = "+"
"""Before the name of a group that is still being filled: whoever fills it gives it its name, or it is nothing."""


class Durable:
    """Where a file group keeps its log."""

    def __init__(self, storage: Storage, number: int) -> None:
        self.storage = storage
        self.number = number


class Memory:
    """Where a memory group keeps its blocks and its last snapshot: nowhere but here."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.number = 0
        """Of its record in storage; 0 while it is a group of one."""
        self.blocks: dict[int, Block] = {}
        self.notes: dict[int, bytes] = {}
        self.state = b""
        self.total = 0

    def compact(self, point: CompactionPoint) -> None:
        """Remember a snapshot."""
        self.state, self.total = point.state, point.total
        self.notes.update(point.notes)
        for index in point.dropped:
            self.blocks.pop(index, None)
            self.notes.pop(index, None)

    async def read(self, index: int, name: str) -> bytes:
        """A block's bytes. Raises Corrupt."""
        block = self.blocks.get(index)
        if block is None:
            raise Corrupt(f"block {index} of group {name} is missing")
        return block[5]

    def replace(self, state: bytes, notes: Sequence[tuple[int, bytes]], blocks: dict[int, Block]) -> list[StoredBlock]:
        """Become another snapshot; returns its blocks for the machine."""
        self.state, self.notes, self.blocks = state, dict(notes), blocks
        return [StoredBlock(index, note, blocks[index][5]) for index, note in notes]
