"""How much room a data directory takes, and how much there is left: for monitoring, never for decisions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nimsnats.storage.directory import DATABASE

_WAL: Final = DATABASE + "-wal"


@dataclass(frozen=True, slots=True)
class Space:
    """Sizes in bytes. `free` is what an unprivileged process may still write, `total` the whole file system."""

    database: int
    wal: int
    free: int
    total: int


def space_of(path: Path) -> Space:
    """Look at the data directory at `path`. Blocking; raises OSError when the directory is gone."""
    system = os.statvfs(path)
    block = system.f_frsize
    return Space(_size(path / DATABASE), _size(path / _WAL), system.f_bavail * block, system.f_blocks * block)


def room_of(path: Path) -> int:
    """Bytes that may still be written where `path` is; raises OSError when it is gone."""
    system = os.statvfs(path)
    return system.f_bavail * system.f_frsize


def _size(file: Path) -> int:
    """0 for a file that is not there: SQLite takes the WAL away when it closes."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
