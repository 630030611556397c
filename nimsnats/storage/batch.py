"""What one commit writes: steps gathered on the loop, carried out by the writer's thread in a single
transaction.

Owns the batch and the SQLite connection that writes it. It knows SQL and nothing of groups or time.

Why `Writer.commit` does the writing: aiosqlite runs each call in the connection's thread and every call costs
two thread switches. SQLite releases the interpreter lock at each statement, and getting it back from a busy
loop may take a whole switch interval. So a batch is one call, and a batch of entries only, the common one, is
one statement in autocommit mode: insert, commit and fsync happen inside a single release of the lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Final, Protocol

from nimsnats.storage.layout import UPSERTS, EntryRow, entry_crc

INSERT_ENTRIES: Final = UPSERTS["entries"]
_ROWS_A_STATEMENT: Final = 32
_ROW: Final = "(?, ?, ?, ?, ?, ?, ?)"
_MANY: Final = tuple(
    "INSERT OR REPLACE INTO entries VALUES " + ", ".join([_ROW] * count) for count in range(_ROWS_A_STATEMENT + 1)
)

_DELETE_SOME: Final = "DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE id >= ? AND id <= ? LIMIT ?)"

REWRITE: Final = "REWRITE"
"""Pseudo statement: (id, data) replaces a block's bytes and keeps its other columns."""
REAP: Final = "REAP"
"""Pseudo statement: (low, high, limit, tally) deletes up to `limit` entries and appends their number to
`tally`."""


class Batch:
    """Writes that become durable together, and who wants to hear of it."""

    __slots__ = ("done", "entries", "groups", "messages", "size", "steps", "witness")

    def __init__(self) -> None:
        self.steps: list[tuple[str, list[Any]]] = []
        self.done: list[Callable[[Exception | None], None]] = []
        self.witness: list[bytes] = []
        self.groups: dict[int, Any] = {}
        self.entries = 0
        self.messages = 0
        self.size = 0

    def add(self, sql: str, row: tuple[Any, ...]) -> None:
        """Queue one execution of `sql`; neighbours with the same text are executed together."""
        steps = self.steps
        if steps and steps[-1][0] is sql:
            steps[-1][1].append(row)
        else:
            steps.append((sql, [row]))


class Disk(Protocol):
    """What stands between the writer and the device. Tests put in disks that are full, fail or are slow."""

    def commit(self, write: Callable[[], None]) -> None:
        """Carry out `write` (in the writer's thread); raise sqlite3.Error or a StorageError instead to make
        it fail."""
        ...


class RealDisk:
    """The disk of production: does as it is told."""

    def commit(self, write: Callable[[], None]) -> None:
        """Write."""
        write()


class Writer(sqlite3.Connection):
    """The only connection that writes. `stage` a batch, then `commit`, which returns when it is on disk."""

    disk: Disk
    staged: Batch | None = None

    def commit(self) -> None:
        """Write the staged batch in one transaction. On an error nothing of it is stored. Raises
        sqlite3.Error."""
        if self.staged is None:
            super().commit()
        else:
            self.disk.commit(self._write)

    def _write(self) -> None:
        batch, self.staged = self.staged, None
        assert batch is not None
        steps = batch.steps
        if len(steps) == 1 and steps[0][0] is INSERT_ENTRIES and len(steps[0][1]) <= _ROWS_A_STATEMENT:
            self._insert(steps[0][1])
            return
        self.execute("BEGIN IMMEDIATE")
        try:
            for sql, rows in steps:
                self._step(sql, rows)
            super().commit()
        except BaseException:
            if self.in_transaction:
                self.rollback()
            raise

    def _step(self, sql: str, rows: list[Any]) -> None:
        if sql is INSERT_ENTRIES:
            for start in range(0, len(rows), _ROWS_A_STATEMENT):
                self._insert(rows[start : start + _ROWS_A_STATEMENT])
        elif sql is REWRITE:
            for row, data in rows:
                self._rewrite(row, data)
        elif sql is REAP:
            for low, high, limit, tally in rows:
                tally.append(self.execute(_DELETE_SOME, (low, high, limit)).rowcount)
        else:
            self.executemany(sql, rows)

    def _insert(self, rows: list[EntryRow]) -> None:
        self.execute(_MANY[len(rows)], rows[0] if len(rows) == 1 else [value for row in rows for value in row])

    def _rewrite(self, row: int, data: bytes) -> None:
        columns = "SELECT term, kind, messages, total FROM entries WHERE id = ?"
        for term, kind, messages, total in self.execute(columns, (row,)).fetchall():
            crc = entry_crc(row, term, kind, messages, total, data)
            self.execute("UPDATE entries SET crc = ?, data = ? WHERE id = ?", (crc, data, row))
