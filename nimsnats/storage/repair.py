"""Gets back what can be got back from a damaged database, and writes down what cannot.

Owns the repairs at start. Two cases:

- The structure is sound but rows are missing (a torn or flipped WAL frame hid all later ones; a damaged page
  hid a subtree). The rows are looked for on every page image there is and put back where they belong.
- SQLite cannot read the structure. All rows with fitting checksums are copied into a new file, and the
  damaged one is set aside as `nimsnats.db.damaged-<time>`.

A row that stays lost gets a placeholder: a row whose crc is `LOST`, so that its index is never used again,
the loss is told to the state machine at every start until a snapshot has absorbed it, and it is not searched
for each time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nimsnats.files import open_regular
from nimsnats.storage import layout
from nimsnats.storage.directory import Directory, sync_directory
from nimsnats.storage.errors import Corrupt, Unwritable
from nimsnats.storage.inspection import View
from nimsnats.storage.layout import INDEX_BITS, INDEX_MASK, LOST, EntryRow, GroupRow, row_id
from nimsnats.storage.pages import PageImage, Row, Wal
from nimsnats.storage.witness import Testimony

SALVAGE_SUFFIX: Final = ".salvage"
_COMMIT_ROWS: Final = 256


@dataclass(slots=True)
class Loss:
    """What a group has lost for good: messages by log index, and indexes of blocks."""

    entries: dict[int, int] = field(default_factory=dict[int, int])
    blocks: list[int] = field(default_factory=list[int])


Wanted = Callable[[int], bool]


def wanted_rows(groups: dict[int, GroupRow], live: set[int]) -> Wanted:
    """Whether a row id belongs to the log of a named group or is one of the `live` blocks."""

    def wanted(row: int) -> bool:
        found = groups.get(row >> INDEX_BITS)
        return found is not None and bool(found[2]) and (row & INDEX_MASK > found[5] or row in live)

    return wanted


def harvest(image: PageImage, wanted: Wanted, main: bool) -> Iterator[EntryRow]:
    """Whole entry rows from all WAL frames, newest first, and with `main` from the main file's leaves too."""
    columns = len(layout.TABLES["entries"].split(","))
    wal = image.wal
    for number, _, _ in reversed(wal.frames if wal is not None else []):
        assert wal is not None
        for found in image.rows(wal.page(number), number + 1, columns):
            yield from _whole_entry(found, wanted)
    if main:
        for leaf in image.main_leaves():
            for found in image.rows(leaf, columns=columns):
                yield from _whole_entry(found, wanted)


def _whole_entry(found: Row, wanted: Wanted) -> Iterator[EntryRow]:
    row, values = found
    entry: Any = (row, *values[1:])
    if wanted(row) and layout.holds(layout.entry_crc, entry):
        yield entry


def harvest_groups(image: PageImage, known: dict[int, GroupRow]) -> dict[int, GroupRow]:
    """Group rows from the WAL that say more than `known`: groups it does not have, and higher terms."""
    columns = len(layout.TABLES["groups"].split(","))
    better: dict[int, GroupRow] = {}
    wal = image.wal
    for number, _, _ in reversed(wal.frames if wal is not None else []):
        assert wal is not None
        for row, values in image.rows(wal.page(number), number + 1, columns):
            group = _whole_group(row, values)
            if group is None or row in better:
                continue
            old = known.get(row)
            if old is None:
                better[row] = layout.group_row(row, group[2], group[3], group[4], 0, 0, 0, group[8])
            elif old[2] and group[2] == old[2] and group[3] > old[3]:
                better[row] = layout.group_row(row, old[2], group[3], group[4], *old[5:])
    return better


def _whole_group(row: int, values: list[Any]) -> GroupRow | None:
    found: Any = (row, *values[1:])
    return found if layout.holds(layout.group_crc, found) else None


def put_back(connection: sqlite3.Connection, rows: Iterator[EntryRow] | list[EntryRow]) -> int:
    """Insert rows that are not there; returns how many were new."""
    before = connection.total_changes
    statement = layout.UPSERTS["entries"].replace("OR REPLACE", "OR IGNORE")
    connection.execute("BEGIN IMMEDIATE")
    for count, row in enumerate(rows, 1):
        connection.execute(statement, row)
        if count % _COMMIT_ROWS == 0:
            connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
    connection.execute("COMMIT")
    return connection.total_changes - before


def write_groups(connection: sqlite3.Connection, groups: dict[int, GroupRow]) -> None:
    """Store group rows in both copies."""
    for table in layout.copies("groups"):
        connection.executemany(layout.UPSERTS[table], groups.values())


def settle(connection: sqlite3.Connection, view: View, testimony: Testimony) -> dict[int, Loss]:
    """Delete bogus rows, write placeholders for what stays missing, and say per group what that is."""
    losses: dict[int, Loss] = {}
    connection.execute("BEGIN IMMEDIATE")
    for group, seen in testimony.groups.items():
        if group not in view.groups:
            # With a gap in what the witness knows there must have been a snapshot, and it is lost with its
            # row.
            known_from_start = len(seen.entries) == seen.last
            snapshot_index = 0 if known_from_start else seen.last
            view.groups[group] = layout.group_row(group, seen.name, seen.term, "?", snapshot_index, seen.term, 0, b"")
            view.last[group] = snapshot_index
            write_groups(connection, {group: view.groups[group]})
    connection.executemany("DELETE FROM entries WHERE id = ?", [(row,) for row in view.bogus])
    for group, row in view.groups.items():
        if not row[2] or row[2].startswith(layout.STAGED_MARK):
            continue
        seen = testimony.groups.get(group)
        known = seen.entries if seen else {}
        indexes = list(view.missing.get(group, ()))
        if seen and seen.last > view.last[group]:
            indexes.extend(range(max(view.last[group], row[5]) + 1, seen.last + 1))
        for index in indexes:
            loss = losses.setdefault(group, Loss())
            if index > row[5]:
                loss.entries[index] = known.get(index, 0)
            else:
                loss.blocks.append(index)
            placeholder = (row_id(group, index), LOST, row[3], 0, known.get(index, 0), 0, b"")
            connection.execute(layout.UPSERTS["entries"], placeholder)
        if seen and seen.term > row[3]:
            # Whom this node voted for in that term is forgotten: a name nobody has keeps it from voting
            # twice.
            view.groups[group] = layout.group_row(group, row[2], seen.term, "?", *row[5:])
            write_groups(connection, {group: view.groups[group]})
    connection.execute("COMMIT")
    return losses


def rebuild(directory: Directory, stamp: str) -> Path:
    """Copy every whole row of an unreadable database into a new one and swap the two; returns where the
    damaged file is.

    Raises Corrupt when there is not even an identity to go by, Unwritable when the copy does not fit on the
    disk.
    """
    if directory.identity is None:
        raise Corrupt(f"{directory.database} is damaged and the identity file is lost: restore one of them")
    database = directory.database
    target = database.with_name(database.name + SALVAGE_SUFFIX)
    for suffix in ("", "-wal", "-shm", "-journal"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    image = PageImage(database, Wal(database.with_name(database.name + "-wal")))
    connection = begin(target)
    try:
        create(connection, directory.identity.instance, directory.identity.node)
        groups, live = _copy_small_tables(image, connection)
        put_back(connection, harvest(image, wanted_rows(groups, live), main=True))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (sqlite3.OperationalError, OSError) as error:
        raise Unwritable(
            f"{database} is damaged and cannot be salvaged: {error} (is there space for a copy?)"
        ) from error
    finally:
        connection.close()
    return swap(database, target, stamp)


def begin(database: Path) -> sqlite3.Connection:
    """A connection to a new, empty database that nobody else may read; SQLite gives the files beside it its mode.
    Raises OSError."""
    os.close(open_regular(database, os.O_RDWR | os.O_CREAT, follow=False))
    return sqlite3.connect(database, isolation_level=None)


def create(connection: sqlite3.Connection, instance: str, node: str) -> None:
    """Make an empty database of ours."""
    connection.execute(f"PRAGMA page_size = {layout.PAGE_SIZE}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {layout.APPLICATION_ID}")
    for statement in layout.SCHEMA:
        connection.execute(statement)
    for table in layout.copies("meta"):
        connection.execute(layout.UPSERTS[table], layout.meta_row(instance, node))
    connection.execute("COMMIT")


def swap(database: Path, target: Path, stamp: str) -> Path:
    """Set the damaged file aside and put the complete new one in its place; `resume_swap` finishes an
    interrupted one."""
    handle = os.open(target, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    aside = database.with_name(f"{database.name}.damaged-{stamp}")
    wal = database.with_name(database.name + "-wal")
    if wal.exists():
        wal.rename(aside.with_name(aside.name + "-wal"))
    database.with_name(database.name + "-shm").unlink(missing_ok=True)
    database.rename(aside)
    sync_directory(database.parent)
    target.rename(database)
    sync_directory(database.parent)
    return aside


def resume_swap(database: Path) -> None:
    """Finish or forget a rebuild that was interrupted: the copy is complete exactly when the original has
    been moved."""
    target = database.with_name(database.name + SALVAGE_SUFFIX)
    if target.exists() and not database.exists():
        target.rename(database)
        sync_directory(database.parent)


def _copy_small_tables(image: PageImage, connection: sqlite3.Connection) -> tuple[dict[int, GroupRow], set[int]]:
    """Copy groups, snapshots and block notes; returns the groups and the row ids of live blocks."""
    groups = {row[0]: row for row in _table(image, "groups")}
    blocks = {row[0]: row for row in _table(image, "blocks")}
    snapshots = {row[0]: row for row in _table(image, "snapshots")}
    for table, rows in (("groups", groups), ("blocks", blocks), ("snapshots", snapshots)):
        for name in layout.copies(table):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(layout.UPSERTS[name], rows.values())
            connection.execute("COMMIT")
    return groups, {row for row, values in blocks.items() if values[2] is not None}


def _table(image: PageImage, table: str) -> list[Any]:
    """Whole rows of a mirrored table. A copy whose tree is intact speaks for itself; two broken ones are
    united."""
    check, columns = layout.CHECKS[table], len(layout.TABLES[table].split(","))
    united: dict[int, Any] = {}
    for name in layout.copies(table):
        broken: list[str] = []
        rows: dict[int, Any] = {}
        for row, values in image.tree(layout.ROOTS[name], broken):
            found = (row, *values[1:])
            if len(values) == columns and layout.holds(check, found):
                rows[row] = found
            else:
                broken.append(f"row {row} fails its checksum")
        if not broken:
            return list(rows.values())
        united = {**rows, **united}
    return list(united.values())
