"""What is on disk: tables, row ids, checksums. Names and column orders here are the format: change them with
`FORMAT`.

Owns the SQL text and the checksum of every kind of row. It never opens a file.

One database holds all groups of a node. The row id of an entry is `group << 40 | index`, so one B-tree serves
all logs, a group's log is one key range, and an append of all groups is one statement. The payload is the
last column: reading the columns before it does not visit its overflow pages.

Small tables that must survive a damaged page (`groups`, `snapshots`, `blocks`, `meta`) exist twice. The
second copy lives in another B-tree, hence on other pages, and is written in the same transaction.

Every row carries `crc`, a CRC-32 over a tag of its table, its id and all its columns. The tag makes rows of
one table unmistakable for rows of another when pages are salvaged one by one (`salvage.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from struct import error as StructError
from typing import Any, Final
from zlib import crc32

FORMAT: Final = 2
"""Version of everything below, and of what stands in the entries. A directory with a higher number is refused
(`NewerVersion`), one with a lower number is given this one when it is opened.

1: as below. 2: message batches may tell of those before them (`jetstream/batch.py`)."""

APPLICATION_ID: Final = 0x4E494D53
"""`PRAGMA application_id` of our databases: "NIMS"."""

PAGE_SIZE: Final = 8192
"""Measured: 4 to 64 KiB pages commit 64 KiB and 1 MiB blocks within noise of each other; 8 KiB halves the
page count of the default and still writes only 8 KiB for a single small message."""

STAGED_MARK: Final = "^"
"""Before the name of a group whose blocks are still being fetched, in any order: its log has gaps, which are no
damage."""

INDEX_BITS: Final = 40
INDEX_MASK: Final = (1 << INDEX_BITS) - 1
MAX_GROUP: Final = (1 << (63 - INDEX_BITS)) - 1

MIRRORED: Final = ("groups", "snapshots", "blocks", "meta")
"""Tables with a twin `<name>_mirror`."""

TABLES: Final = {
    "entries": "id INTEGER PRIMARY KEY, crc INTEGER, term INTEGER, kind INTEGER, messages INTEGER,"
    " total INTEGER, data BLOB",
    "groups": "id INTEGER PRIMARY KEY, crc INTEGER, name TEXT, term INTEGER, vote TEXT, snapshot_index INTEGER,"
    " snapshot_term INTEGER, snapshot_total INTEGER, members BLOB",
    "snapshots": "id INTEGER PRIMARY KEY, crc INTEGER, snapshot_index INTEGER, state BLOB",
    "blocks": "id INTEGER PRIMARY KEY, crc INTEGER, note BLOB",
    "meta": "id INTEGER PRIMARY KEY, crc INTEGER, format INTEGER, instance TEXT, node TEXT",
}
"""Column lists; the order is part of the format (rows are salvaged by position)."""


def copies(table: str) -> tuple[str, ...]:
    """The names under which a table exists."""
    return (table, f"{table}_mirror") if table in MIRRORED else (table,)


SCHEMA: Final = tuple(f"CREATE TABLE {name} ({columns})" for table, columns in TABLES.items() for name in copies(table))

ROOTS: Final = {name: 3 + position for position, name in enumerate(name for table in TABLES for name in copies(table))}
"""Root page of each table: tables are created in one order in an empty file, whose page 2 maps pointers."""

UPSERTS: Final = {
    name: f"INSERT OR REPLACE INTO {name} VALUES ({', '.join('?' * len(columns.split(',')))})"
    for table, columns in TABLES.items()
    for name in copies(table)
}
"""Table name -> statement that writes one complete row."""

LOST: Final = -1
"""`crc` of a placeholder: the entry is known to be lost. No CRC-32 is negative."""

EntryRow = tuple[int, int, int, int, int, int, bytes]
"""id, crc, term, kind, messages, total (messages of the group's log up to and with this entry), data."""
GroupRow = tuple[int, int, str, int, str, int, int, int, bytes]
SnapshotRow = tuple[int, int, int, bytes]
BlockRow = tuple[int, int, bytes | None]
"""id, crc, note; a note of None marks a dropped block whose row is not deleted yet."""
MetaRow = tuple[int, int, int, str, str]

_ENTRY: Final = Struct("<cqqqqq").pack
_GROUP: Final = Struct("<cqqqqqHH").pack
_SNAPSHOT: Final = Struct("<cqq").pack
_BLOCK: Final = Struct("<cq").pack
_META: Final = Struct("<cqqHH").pack


def row_id(group: int, index: int) -> int:
    """The id of an entry or block."""
    return group << INDEX_BITS | index


def entry_crc(row: int, term: int, kind: int, messages: int, total: int, data: bytes) -> int:
    """Checksum of a row of `entries`."""
    return crc32(data, crc32(_ENTRY(b"e", row, term, kind, messages, total)))


def group_row(
    group: int, name: str, term: int, vote: str, index: int, index_term: int, total: int, members: bytes
) -> GroupRow:
    """A complete row of `groups` with its checksum."""
    crc = group_crc(group, name, term, vote, index, index_term, total, members)
    return group, crc, name, term, vote, index, index_term, total, members


def group_crc(
    group: int, name: str, term: int, vote: str, index: int, index_term: int, total: int, members: bytes
) -> int:
    """Checksum of a row of `groups`."""
    name_raw, vote_raw = name.encode(), vote.encode()
    head = _GROUP(b"g", group, term, index, index_term, total, len(name_raw), len(vote_raw))
    return crc32(members, crc32(head + name_raw + vote_raw))


def snapshot_row(group: int, index: int, state: bytes) -> SnapshotRow:
    """A complete row of `snapshots` with its checksum."""
    return group, snapshot_crc(group, index, state), index, state


def snapshot_crc(group: int, index: int, state: bytes) -> int:
    """Checksum of a row of `snapshots`."""
    return crc32(state, crc32(_SNAPSHOT(b"s", group, index)))


def block_row(row: int, note: bytes | None) -> BlockRow:
    """A complete row of `blocks` with its checksum."""
    return row, block_crc(row, note), note


def block_crc(row: int, note: bytes | None) -> int:
    """Checksum of a row of `blocks`."""
    return crc32(_BLOCK(b"d", row)) if note is None else crc32(note, crc32(_BLOCK(b"b", row)))


def meta_row(instance: str, node: str) -> MetaRow:
    """The one row of `meta`: format, instance id, node name."""
    return 1, meta_crc(1, FORMAT, instance, node), FORMAT, instance, node


def meta_crc(row: int, version: int, instance: str, node: str) -> int:
    """Checksum of a row of `meta`."""
    instance_raw, node_raw = instance.encode(), node.encode()
    return crc32(_META(b"m", row, version, len(instance_raw), len(node_raw)) + instance_raw + node_raw)


def holds(check: Callable[..., int], row: Sequence[Any]) -> bool:
    """Whether a row (id, crc, columns…) is as it was written. A damaged row may hold values of any type."""
    try:
        return check(row[0], *row[2:]) == row[1]
    except (TypeError, AttributeError, ValueError, OverflowError, StructError):
        return False


CHECKS: Final[dict[str, Callable[..., int]]] = {
    "groups": group_crc,
    "snapshots": snapshot_crc,
    "blocks": block_crc,
    "meta": meta_crc,
}
"""Table name -> checksum of (id, columns after crc)."""
