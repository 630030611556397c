"""Folds the WAL into the database without holding up commits for long.

Owns when checkpoints run. The bulk is copied by a connection of its own while the writer goes on appending to
the WAL; what was appended meanwhile is little, and is copied by the writer between two commits. Then the WAL
is complete, and the next commit starts it over, inside the space it already has: overwriting is cheaper to
sync than growing (measured: 1.5 to 2 times the commits a second).
"""

from __future__ import annotations

from typing import Any, Final

import aiosqlite

WAL_BYTES: Final = 32 * 1024 * 1024
"""Bytes written between two checkpoints."""
_PASSIVE: Final = "PRAGMA wal_checkpoint(PASSIVE)"


class Checkpointer:
    """Counts what is written, and says when to do which part."""

    __slots__ = ("_aside", "_limit", "_writer", "running", "written")

    def __init__(self, aside: aiosqlite.Connection, writer: aiosqlite.Connection, limit: int) -> None:
        self._aside = aside
        self._writer = writer
        self._limit = limit
        self.written = 0
        self.running = False

    def due(self) -> bool:
        """Whether a checkpoint should begin."""
        return self.written >= self._limit and not self.running

    async def bulk(self) -> None:
        """Copy most of the WAL, while commits go on. Raises sqlite3.Error."""
        await self._aside.execute_fetchall(_PASSIVE)

    async def finish(self) -> bool:
        """Copy the rest; call it between two commits. Returns whether the WAL can start over. Raises
        sqlite3.Error."""
        rows: Any = await self._writer.execute_fetchall(_PASSIVE)
        busy, frames, copied = next(iter(rows))
        self.written = 0
        return not busy and frames == copied
