"""Which kind of trouble an SQLite error is: no space (refuse and go on), damage, or a device that cannot be
trusted.

Owns the classification only.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from nimsnats.files import open_regular
from nimsnats.storage.errors import StorageError, StorageFailed, StorageFull

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PROBE: Final = ".probe"
_PROBE_BYTES: Final = 1 << 20
_UNTRUSTED: Final = frozenset({sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC})


def classify(error: Exception, path: Path) -> StorageError:
    """Translate what a commit raised. Anything but a full disk is final: after a failed write or fsync nobody
    knows what the device holds, and asking again may get a false yes.

    SQLite reports ENOSPC as SQLITE_FULL from most places, but as an I/O error when the limit is one of file
    size or when the shared-memory file cannot grow. So an I/O error other than a failed fsync is checked on
    the disk itself.
    """
    if isinstance(error, StorageError):
        return error
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if is_full(error, path):
        return StorageFull(f"no space left in {path}")
    if code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return StorageFailed(f"database in {path} is damaged ({error}); it is salvaged at the next start")
    name: str = getattr(error, "sqlite_errorname", type(error).__name__)
    return StorageFailed(f"writing to {path} failed: {error} ({name})")


def is_full(error: Exception, path: Path) -> bool:
    """Whether an SQLite error of the database in `path` comes from want of space, and from nothing worse."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return True
    return code & 0xFF == sqlite3.SQLITE_IOERR and code not in _UNTRUSTED and out_of_space(path)


def out_of_space(path: Path) -> bool:
    """Whether a megabyte cannot be written in the data directory for want of space (disk, quota or file size
    limit)."""
    probe = path / _PROBE
    try:
        handle = open_regular(probe, os.O_WRONLY | os.O_CREAT, follow=False)
    except OSError as error:
        return error.errno in _NO_SPACE
    try:
        database = path / "nimsnats.db-wal"
        start = database.stat().st_size if database.exists() else 0  # a file size limit shows only at that offset
        return os.pwrite(handle, bytes(_PROBE_BYTES), start) < _PROBE_BYTES
    except OSError as error:
        return error.errno in _NO_SPACE
    finally:
        os.close(handle)
        with suppress(OSError):  # nothing depends on the probe; it is overwritten next time
            probe.unlink()
