"""Keeping blocks few and full: small neighbours are merged, mostly dead ones are rewritten without their dead.

Owns the choice of what to rewrite and the two steps that make it safe at every crash:

1. After a snapshot, a block's bytes are replaced by a superset of what the snapshot says is live in it: its own live
   messages and those of the neighbours to be merged, whose own bytes stay. A restart sees either bytes and the same
   stream, because a note names the live sequences of its block and everything else in the bytes is ignored.
2. With the next snapshot the block's note takes over the neighbours' sequences and their blocks are dropped, in one
   transaction. Only what is durable of step 1 takes part: a disk that was full then may have space again.

Only messages that were dead in the last snapshot are left out: entries after it are replayed at a restart and may look
at what was still there. It changes nothing that a client can see.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.blocks import Block, Loaded
from nimsnats.jetstream.message import StoredMessage
from nimsnats.jetstream.store import MessageStore
from nimsnats.runtime import Runtime
from nimsnats.storage import StorageError

SMALL: Final = 64 * 1024
"""Stored bytes below which a block may be merged."""
FULL_BYTES: Final = 512 * 1024
FULL_MESSAGES: Final = 4096
NEIGHBOURS: Final = 8
"""Small neighbours that are worth a merge."""
BUDGET: Final = 16 * 1024 * 1024
"""Stored bytes rewritten after one snapshot."""

_MAX_DISTANCE: Final = (1 << 32) - 1


@dataclass(slots=True)
class _Job:
    """Neighbouring blocks that become the first of them; `live` are each block's live sequences in the snapshot."""

    blocks: list[Block]
    live: list[list[int]]
    batch: Batch | None = None
    """What was written, once it is durable."""
    seqs: array[int] = field(default_factory=lambda: array("Q"))


class Compactor:
    """Rewrites the blocks of one stream in the background, between snapshots."""

    def __init__(
        self,
        store: MessageStore,
        read_block: Callable[[int], Awaitable[bytes]],
        rewrite_block: Callable[[int, bytes], Awaitable[None]],
        runtime: Runtime,
        log: logging.Logger,
    ) -> None:
        self._store = store
        self._read_block = read_block
        self._rewrite_block = rewrite_block
        self._runtime = runtime
        self._log = log
        self._jobs: list[_Job] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def conclude(self) -> None:
        """Step 2, before a snapshot is taken: blocks that were merged become one."""
        if self._task is not None and not self._task.done():
            return
        for job in self._jobs:
            if job.batch is not None:
                self._merge(job, job.batch)
        self._jobs = []

    def begin(self) -> None:
        """Step 1, after a snapshot was taken: choose what to rewrite and start."""
        if self._closed or (self._task is not None and not self._task.done()):
            return
        self._jobs = self._choose()
        if self._jobs:
            self._task = self._runtime.spawn(self._work(self._jobs), "compact blocks")

    def abandon(self) -> None:
        """The blocks have been replaced by others: what is under way is about nothing."""
        if self._task is not None:
            self._task.cancel()
        self._jobs = []

    async def close(self) -> None:
        """Give up what is under way; unfinished work is chosen again some other time."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._jobs = []

    # Choosing

    def _choose(self) -> list[_Job]:
        jobs: list[_Job] = []
        run: list[Block] = []
        size = messages = budget = 0
        for block in self._store.blocks:
            if budget > BUDGET:
                break
            if self._store.held(block.index):
                self._close_run(run, jobs)
                run, size, messages = [], 0, 0
                continue
            fits = (
                block.stored < SMALL
                and size + block.stored <= FULL_BYTES
                and messages + block.live <= FULL_MESSAGES
                and (not run or block.last - run[0].first < _MAX_DISTANCE)
            )
            if not fits:
                self._close_run(run, jobs)
                run, size, messages = [], 0, 0
            if block.stored < SMALL or _mostly_dead(block):
                run.append(block)
                size += block.stored
                messages += block.live
                budget += block.stored
        self._close_run(run, jobs)
        return jobs

    @staticmethod
    def _close_run(run: list[Block], jobs: list[_Job]) -> None:
        """A run of neighbours ends: is it worth the work?"""
        if len(run) >= NEIGHBOURS or (len(run) == 1 and _mostly_dead(run[0])):
            jobs.append(_Job(run, [_live(block) for block in run]))
            return
        jobs.extend(_Job([block], [_live(block)]) for block in run if _mostly_dead(block))

    # Step 1

    async def _work(self, jobs: list[_Job]) -> None:
        for job in jobs:
            messages: list[StoredMessage] = []
            for block, live in zip(job.blocks, job.live, strict=True):
                loaded = self._store.cached(block) or await self._read(block)
                if loaded is None:
                    break
                messages.extend(message for message in map(loaded.get, live) if message is not None)
            else:
                await self._write(job, messages)
            await asyncio.sleep(0)

    async def _read(self, block: Block) -> Loaded | None:
        try:
            return Loaded(block.first, Batch.decode(await self._read_block(block.index)), block.rejected)
        except Exception as error:
            self._log.error("Block %d cannot be compacted: %s", block.index, error)
            return None

    async def _write(self, job: _Job, messages: list[StoredMessage]) -> None:
        target = job.blocks[0]
        if len(messages) != sum(map(len, job.live)) or not target.live:
            return
        headers = [message.headers for message in messages]
        batch = Batch(
            messages[-1].time,
            [message.subject for message in messages],
            [message.payload for message in messages],
            headers if any(headers) else None,
        )
        job.seqs = array("Q", [message.seq for message in messages])
        batch.offsets = array("I", [seq - target.first for seq in job.seqs])
        batch.times = array("Q", [message.time for message in messages])
        try:
            await self._rewrite_block(target.index, batch.encode())
        except StorageError as error:
            self._log.debug("Block %d stays as it is: %s", target.index, error)
            return  # without a batch: its note must go on saying what the old bytes hold
        job.batch = batch

    # Step 2

    def _merge(self, job: _Job, batch: Batch) -> None:
        store = self._store
        target = job.blocks[0]
        if not target.live:
            return  # its row is dropped, so its neighbours keep theirs
        alive = {seq for block in job.blocks if block.live for seq in _live(block)}
        keep = [seq in alive for seq in job.seqs]
        for block in job.blocks[1:]:
            if block.live:
                store.absorbed(block)
        store.replace(target, batch, job.seqs, keep)


def _live(block: Block) -> list[int]:
    return [block.seq_at(at) for at in block.live_positions()]


def _mostly_dead(block: Block) -> bool:
    return block.live * 2 < block.count
