"""The data directory as a whole: who may use it, whose it is, and the names of the files inside.

Owns: the lock file, the identity file and the checks before the database is touched. It never reads the
database. The directory is its owner's alone (0700, files 0600); what is no regular file in it is refused before
anything is opened.

    identity   JSON: format, instance id, node name. Written once; `meta` in the database is its twin
    lock       held with flock for the life of the process; its text is the pid, for the error message only
    nimsnats.db, -wal, -shm   the database (SQLite)
    witness.0, witness.1      what was acknowledged (`witness.py`)
    nimsnats.db.damaged-…     a database set aside by `salvage.py`
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import random
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nimsnats.files import PRIVATE, kind_of, open_regular, read
from nimsnats.identity import nuid
from nimsnats.storage.errors import Foreign, InUse, NewerVersion, Unwritable
from nimsnats.storage.layout import FORMAT

DATABASE: Final = "nimsnats.db"
IDENTITY: Final = "identity"
LOCK: Final = "lock"
_HARMLESS: Final = frozenset({"lost+found", LOCK})
_IDENTITY_BYTES: Final = 64 * 1024
_OURS: Final = 0o700


@dataclass(slots=True)
class Identity:
    """Who this directory belongs to. `instance` is drawn once, when the directory is made, and never
    changes."""

    instance: str
    node: str


@dataclass(slots=True)
class Directory:
    """A locked data directory of ours. `identity` is None when the file is lost and the database must
    tell."""

    path: Path
    identity: Identity | None
    fresh: bool
    lock: int
    tightened: list[str] = field(default_factory=list[str])
    """Names that others could have read or written until now."""

    @property
    def database(self) -> Path:
        """The database file."""
        return self.path / DATABASE

    def write_identity(self, identity: Identity) -> None:
        """Store who we are, durably: write aside, fsync, rename, fsync the directory. Raises Unwritable."""
        text = json.dumps({"format": FORMAT, "instance": identity.instance, "node": identity.node}) + "\n"
        target = self.path / IDENTITY
        aside = self.path / ".identity.new"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(open_regular(aside, flags, follow=False), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(target)
            sync_directory(self.path)
        except OSError as error:
            raise Unwritable(f"data directory {self.path} cannot be written: {error.strerror}") from error
        self.identity = identity

    def forget_identity(self) -> None:
        """Remove the identity file, durably: until it is written again, the database alone tells who we are. Raises
        Unwritable."""
        try:
            (self.path / IDENTITY).unlink(missing_ok=True)
            sync_directory(self.path)
        except OSError as error:
            raise Unwritable(f"data directory {self.path} cannot be written: {error.strerror}") from error
        self.identity = None

    def release(self) -> None:
        """Give the directory up."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def claim(path: Path, node_name: str, source: random.Random) -> Directory:
    """Create or take over the data directory: lock it, see that it is ours, read or create the identity.

    Raises InUse, Foreign, Unwritable, NewerVersion.
    """
    try:
        if not path.exists():
            path.mkdir(mode=_OURS, parents=True, exist_ok=True)
            path.chmod(_OURS)  # whatever the umask
    except OSError as error:
        raise Unwritable(f"data directory {path} cannot be used: {error.strerror}") from error
    present = _look(path, owned=True)
    _refuse_foreign(path, present)
    directory = Directory(path, None, False, _lock(path))
    try:
        directory.tightened = _tighten(path)
        directory.identity = _read_identity(path)
        if directory.identity is None and DATABASE not in present:
            directory.fresh = True
            directory.write_identity(Identity(nuid(source), node_name))
    except BaseException:
        directory.release()
        raise
    return directory


def peek(path: Path) -> Identity | None:
    """Whose directory this is, without locking or changing anything; None when it is fresh, or its identity is lost.

    Raises Foreign, Unwritable, NewerVersion.
    """
    if not path.exists():
        return None
    present = _look(path, owned=False)
    _refuse_foreign(path, present)
    return _read_identity(path)


def last_written_ns(path: Path) -> int:
    """When the directory's files were last written, by the clock of that time (since the epoch); 0 when there are
    none, or they cannot be seen."""
    try:
        return max((entry.stat().st_mtime_ns for entry in path.iterdir() if entry.name != LOCK), default=0)
    except OSError:
        return 0


def sync_directory(path: Path) -> None:
    """fsync a directory, so that names created or renamed in it survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _look(path: Path, *, owned: bool) -> set[str]:
    """The names in the directory that are not hidden, once it is clear that it and all in it may be used. To be written
    to, it has to be `owned` by us. Raises Unwritable."""
    try:
        if owned:
            _refuse_owner(path, path.stat(), "")
        present: set[str] = set()
        for entry in path.iterdir():
            found = entry.lstat()
            kind = kind_of(found.st_mode)
            if kind and not stat.S_ISDIR(found.st_mode):
                text = f"data directory {path}: {entry.name} is {kind}, and only regular files belong there: remove it"
                raise Unwritable(text)
            if owned:
                _refuse_owner(path, found, entry.name)
            if not entry.name.startswith("."):
                present.add(entry.name)
    except OSError as error:
        raise Unwritable(f"data directory {path} cannot be used: {error.strerror}") from error
    return present


def _refuse_owner(path: Path, found: os.stat_result, name: str) -> None:
    """What is somebody else's can be changed by them at any moment. Root can do that anyway. Raises Unwritable."""
    us = os.geteuid()
    if found.st_uid == us:
        return
    whose = f"{name} in data directory {path}" if name else f"data directory {path}"
    if found.st_uid != 0:
        text = f"{whose} belongs to {_user(found.st_uid)}, and this process runs as {_user(us)}: change one of them"
        raise Unwritable(text)
    if not name and found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise Unwritable(f"{whose} belongs to root, and everybody may write to it: choose a directory of your own")


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def _tighten(path: Path) -> list[str]:
    """Take away from everybody else what they may do here; the names of what they could. Where that is not allowed
    (the directory is root's), or the file system has no modes, all stays as it is."""
    tightened: list[str] = []
    for entry in (path, *path.iterdir()):
        mode = entry.lstat().st_mode
        wanted = PRIVATE if stat.S_ISREG(mode) else _OURS
        if mode & 0o077 and (entry == path or stat.S_ISREG(mode)):
            try:
                entry.chmod(wanted)
            except OSError:
                continue
            if entry.name != LOCK and not entry.lstat().st_mode & 0o077:
                tightened.append(str(entry) if entry == path else entry.name)
    return tightened


def _refuse_foreign(path: Path, present: set[str]) -> None:
    """A directory that holds things but neither identity nor database of ours is somebody else's."""
    if IDENTITY in present or DATABASE in present:
        return
    strangers = sorted(present - _HARMLESS)
    if strangers:
        shown = ", ".join(strangers[:3]) + (", …" if len(strangers) > 3 else "")
        raise Foreign(f"data directory {path} is not ours: it holds {shown}; choose an empty directory")


def _lock(path: Path) -> int:
    try:
        handle = open_regular(path / LOCK, os.O_RDWR | os.O_CREAT, follow=False)
    except OSError as error:
        raise Unwritable(f"data directory {path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise InUse(f"data directory {path} is in use by another process (pid {holder})") from error
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            os.close(handle)
            raise Unwritable(f"data directory {path} cannot be written: {error.strerror}") from error
    return handle


def _read_identity(path: Path) -> Identity | None:
    """The identity file, or None when it is missing or unreadable. Raises NewerVersion, Unwritable."""
    try:
        fields: Any = json.loads(read(path / IDENTITY, _IDENTITY_BYTES, follow=False))
        version, identity = int(fields["format"]), Identity(str(fields["instance"]), str(fields["node"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    except OSError as error:
        raise Unwritable(f"data directory {path} cannot be read: {error.strerror}") from error
    if version > FORMAT:
        raise NewerVersion(f"data directory {path} has format {version}; this version reads up to {FORMAT}")
    return identity
