"""Getting at payloads: from the node's block cache at once, or from disk with read-ahead.

Owns the reads in flight of one stream. It never changes what the stream holds: damage found while reading is logged,
told to the stream, and the message reads as gone. What merely cannot be read now is an error to whoever asked for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from nimsnats.jetstream.batch import BadBatch, Batch
from nimsnats.jetstream.blocks import Block, Loaded
from nimsnats.jetstream.message import StoredMessage
from nimsnats.jetstream.store import MessageStore
from nimsnats.runtime import Runtime
from nimsnats.storage import Corrupt

READ_AHEAD: Final = 512 * 1024
"""Stored bytes of following blocks that are fetched together with a missing one."""


class BlockReader:
    """Reads messages of one store. `read_block` fetches the bytes of a block by log index."""

    def __init__(
        self,
        store: MessageStore,
        read_block: Callable[[int], Awaitable[bytes]],
        runtime: Runtime,
        log: logging.Logger,
        damaged: Callable[[list[int]], None],
    ) -> None:
        """`damaged` is told the live sequences of a block that cannot be read any more."""
        self._store = store
        self._read_block = read_block
        self._runtime = runtime
        self._log = log
        self._damaged = damaged
        self._given_up: set[int] = set()
        self._recent: tuple[Block, Loaded] | None = None
        self._reads: dict[int, asyncio.Task[Loaded | None]] = {}

    def get(self, seq: int) -> StoredMessage | None:
        """The message if it is live and its bytes are in memory."""
        recent = self._recent
        if recent is not None and recent[0].position(seq) >= 0:
            return recent[1].get(seq)
        block = self._store.blocks.find(seq)
        if block is None or block.position(seq) < 0:
            return None
        loaded = self._store.cached(block)
        if loaded is None:
            return None
        self._recent = (block, loaded)
        return loaded.get(seq)

    async def load(self, seq: int) -> StoredMessage | None:
        """The message, read from disk when needed together with what follows; None when it is gone or damaged.
        Raises StorageError when it cannot be read now."""
        tried: Block | None = None
        while (message := self.get(seq)) is None:
            block = self._store.blocks.find(seq)
            if block is None or block.position(seq) < 0 or block is tried:
                return None
            read = self._fetch(block)
            self._read_ahead(block)
            loaded = await asyncio.shield(read)
            if loaded is not None and block.position(seq) >= 0:
                return loaded.get(seq)
            tried = block  # unless the message has moved to another one meanwhile, that was all
        return message

    def _read_ahead(self, block: Block) -> None:
        """Fetch what follows this block."""
        ahead = READ_AHEAD
        for following in self._store.blocks.ascending(block.last + 1):
            if ahead <= 0:
                break
            ahead -= following.stored
            if following is not block and self._store.cached(following) is None:
                self._fetch(following)

    def _fetch(self, block: Block) -> asyncio.Task[Loaded | None]:
        task = self._reads.get(block.index)
        if task is None:
            task = self._runtime.spawn(self._read(block), f"read block {block.index}")
            self._reads[block.index] = task
            task.add_done_callback(partial(self._fetched, block.index))
        return task

    def _fetched(self, index: int, task: asyncio.Task[Loaded | None]) -> None:
        del self._reads[index]
        if not task.cancelled():
            task.exception()  # was logged; what was read ahead has nobody to tell it to

    async def _read(self, block: Block) -> Loaded | None:
        while block.live:
            seqs = block.seqs
            try:
                batch = await self._read_twice(block.index)
            except (Corrupt, BadBatch) as error:
                if block.seqs is seqs and block.live and block.index not in self._given_up:
                    self._given_up.add(block.index)
                    self._log.error("Block %d (sequences %d to %d): %s", block.index, block.first, block.last, error)
                    self._damaged([block.seq_at(at) for at in block.live_positions()])
                batch = None
            except Exception as error:
                self._log.error("Block %d (sequences %d to %d): %s", block.index, block.first, block.last, error)
                raise
            if block.seqs is seqs:  # else it was merged with its neighbours: these may be the bytes before
                return self._store.keep(block, batch) if block.live and batch is not None else None
        return None

    async def _read_twice(self, index: int) -> Batch:
        """Read again before believing in damage: what is given up is given up for good. Raises Corrupt, BadBatch."""
        try:
            return Batch.decode(await self._read_block(index))
        except (Corrupt, BadBatch):
            return Batch.decode(await self._read_block(index))

    def forget(self) -> None:
        """Drop what was kept for the next read; called after bulk removal."""
        self._recent = None

    async def close(self) -> None:
        """Give up reads in flight."""
        self.forget()
        reads = list(self._reads.values())
        for task in reads:
            task.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
