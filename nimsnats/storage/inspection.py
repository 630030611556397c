"""What a database holds compared with what it should hold, found without changing it.

Owns the read-only look at start. The database is opened with `mode=ro`, so SQLite neither checkpoints nor
deletes a WAL that may still be needed to get rows back (`repair.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nimsnats.storage import layout
from nimsnats.storage.errors import Corrupt, Foreign, NewerVersion
from nimsnats.storage.layout import INDEX_MASK, GroupRow, row_id
from nimsnats.storage.pages import Wal
from nimsnats.storage.witness import Testimony

_QUICK_CHECK_BYTES: Final = 256 * 1024 * 1024
"""Databases up to this size get SQLite's own structure check at every start (0.05 s from the page cache,
measured); the structure of larger ones is checked by walking the rows, and by the scrub."""
_WALK_BYTES: Final = 8 * 1024 * 1024 * 1024
_MAX_FRAME_OFFSET: Final = 16


@dataclass(slots=True)
class View:
    """What SQLite sees in the database."""

    groups: dict[int, GroupRow] = field(default_factory=dict[int, GroupRow])
    """Every whole group row, tombstones too."""
    unreadable: set[int] = field(default_factory=set[int])
    """Groups whose row fails its checksum in both copies."""
    blocks: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    """Indexes of the live blocks of each group, ascending."""
    last: dict[int, int] = field(default_factory=dict[int, int])
    missing: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    """Indexes that should have a row and have none."""
    bogus: list[int] = field(default_factory=list[int])
    """Rows beyond the end of their group's log whose checksum fails: a damaged row id."""
    valid_frames: int = 0
    """WAL frames that SQLite believes in."""


def look(database: Path, testimony: Testimony) -> View:
    """Read the small tables and walk the row ids. Raises Foreign, NewerVersion, Corrupt;
    sqlite3.DatabaseError when the file's structure is damaged."""
    connection = sqlite3.connect(f"file:{_quote(database)}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA cache_size = -8192")
        check_ours(connection, database)
        if database.stat().st_size <= _QUICK_CHECK_BYTES:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(str(verdict).replace("\n", " "))
        view = View()
        read_groups(connection, view)
        for group, row in view.groups.items():
            if row[2]:
                seen = testimony.groups.get(group)
                _look_at_group(connection, view, row, seen.last if seen else 0, database)
        view.valid_frames = _valid_frames(database)
        return view
    finally:
        connection.close()


def check_ours(connection: sqlite3.Connection, database: Path) -> None:
    """Raises Foreign or NewerVersion when the database is not one of ours that we can read."""
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and application != layout.APPLICATION_ID:
        if not tables & layout.TABLES.keys():
            raise Foreign(f"{database} is a database of other software")
        raise sqlite3.DatabaseError("application id is damaged")
    expected = {name for table in layout.TABLES for name in layout.copies(table)}
    if not expected <= tables:
        raise sqlite3.DatabaseError("tables are missing")
    for table in layout.copies("meta"):
        for row in connection.execute(f"SELECT * FROM {table}"):
            if layout.holds(layout.meta_crc, row) and row[2] > layout.FORMAT:
                raise NewerVersion(f"{database} has format {row[2]}; this version reads up to {layout.FORMAT}")


def read_groups(connection: sqlite3.Connection, view: View) -> None:
    """Fill in the groups from both copies; the first copy wins where both are whole."""
    for table in reversed(layout.copies("groups")):
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY id"):
            if layout.holds(layout.group_crc, row):
                view.groups[row[0]] = row
            else:
                view.unreadable.add(row[0])
    view.groups = dict(sorted(view.groups.items()))
    view.unreadable -= view.groups.keys()


def read_notes(connection: sqlite3.Connection, group: int) -> dict[int, bytes | None]:
    """Block notes of a group by index, from both copies; None marks a block that is being dropped."""
    notes: dict[int, bytes | None] = {}
    bounds = (row_id(group, 0), row_id(group, INDEX_MASK))
    for table in reversed(layout.copies("blocks")):
        for row in connection.execute(f"SELECT * FROM {table} WHERE id >= ? AND id <= ?", bounds):
            if layout.holds(layout.block_crc, row):
                notes[row[0] & INDEX_MASK] = row[2]
    return dict(sorted(notes.items()))


def _look_at_group(connection: sqlite3.Connection, view: View, row: GroupRow, witnessed: int, database: Path) -> None:
    group, snapshot_index = row[0], row[5]
    blocks = [index for index, note in read_notes(connection, group).items() if note is not None]
    view.blocks[group] = blocks
    view.last[group] = last = _last_index(connection, view, group, max(snapshot_index, witnessed))
    walk_blocks = database.stat().st_size <= _WALK_BYTES
    first = 0 if walk_blocks else snapshot_index + 1
    bounds = (row_id(group, first), row_id(group, last))
    present = (
        found & INDEX_MASK
        for (found,) in connection.execute("SELECT id FROM entries WHERE id >= ? AND id <= ? ORDER BY id", bounds)
    )
    log = range(0) if row[2].startswith(layout.STAGED_MARK) else range(snapshot_index + 1, last + 1)
    expected = [*(blocks if walk_blocks else ()), *log]
    missing = list(_absent(expected, present))
    if missing:
        view.missing[group] = missing


def _absent(expected: Iterable[int], present: Iterator[int]) -> Iterator[int]:
    """Members of ascending `expected` that are not in ascending `present`."""
    at = next(present, -1)
    for index in expected:
        while -1 < at < index:
            at = next(present, -1)
        if at != index:
            yield index


def _last_index(connection: sqlite3.Connection, view: View, group: int, trusted: int) -> int:
    """Highest index of a group's log. A row beyond `trusted` counts only if its checksum fits."""
    bounds = (row_id(group, trusted + 1), row_id(group, INDEX_MASK))
    query = "SELECT id, crc, term, kind, messages, total, data FROM entries WHERE id >= ? AND id <= ? ORDER BY id DESC"
    for row in connection.execute(query, bounds):
        if layout.holds(layout.entry_crc, row):
            return row[0] & INDEX_MASK
        view.bogus.append(row[0])
    newest = connection.execute(
        "SELECT max(id) FROM entries WHERE id >= ? AND id <= ?", (row_id(group, 0), row_id(group, trusted))
    ).fetchone()[0]
    return max((newest or 0) & INDEX_MASK, view.groups[group][5])


def _valid_frames(database: Path) -> int:
    """How many WAL frames SQLite recovered, from its index file (fileformat 2, walindex header: mxFrame)."""
    index = database.with_name(database.name + "-shm")
    if not Wal(database.with_name(database.name + "-wal")).frames or not index.exists():
        return 0
    with index.open("rb") as file:
        header = file.read(_MAX_FRAME_OFFSET + 4)
    if len(header) < _MAX_FRAME_OFFSET + 4:
        raise Corrupt(f"{index} is cut short")
    return int.from_bytes(header[_MAX_FRAME_OFFSET:], "little")


def _quote(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
