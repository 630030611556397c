"""Files that are opened by name: regular ones only, and never waited for.

Owns the opening. A FIFO would block whoever opens it, a device can do anything when it is opened, and a link in a
directory of ours leads to somebody else's file: all of them are refused before they are opened or changed.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

PRIVATE: Final = 0o600
"""Mode of a file with data: its owner's alone."""

_KINDS: Final = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of(mode: int) -> str:
    """What a file is that is no regular one; empty for a regular one."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "")


def open_regular(path: str | Path, flags: int, mode: int = PRIVATE, *, follow: bool = True) -> int:
    """A descriptor of a regular file. Raises OSError; its `strerror` says what the file is instead.

    A file that is made has exactly `mode`, whatever the umask. With `follow` off, `path` itself may not be a link.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "its name holds a NUL", str(path))
    try:
        found = os.stat(path, follow_symlinks=follow).st_mode
    except FileNotFoundError:
        found = stat.S_IFREG
        made = bool(flags & os.O_CREAT)
    else:
        made = False
    _refuse(path, found)
    if not follow:
        flags |= os.O_NOFOLLOW
    handle = os.open(path, flags & ~os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, mode)
    try:
        _refuse(path, os.fstat(handle).st_mode)  # it may have been exchanged since
        if made:
            os.fchmod(handle, mode)
        if flags & os.O_TRUNC:
            os.ftruncate(handle, 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _refuse(path: str | Path, mode: int) -> None:
    kind = kind_of(mode)
    if kind == "a directory":
        raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
    if kind:
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def reading(path: str | Path, *, follow: bool = True) -> BinaryIO:
    """A regular file, open to be read. Raises OSError."""
    return os.fdopen(open_regular(path, os.O_RDONLY, follow=follow), "rb")


def read(path: str | Path, most: int, *, follow: bool = True) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises OSError."""
    with reading(path, follow=follow) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
    return content


def check(path: str | Path, most: int) -> None:
    """Whether somebody else may open it by its name: a regular file of at most `most` bytes. Raises OSError."""
    handle = open_regular(path, os.O_RDONLY)
    try:
        if os.fstat(handle).st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
    finally:
        os.close(handle)


def write(path: str | Path, text: str, mode: int = PRIVATE) -> None:
    """Put a text into a regular file; one that is made has `mode`. Raises OSError."""
    with os.fdopen(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
