"""Opens a data directory: claim it, see that the database is ours and whole, connect, read the small tables.

Owns the start-up order and the connections' settings. What runs afterwards is `database.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite

from nimsnats.storage import layout
from nimsnats.storage.batch import Writer
from nimsnats.storage.directory import Directory, Identity
from nimsnats.storage.errors import Corrupt, Foreign, NewerVersion, Unwritable
from nimsnats.storage.layout import GroupRow

READERS: Final = 2
_READER_CACHE_KIB: Final = 4096
_WRITER_CACHE_KIB: Final = 16384

Row = TypeVar("Row", bound=tuple[Any, ...])


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
class SmallTables:
    """Everything but entries, as read at start from two copies."""

    groups: dict[int, GroupRow] = field(default_factory=dict[int, GroupRow])
    lost: list[str] = field(default_factory=list[str])


def prepare(directory: Directory) -> None:
    """Create the database or see that it is one of ours: format, identity, settings that live in the file.

    Blocking; run it in a thread. Raises Foreign, NewerVersion, Corrupt, Unwritable.
    """
    path = directory.database
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            _prepare(connection, directory)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise translate(error, path) from error


def _prepare(connection: sqlite3.Connection, directory: Directory) -> None:
    path = directory.database
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and application != layout.APPLICATION_ID:
        raise Foreign(f"{path} is a database of other software")
    if not tables:
        connection.execute(f"PRAGMA page_size = {layout.PAGE_SIZE}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA application_id = {layout.APPLICATION_ID}")
    identity = _stored_identity(connection, path) if "meta" in tables else None
    if identity is None:
        identity = directory.identity
        if identity is None:
            raise Corrupt(f"{directory.path} has lost its identity (both copies)")
        connection.execute("BEGIN IMMEDIATE")
        for statement in layout.SCHEMA:
            connection.execute(statement)
        for table in ("meta", "meta_mirror"):
            connection.execute(layout.UPSERTS[table], layout.meta_row(identity.instance, identity.node))
        connection.execute("COMMIT")
    if directory.identity is None:
        directory.write_identity(identity)
    elif directory.identity.instance != identity.instance:
        raise Foreign(f"{path} belongs to another instance than its directory says; was it copied here?")


def _stored_identity(connection: sqlite3.Connection, path: Path) -> Identity | None:
    for table in ("meta", "meta_mirror"):
        for row, crc, version, instance, node in connection.execute(f"SELECT * FROM {table}"):
            if crc != layout.meta_crc(row, version, instance, node):
                continue
            if version > layout.FORMAT:
                raise NewerVersion(f"{path} has format {version}; this version reads up to {layout.FORMAT}")
            return Identity(instance, node)
    return None


async def connect(path: Path, sync_always: bool) -> Connections:
    """Open the writer, the readers, the checkpointer and the direct connection."""
    level = "FULL" if sync_always else "NORMAL"

    def open_writer() -> Writer:
        made = sqlite3.connect(path, isolation_level=None, cached_statements=128, factory=Writer)
        for pragma in (f"synchronous = {level}", "wal_autocheckpoint = 0", "secure_delete = OFF"):
            made.execute(f"PRAGMA {pragma}")
        made.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
        return made

    def open_reader() -> sqlite3.Connection:
        made = sqlite3.connect(path, isolation_level=None)
        made.execute("PRAGMA query_only = ON")
        made.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
        return made

    def open_checkpointer() -> sqlite3.Connection:
        made = sqlite3.connect(path, isolation_level=None)
        made.execute(f"PRAGMA synchronous = {level}")
        return made

    writers: list[Writer] = []

    def keep_writer() -> Writer:
        writers.append(open_writer())
        return writers[0]

    opened: list[aiosqlite.Connection] = []
    connectors: list[Callable[[], sqlite3.Connection]] = [keep_writer, open_checkpointer, *[open_reader] * READERS]
    try:
        for connector in connectors:
            opened.append(await aiosqlite.Connection(connector, 64))
        direct = open_reader()
    except sqlite3.DatabaseError as error:
        for connection in reversed(opened):
            await connection.close()
        raise translate(error, path) from error
    return Connections(opened[0], writers[0], opened[2:], opened[1], direct)


def read_small_tables(connection: sqlite3.Connection) -> SmallTables:
    """Groups from both copies; a row that neither copy has whole is named in `lost`."""
    tables = SmallTables()
    damaged: set[int] = set()
    for table in ("groups_mirror", "groups"):
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY id"):
            if layout.group_crc(row[0], *row[2:]) == row[1]:
                tables.groups[row[0]] = row
            else:
                damaged.add(row[0])
    tables.groups = dict(sorted(tables.groups.items()))
    tables.lost.extend(f"group {group}" for group in sorted(damaged - tables.groups.keys()))
    return tables


def translate(error: sqlite3.DatabaseError, path: Path) -> Exception:
    """What an SQLite error while opening means."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_FULL}:
        return Unwritable(f"{path} cannot be written: {error}")
    return Corrupt(f"{path} is damaged: {error}")
