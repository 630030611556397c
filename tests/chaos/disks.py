"""Small disks of their own for nodes under test, which can be filled without filling the machine's.

Mounted where only this process and its children see them: they are gone with it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_CLONE_NEWNS: Final = 0x00020000
_MS_REC_PRIVATE: Final = 0x4000 | 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> None:
    """From now on nobody else sees what this process mounts. Raises OSError."""
    _checked(_libc.unshare(_CLONE_NEWNS))
    _mount("none", "/", None, _MS_REC_PRIVATE, None)


def mount_disk(directory: Path, megabytes: int) -> None:
    """A disk of that size in memory at `directory`. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", str(directory), "tmpfs", 0, f"size={megabytes}m")


def unmount(directory: Path) -> None:
    """Take such a disk away with all that is on it. Raises OSError."""
    _checked(_libc.umount2(str(directory).encode(), 2))


def _mount(what: str, where: str, kind: str | None, flags: int, data: str | None) -> None:
    texts = [None if text is None else text.encode() for text in (what, where, kind, data)]
    _checked(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
