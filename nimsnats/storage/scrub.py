"""Reads everything that is stored, slowly and again and again, so that damage is found before it is needed.

Owns the pace and the counters. What is damaged it reports; it repairs nothing (recovery from peers and
salvage at start do).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from nimsnats.runtime import Runtime
from nimsnats.storage import layout
from nimsnats.storage.errors import StorageError
from nimsnats.storage.layout import INDEX_BITS, INDEX_MASK

RATE: Final = 2 * 1024 * 1024
"""Bytes a second."""
REST: Final = 3600.0
"""Seconds between two passes."""
_ROWS: Final = 8
_QUERY: Final = f"SELECT id, crc, term, kind, messages, total, data FROM entries WHERE id > ? ORDER BY id LIMIT {_ROWS}"


class Scrub:
    """The scrub of one database."""

    def __init__(
        self,
        read: Callable[[str, tuple[Any, ...]], Awaitable[list[Any]]],
        runtime: Runtime,
        log: logging.Logger,
        rate: float,
        rest: float,
    ) -> None:
        self.passes = 0
        self.finished_ns = 0
        """When the latest pass ended, nanoseconds since the epoch; 0 before the first."""
        self.rows = 0
        """Rows checked since start."""
        self.pass_size = 0
        """Bytes of entries that the current pass has checked so far, or the latest one did."""
        self.damaged: set[tuple[int, int]] = set()
        """(group, index) of rows whose checksum failed."""
        self._read = read
        self._runtime = runtime
        self._log = log
        self._rate = rate
        self._rest = rest
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first pass starts after a rest."""
        self._task = self._runtime.spawn(self._run(), "storage scrub")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._runtime.sleep(self._rest)
            try:
                await self.check_all()
            except StorageError as error:
                self._log.error("Scrub cannot read on: %s", error)
            except Exception as error:  # the next pass begins anew
                self._runtime.fence.caught(self.check_all, error)

    async def check_all(self) -> None:
        """One pass over all entries. Raises Corrupt when pages cannot be read at all, StorageFailed when
        closed."""
        row = self.pass_size = 0
        while rows := await self._read(_QUERY, (row,)):
            size = 0
            for found in rows:
                row = found[0]
                size += len(found[6] or b"")
                self.rows += 1
                if found[1] != layout.LOST and not layout.holds(layout.entry_crc, found):
                    self._found(row >> INDEX_BITS, row & INDEX_MASK)
            self.pass_size += size
            await self._runtime.sleep(size / self._rate)
        self.passes += 1
        self.finished_ns = self._runtime.time_ns()

    def _found(self, group: int, index: int) -> None:
        if (group, index) not in self.damaged:
            self.damaged.add((group, index))
            self._log.error("Scrub found entry %d of group %d damaged", index, group)
