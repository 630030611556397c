"""A data directory read without changing it: what `nimsnats verify` and `export` see of a node that does not run.

Owns the private view of the database (its file by another link, its WAL copied, because SQLite writes beside what it
reads) and the checks of every stored row. A directory in use is refused: its WAL changes while one reads. What the
rows mean is the business of whoever asks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from nimsnats.files import open_regular
from nimsnats.storage import layout
from nimsnats.storage.directory import DATABASE, LOCK, Identity, peek
from nimsnats.storage.errors import Corrupt, Foreign, InUse, NewerVersion, Unwritable
from nimsnats.storage.inspection import View, look, read_notes
from nimsnats.storage.interface import StoredEntry, StoredGroup
from nimsnats.storage.layout import INDEX_MASK, row_id
from nimsnats.storage.witness import Testimony, read_testimony

_SELECT: Final = "SELECT id, crc, term, kind, messages, total, data FROM entries"


@contextmanager
def auditing(path: Path) -> Generator[Audit]:
    """Open the data directory of a node that does not run. Raises StorageError: InUse, Foreign, Corrupt and others."""
    if not (path / DATABASE).exists():
        raise Unwritable(f"{path} is no data directory: there is no {DATABASE} in it")
    peek(path)
    lock = _lock(path)
    try:
        with _private(path) as database:
            testimony = read_testimony(path)
            try:
                view = look(database, testimony)
                connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, isolation_level=None)
            except sqlite3.DatabaseError as error:
                raise Corrupt(f"{path / DATABASE}: {error}") from error
            except (Foreign, NewerVersion, Corrupt) as error:
                raise type(error)(str(error).replace(str(database), str(path / DATABASE))) from None
            try:
                yield Audit(connection, view, testimony)
            except sqlite3.DatabaseError as error:
                raise Corrupt(f"{path / DATABASE}: {error}") from error
            finally:
                connection.close()
    finally:
        if lock >= 0:
            os.close(lock)


def _lock(path: Path) -> int:
    """Keep nodes out while we read; -1 where there is no lock file. Raises InUse."""
    try:
        handle = open_regular(path / LOCK, os.O_RDONLY, follow=False)
    except OSError:
        return -1
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise InUse(f"data directory {path} is in use by another process (pid {holder}): stop it first") from None
    return handle


@contextmanager
def _private(path: Path) -> Generator[Path]:
    """The database under a name of our own: beside the directory by a hard link, or where that cannot be, as a copy."""
    source = path / DATABASE
    wal = source.with_name(source.name + "-wal")
    reason = "there is no directory for temporary files"
    for parent in (path.resolve().parent, None):
        try:
            room = Path(tempfile.mkdtemp(prefix=".nimsnats-audit-", dir=parent))
        except OSError:
            continue
        try:
            target = room / DATABASE
            try:
                _bring(source, target)
                if wal.exists():
                    shutil.copyfile(wal, target.with_name(wal.name))
            except OSError as error:
                reason = f"{path} cannot be copied to {room.parent}: {error.strerror or error}"
                continue
            yield target
            return
        finally:
            shutil.rmtree(room, ignore_errors=True)
    raise Unwritable(f"{reason}; name one with room for its write-ahead log in TMPDIR")


def _bring(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class Audit:
    """An open data directory. Everything raises sqlite3.DatabaseError where SQLite cannot read a page."""

    def __init__(self, connection: sqlite3.Connection, view: View, testimony: Testimony) -> None:
        self._connection = connection
        self._view = view
        self._testimony = testimony

    def identity(self) -> Identity | None:
        """Whose database this is; None when both copies are damaged."""
        for table in layout.copies("meta"):
            for row in self._connection.execute(f"SELECT * FROM {table}"):
                if layout.holds(layout.meta_crc, row):
                    return Identity(row[3], row[4])
        return None

    def damage(self) -> list[str]:
        """Everything that is not as it was written, one line each."""
        found: list[str] = []
        for group in sorted(self._view.unreadable):
            found.append(f"group {group}: its row is damaged in both copies")
        for group, indexes in self._view.missing.items():
            found.append(f"group {self._name(group)}: {len(indexes)} entries are missing, the first is {indexes[0]}")
        for group, seen in self._testimony.groups.items():
            last = self._view.last.get(group)
            if last is not None and last < seen.last:
                found.append(f"group {self._name(group)}: acknowledged up to entry {seen.last}, stored up to {last}")
        for table, check in layout.CHECKS.items():
            for name in layout.copies(table):
                rows = self._connection.execute(f"SELECT * FROM {name}")
                bad = [row[0] for row in rows if not layout.holds(check, row)]
                found += [f"table {name}: row {row} is damaged" for row in bad]
        return found + self._damaged_entries()

    def _damaged_entries(self) -> list[str]:
        found: list[str] = []
        for row in self._connection.execute(f"{_SELECT} ORDER BY id"):
            if row[1] != layout.LOST and not layout.holds(layout.entry_crc, row):
                group, index = row[0] >> layout.INDEX_BITS, row[0] & INDEX_MASK
                found.append(f"group {self._name(group)}: entry {index} is damaged")
        return found

    def _name(self, group: int) -> str:
        row = self._view.groups.get(group)
        return row[2] if row is not None and row[2] else str(group)

    def groups(self) -> list[StoredGroup]:
        """Every living group with its snapshot and its block notes."""
        return [self._group(row) for row in self._view.groups.values() if row[2]]

    def _group(self, row: layout.GroupRow) -> StoredGroup:
        group = StoredGroup(row[0], row[2], row[3], row[4], *row[5:])
        notes = read_notes(self._connection, group.id)
        group.blocks = [(index, note) for index, note in notes.items() if note is not None]
        for table in layout.copies("snapshots"):
            for found in self._connection.execute(f"SELECT * FROM {table} WHERE id = ?", (group.id,)):
                if found[2] == group.snapshot_index and layout.holds(layout.snapshot_crc, found):
                    group.state = found[3]
        if group.snapshot_index and group.state is None:
            group.damage.append("both copies of the snapshot are damaged")
        group.last = self._view.last.get(group.id, 0)
        return group

    def log(self, group: StoredGroup) -> Iterator[StoredEntry]:
        """The entries behind a group's snapshot, in order."""
        bounds = (row_id(group.id, group.snapshot_index + 1), row_id(group.id, max(group.last, group.snapshot_index)))
        for row in self._connection.execute(f"{_SELECT} WHERE id >= ? AND id <= ? ORDER BY id", bounds):
            index = row[0] & INDEX_MASK
            if layout.holds(layout.entry_crc, row):
                _, _, term, kind, messages, total, data = row
                yield StoredEntry(index, term, kind, messages, total, data)
            else:
                yield StoredEntry(index, 0, 0, 0, 0, None, row[1] == layout.LOST)

    def block(self, group: StoredGroup, index: int) -> bytes | None:
        """The bytes of a block; None when they are damaged or missing."""
        rows: list[Any] = self._connection.execute(f"{_SELECT} WHERE id = ?", (row_id(group.id, index),)).fetchall()
        return next((row[6] for row in rows if layout.holds(layout.entry_crc, row)), None)
