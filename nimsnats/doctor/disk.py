"""The data directory and the disk below it: whose, which format, in use, space, kind, speed of a sync."""

from __future__ import annotations

import os
import pwd
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from nimsnats import files
from nimsnats.doctor.finding import Finding, ok, problem, warning
from nimsnats.storage.directory import LOCK, last_written_ns, peek
from nimsnats.storage.errors import StorageError

_MIB: Final = 1 << 20
_TOO_LITTLE: Final = 256 * _MIB
_LITTLE: Final = 2048 * _MIB
_SYNCS: Final = 20
_SYNC_BYTES: Final = 4096
_SLOW_SYNC: Final = 0.02
_VOLATILE: Final = frozenset({"tmpfs", "ramfs"})
_LAYERED: Final = frozenset({"overlay", "aufs"})
_REMOTE: Final = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "glusterfs", "virtiofs", "lustre")
_SUBJECT: Final = "data"
_LOCK_BYTES: Final = 64


def check_directory(path: Path, node_name: str, running: int | None, now_ns: int) -> Iterator[Finding]:
    """The directory itself. `running` is the pid of the node that has it open."""
    try:
        identity = peek(path)
    except StorageError as error:
        yield problem(_SUBJECT, str(error), "Name another directory, or run the version that this one belongs to")
        return
    if not os.path.exists(path):
        yield ok(_SUBJECT, f"{path} does not exist yet: the node creates it")
    elif identity is None:
        yield ok(_SUBJECT, f"{path} is empty")
    else:
        yield ok(_SUBJECT, f"{path} is of node {identity.node}, instance {identity.instance}")
        if identity.node != node_name:
            text = f"it was made by node {identity.node}, and this one is called {node_name}"
            yield warning(_SUBJECT, text, f"Keep the name (NATS_NODE_NAME={identity.node}): peers know it by that")
    if running is not None:
        yield ok(_SUBJECT, f"in use by the running node (pid {running})")
    yield from _check_owner(path)
    newest = last_written_ns(path)
    if newest > now_ns + 60 * 10**9:
        ahead = (newest - now_ns) // 10**9
        text = f"the node's files were written {ahead} s in the future: the clock has been set back, or is wrong"
        yield warning("clock", text, "Set the clock before the node starts: messages would be stamped out of order")


def _files(path: Path) -> list[Path]:
    try:
        return [entry for entry in path.iterdir() if entry.is_file()]
    except OSError:
        return []


def _check_owner(path: Path) -> Iterator[Finding]:
    base = existing(path)
    status = base.stat()
    owner, me = _user(status.st_uid), _user(os.geteuid())
    if not os.access(base, os.W_OK | os.X_OK):
        text = f"{base} belongs to {owner}, and you, {me}, cannot write it"
        yield problem(_SUBJECT, text, f"Run the node as {owner}, or: chown -R {me} {base}")
        return
    if base == path and status.st_mode & 0o077:
        text = f"{path} is open to others (mode {status.st_mode & 0o777:o}): a node takes that away when it starts"
        yield ok(_SUBJECT, text)
    mine = {entry.name for entry in _files(path) if entry.stat().st_uid != status.st_uid}
    if base == path and mine:
        text = f"{path} belongs to {owner}, but not all of it: {', '.join(sorted(mine)[:3])}"
        yield problem(_SUBJECT, text, f"A node was run as somebody else once: chown -R {owner} {path}")


def check_disk(path: Path, clock_ns: Callable[[], int]) -> Iterator[Finding]:
    """The file system that the directory is, or would be, on. `clock_ns` measures the syncs."""
    base = existing(path)
    kind = filesystem(base)
    network = kind.startswith(_REMOTE)
    if kind in _VOLATILE:
        yield warning("disk", f"{base} is in memory ({kind}): all data is lost when the machine stops",
                      "Use a directory on a disk")  # fmt: skip
    elif kind in _LAYERED:
        yield warning("disk", f"{base} is in a container's own layer ({kind}): the data goes with the container",
                      "Mount a volume there")  # fmt: skip
    elif network:
        yield warning("disk", f"{base} is on {kind}: locks and syncs may not mean there what they should",
                      "Use a local disk: replicas on other nodes are what guards against its loss")  # fmt: skip
    room = os.statvfs(base)
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    text = f"{free // _MIB} MiB of {total // _MIB} MiB are free ({kind or 'unknown file system'})"
    if room.f_flag & os.ST_RDONLY:
        yield problem("disk", f"{base} is mounted read-only", "Mount it for writing")
    elif free < _TOO_LITTLE:
        yield problem("disk", text, "Make room: without space publishes are refused")
    elif free < max(_LITTLE, total // 20):
        yield warning(
            "disk", text, "Make room, or limit streams (max_bytes, max_age): without space publishes are refused"
        )
    else:
        yield ok("disk", text)
    if room.f_files and not room.f_favail:
        yield problem("disk", "there are no inodes left", "Remove small files")
    yield _sync_finding(base, clock_ns)


def _sync_finding(base: Path, clock_ns: Callable[[], int]) -> Finding:
    try:
        seconds = sync_seconds(base, clock_ns)
    except OSError as error:
        return ok("disk", f"the speed of a sync was not measured: {error.strerror}")
    text = f"a sync takes {seconds * 1000:.2f} ms (median of {_SYNCS})"
    if seconds > _SLOW_SYNC:
        return warning("disk", text, "Each acknowledged batch waits for one: use a faster disk, or expect this latency")
    return ok("disk", text)


def sync_seconds(base: Path, clock_ns: Callable[[], int]) -> float:
    """The median time of a small write with its fdatasync, on a file that never has a name. Raises OSError."""
    handle = os.open(base, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    times: list[int] = []
    try:
        for number in range(_SYNCS):
            before = clock_ns()
            os.pwrite(handle, bytes(_SYNC_BYTES), number * _SYNC_BYTES)
            os.fdatasync(handle)
            times.append(clock_ns() - before)
    finally:
        os.close(handle)
    return statistics.median(times) / 1e9


def existing(path: Path) -> Path:
    """The directory, or the nearest one above it that exists."""
    return next(directory for directory in (path, *path.parents) if os.path.isdir(directory))  # false when unreadable


def filesystem(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kind of file system that `path` is on; empty where the kernel does not say."""
    best, kind = -1, ""
    real = path.resolve()
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].replace("\\040", " "))
        if real.is_relative_to(point) and len(point.parts) >= best:  # a later mount hides an earlier one
            best, kind = len(point.parts), right.split()[0]
    return kind


def running_node(path: Path, locks: Path = Path("/proc/locks")) -> int | None:
    """The pid of the process that holds the directory's lock, without trying the lock."""
    try:
        status = (path / LOCK).stat()
        said = files.read(path / LOCK, _LOCK_BYTES, follow=False).decode(errors="replace").strip()
        lines = locks.read_text().splitlines()
    except OSError:
        return None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in lines:
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or not fields[5].endswith(f":{status.st_ino}"):
            continue
        if fields[5] == device or fields[4] == said:  # layered file systems show another device there
            return int(fields[4])
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
