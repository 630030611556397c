"""Zeros ahead of the end of the WAL, so that commits overwrite and never make the file grow.

Syncing a file that has grown also syncs the file system's journal: measured, a small commit that grows the WAL takes
1.5 to 2 times as long as one that overwrites. After the first checkpoint the WAL is overwritten anyway
(`checkpoint.py`); this is for the time before. Reserved but unwritten space (`fallocate`) does not help, only written
bytes do.

Owns what lies behind the last frame. SQLite reads frames up to the first whose salts are not the header's; zeros never
are.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

_PIECE: Final = 2 * 1024 * 1024
"""Written at once, in an idle moment: what comes meanwhile waits for it."""
_AHEAD: Final = 128 * 1024
_STEP: Final = 8192
"""Written by one call. The kernel caches what a call writes as one unit, and each later commit inside a big unit pays
for all of it: measured, zeros written by the megabyte lose half of what they gain."""
_ZEROS: Final = bytes(_STEP)


class Runway:
    """The written part of the WAL, up to `limit` bytes."""

    __slots__ = ("_limit", "_size", "_wal")

    def __init__(self, wal: Path, limit: int) -> None:
        self._wal = wal
        self._limit = limit
        self._size = 0

    def short(self, position: int) -> bool:
        """Whether there is little left ahead of `position`, about where the next commit goes."""
        return self._size < self._limit and position > 0 and self._size - position < _AHEAD

    def extend(self) -> None:
        """Write zeros behind the end of the file, durably. Blocking; nothing may be committed meanwhile.

        A disk that has no room for it ends the matter: commits then grow the file by themselves.
        """
        try:
            handle = os.open(self._wal, os.O_WRONLY | os.O_CLOEXEC)
            try:
                end = os.fstat(handle).st_size
                stop = min(end + _PIECE, self._limit)
                for at in range(end, stop, _STEP):
                    os.pwrite(handle, _ZEROS, at)
                os.fdatasync(handle)
                self._size = max(end, stop)
            finally:
                os.close(handle)
        except OSError as error:
            again = error.errno in (errno.EMFILE, errno.ENFILE)  # of descriptors there will be some later
            self._size = self._size + _PIECE if again else self._limit
