"""Opens a data directory: see that the database is ours and whole, repair it if not, connect.

Owns the order of these steps and the connections' settings. What runs afterwards is `database.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import aiosqlite

from nimsnats.runtime import Runtime
from nimsnats.storage import layout, repair
from nimsnats.storage.batch import Writer
from nimsnats.storage.directory import Directory, Identity, claim
from nimsnats.storage.errors import Corrupt, Foreign, NewerVersion, StorageError, Unwritable
from nimsnats.storage.failure import is_full
from nimsnats.storage.inspection import View, look
from nimsnats.storage.layout import GroupRow
from nimsnats.storage.pages import PageImage, Wal
from nimsnats.storage.repair import Loss
from nimsnats.storage.witness import GroupTestimony, Testimony, Witness, read_testimony

READERS: Final = 2
_ELBOW_ROOM: Final = 128 * 1024
"""Bytes for what an opening writes besides: SQLite's shared memory, the witness, the identity."""
_READER_CACHE_KIB: Final = 4096
_WRITER_CACHE_KIB: Final = 16384
_ENVIRONMENT: Final = frozenset(
    {
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
    }
)
"""Errors of the surroundings, not of the file's content."""


@dataclass(slots=True)
class Connections:
    """The open connections of a database. `direct` is used on the loop's own thread, at start only."""

    writing: aiosqlite.Connection
    writer: Writer
    reading: list[aiosqlite.Connection]
    checkpointing: aiosqlite.Connection
    direct: sqlite3.Connection

    async def close(self) -> None:
        """Close all of them, the writer last: it folds the WAL into the database."""
        self.direct.close()
        for connection in (*self.reading, self.checkpointing, self.writing):
            await connection.close()


@dataclass(slots=True)
class Contents:
    """What was found in the directory."""

    groups: dict[int, GroupRow] = field(default_factory=dict[int, GroupRow])
    last: dict[int, int] = field(default_factory=dict[int, int])
    losses: dict[int, Loss] = field(default_factory=dict[int, Loss])
    damage: list[str] = field(default_factory=list[str])
    """What was damaged, one line each, for the operator; empty when all is well."""
    testimony: dict[int, GroupTestimony] = field(default_factory=dict[int, GroupTestimony])
    generation: int = 0


@dataclass(slots=True)
class Opened:
    """A data directory in use: locked, whole, connected, witnessed."""

    directory: Directory
    contents: Contents
    connections: Connections
    witness: Witness
    wal: int
    """A descriptor of the write-ahead log, held from the start: none may be left when one is needed."""

    async def close(self) -> None:
        """Let go of it."""
        os.close(self.wal)
        await self.connections.close()
        self.witness.close()
        self.directory.release()


async def open_directory(
    path: Path, runtime: Runtime, node_name: str, log: logging.Logger, sync_always: bool
) -> Opened:
    """All steps, as `open_database` describes them. Not to be cancelled: threads work in the directory meanwhile."""
    directory = claim(path, node_name, runtime.random)
    connections: Connections | None = None
    try:
        stamp = datetime.fromtimestamp(runtime.time_ns() // 10**9, UTC).strftime("%Y%m%dT%H%M%S")
        if directory.tightened:
            text = "Data directory %s was open to others: %s are their owner's alone now (0700, files 0600)"
            log.warning(text, path, ", ".join(directory.tightened))
        contents = await asyncio.to_thread(prepare, directory, log, stamp)
        connections = await connect(directory.database, sync_always)
        witness = Witness(path, contents.generation)
        try:
            living = [row for row in contents.groups.values() if row[2]]
            witness.start((row[0], row[2], contents.last.get(row[0], 0), row[3]) for row in living)
            wal = os.open(f"{directory.database}-wal", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            witness.close()
            raise Unwritable(f"data directory {path} cannot be written: {error.strerror}") from error
    except BaseException:
        if connections is not None:
            await connections.close()
        directory.release()
        raise
    return Opened(directory, contents, connections, witness, wal)


def prepare(directory: Directory, log: logging.Logger, stamp: str) -> Contents:
    """Create the database, or check it, and get back what can be got back. `stamp` names a database set
    aside.

    Blocking; run it in a thread. Raises Foreign, NewerVersion, Corrupt, Unwritable.
    """
    try:
        return _prepare(directory, log, stamp)
    except sqlite3.DatabaseError as error:
        raise translate(error, directory.database) from error
    except OSError as error:
        raise Unwritable(f"{directory.path} cannot be used: {error.strerror or error}") from error


def _prepare(directory: Directory, log: logging.Logger, stamp: str) -> Contents:
    database = directory.database
    repair.resume_swap(database)
    testimony = read_testimony(directory.path)
    if not database.exists() or _unborn(database, testimony):
        _create(directory, testimony)
        return Contents(generation=testimony.generation)
    _check_room(directory)
    contents = Contents(testimony=testimony.groups, generation=testimony.generation)
    beside = [path for suffix in ("-wal", "-shm") if not (path := Path(f"{database}{suffix}")).exists()]
    try:
        view = look(database, testimony)
    except (Foreign, NewerVersion):
        for path in beside:  # SQLite makes them, to read; what is not ours stays as it was
            path.unlink(missing_ok=True)
        raise
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _ENVIRONMENT:
            raise
        if is_full(error, directory.path):
            raise Unwritable(f"no space left in {directory.path}: make room, then start again") from error
        if directory.identity is None and not _is_sqlite(database):
            raise Foreign(f"{database} is not a database of ours") from error
        aside = repair.rebuild(directory, stamp)
        contents.damage.append(f"the database was damaged ({error}) and has been salvaged; the old one is {aside}")
        view = look(database, testimony)
    hidden = _find_hidden(database, view, testimony)
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        _confirm_identity(connection, directory)
        if hidden is not None:
            groups, rows = hidden
            repair.write_groups(connection, groups)
            count = repair.put_back(connection, rows)
            contents.damage.append(f"pages were damaged; {count} entries behind them were found again")
            view = look(database, testimony)
        contents.losses = repair.settle(connection, view, testimony)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    contents.groups = view.groups
    for group, last in view.last.items():
        seen = testimony.groups.get(group)
        contents.last[group] = max(last, seen.last if seen else 0)
    _report(contents, view, log)
    return contents


def _check_room(directory: Directory) -> None:
    """Refuse, before anything is touched, what would stop half-way: the write-ahead log is about to be folded in.
    Raises Unwritable."""
    database = directory.database
    pages = database.stat().st_size // layout.PAGE_SIZE
    wal = Wal(database.with_name(database.name + "-wal"))
    more = {page for _, page, _ in wal.frames if page > pages}
    needed = len(more) * layout.PAGE_SIZE + _ELBOW_ROOM
    system = os.statvfs(directory.path)
    if (system.f_bavail if os.geteuid() else system.f_bfree) * system.f_frsize < needed:
        room = f"{needed / 2**20:.1f} MiB at least"
        raise Unwritable(
            f"no space left in {directory.path}: make room ({room}), then start again; nothing was touched"
        )


def _find_hidden(
    database: Path, view: View, testimony: Testimony
) -> tuple[dict[int, GroupRow], list[layout.EntryRow]] | None:
    """Rows that SQLite does not see but that are there: behind a bad WAL frame, or below a bad page. None
    when there is no sign of any.

    Frames of the current generation behind the last valid one are no sign by themselves: a power failure in
    the middle of a commit leaves such. They are when a commit among them is followed by more (it had been
    synced), or when the witness has seen entries which the database lacks.
    """
    wal = Wal(database.with_name(database.name + "-wal"))
    stray = wal.stray(view.valid_frames)
    ends = [number for number, _, size in stray if size]
    synced = bool(ends) and ends[0] < stray[-1][0]
    behind = any(seen.last > view.last.get(group, 0) for group, seen in testimony.groups.items() if _alive(view, group))
    if not view.missing and not (stray and (synced or behind)):
        return None
    image = PageImage(database, wal)
    groups = repair.harvest_groups(image, view.groups) if stray else {}
    live = {layout.row_id(group, index) for group, indexes in view.blocks.items() for index in indexes}
    wanted = repair.wanted_rows({**view.groups, **groups}, live)
    rows = list(repair.harvest(image, wanted, main=bool(view.missing)))
    return groups, rows


def _alive(view: View, group: int) -> bool:
    """Whether the group is unknown here or has not been removed."""
    row = view.groups.get(group)
    return row is None or bool(row[2])


def _report(contents: Contents, view: View, log: logging.Logger) -> None:
    for group in sorted(view.unreadable):
        contents.damage.append(f"the name of group {group} is lost (both copies)")
    for group, loss in sorted(contents.losses.items()):
        row = contents.groups.get(group)
        name = f"group {row[2]!r}" if row is not None and row[2] else f"group {group} (its name is lost too)"
        if loss.entries:
            low, high = min(loss.entries), max(loss.entries)
            contents.damage.append(
                f"{name} lost {len(loss.entries)} acknowledged log entries between {low} and {high} "
                f"with {sum(loss.entries.values())} messages"
            )
        if loss.blocks:
            contents.damage.append(f"{name} lost {len(loss.blocks)} blocks: {', '.join(map(str, loss.blocks[:8]))}")
    for line in contents.damage:
        log.error("Storage damage: %s", line)


def _create(directory: Directory, testimony: Testimony) -> None:
    database = directory.database
    if any(seen.last for seen in testimony.groups.values()):
        raise Corrupt(
            f"{database} is missing, but {directory.path} has held {len(testimony.groups)} groups: restore it"
        )
    if directory.identity is None:
        raise Corrupt(f"{directory.path} has lost its identity (both copies)")
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    connection = repair.begin(database)
    try:
        repair.create(connection, directory.identity.instance, directory.identity.node)
    finally:
        connection.close()


def _unborn(database: Path, testimony: Testimony) -> bool:
    """Whether this is what a start leaves that was killed while it created the database."""
    if testimony.found:
        return False
    size = database.stat().st_size
    if size == 0:
        return True
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
    try:
        application: int = connection.execute("PRAGMA application_id").fetchone()[0]
        tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.DatabaseError:
        return False
    finally:
        connection.close()
    return application == 0 and tables == 0


def _is_sqlite(database: Path) -> bool:
    with database.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _confirm_identity(connection: sqlite3.Connection, directory: Directory) -> None:
    """The identity file and the database say the same; either one restores the other. Both are brought to our format,
    the database last: until then, all of it is done again."""
    found: Identity | None = None
    older = False
    for table in layout.copies("meta"):
        for row in connection.execute(f"SELECT * FROM {table}"):
            if layout.holds(layout.meta_crc, row):
                found = Identity(row[3], row[4])
                older |= row[2] < layout.FORMAT
    if found is None:
        if directory.identity is None:
            raise Corrupt(f"{directory.path} has lost its identity (all copies)")
        _write_meta(connection, directory.identity)
        return
    if directory.identity is not None and directory.identity.instance != found.instance:
        raise Foreign(f"{directory.database} belongs to another instance than {directory.path}; was it copied there?")
    if older or directory.identity is None:
        directory.write_identity(found)
    if older:
        _write_meta(connection, found)


def _write_meta(connection: sqlite3.Connection, identity: Identity) -> None:
    row = layout.meta_row(identity.instance, identity.node)
    for table in layout.copies("meta"):
        connection.execute(layout.UPSERTS[table], row)


async def connect(path: Path, sync_always: bool) -> Connections:
    """Open the writer, the readers, the checkpointer and the direct connection. Raises Unwritable,
    Corrupt."""
    level = "FULL" if sync_always else "NORMAL"

    def connector(kind: type[sqlite3.Connection], *pragmas: str) -> Callable[[], sqlite3.Connection]:
        def make() -> sqlite3.Connection:
            made = sqlite3.connect(path, isolation_level=None, cached_statements=128, factory=kind)
            for pragma in pragmas:
                made.execute(f"PRAGMA {pragma}")
            made.execute("PRAGMA schema_version").fetchall()  # opens the write-ahead log now, not at the first use
            opened.append(made)
            return made

        return make

    opened: list[sqlite3.Connection] = []
    writer = connector(
        Writer,
        f"synchronous = {level}",
        "wal_autocheckpoint = 0",
        "secure_delete = OFF",
        "temp_store = MEMORY",  # a temporary file would need a descriptor
        f"cache_size = -{_WRITER_CACHE_KIB}",
    )
    reader = connector(sqlite3.Connection, "query_only = ON", f"cache_size = -{_READER_CACHE_KIB}")
    checkpointer = connector(sqlite3.Connection, f"synchronous = {level}")
    threads: list[aiosqlite.Connection] = []
    try:
        for make in (writer, checkpointer, *[reader] * READERS):
            threads.append(await aiosqlite.Connection(make, 64))
        direct = reader()
    except sqlite3.DatabaseError as error:
        for thread in reversed(threads):
            await thread.close()
        raise translate(error, path) from error
    first = opened[0]
    assert isinstance(first, Writer)
    return Connections(threads[0], first, threads[2:], threads[1], direct)


def translate(error: sqlite3.DatabaseError, path: Path) -> StorageError:
    """What an SQLite error outside a commit means."""
    if is_full(error, path.parent):
        return Unwritable(f"no space left in {path.parent}: make room, then start again")
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _ENVIRONMENT:
        return Unwritable(f"{path} cannot be used: {error}")
    return Corrupt(f"{path} is damaged: {error}")
