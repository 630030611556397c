"""Deletes what nobody needs any more, in bites small enough not to hold up a commit.

Owns the queue of blocks and groups to delete. Freeing a row makes SQLite visit each of its overflow pages, so
the blocks of a purged stream can be gigabytes of work: they are marked in the transaction that drops them (a
block row without a note, a group row without a name), deleted while the writer is idle, and found again by
the marks after a restart.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Final

from nimsnats.storage.batch import REAP, Batch
from nimsnats.storage.layout import INDEX_MASK, row_id

_BITE: Final = 32
"""Rows deleted in one commit."""


class Reaper:
    """Blocks and groups whose deletion is under way."""

    __slots__ = ("_blocks", "_groups")

    def __init__(self) -> None:
        self._blocks: deque[int] = deque()
        self._groups: deque[int] = deque()

    def __bool__(self) -> bool:
        return bool(self._blocks or self._groups)

    def add_block(self, row: int) -> None:
        """A dropped block, already marked."""
        self._blocks.append(row)

    def add_group(self, group: int) -> None:
        """All entries of a removed group, already marked."""
        self._groups.append(group)

    def bite(self, batch: Batch, newest_group: int) -> None:
        """Queue the next deletions. The tombstone of `newest_group` stays, so that its id is not used
        again."""
        if self._blocks:
            rows = [self._blocks.popleft() for _ in range(min(_BITE, len(self._blocks)))]
            for row in rows:
                batch.add("DELETE FROM entries WHERE id = ?", (row,))
                batch.add("DELETE FROM blocks WHERE id = ? AND note IS NULL", (row,))
                batch.add("DELETE FROM blocks_mirror WHERE id = ? AND note IS NULL", (row,))
            batch.done.append(partial(self._blocks_bitten, rows))
        elif self._groups:
            group = self._groups.popleft()
            tally: list[int] = []
            batch.add(REAP, (row_id(group, 0), row_id(group, INDEX_MASK), _BITE, tally))
            if group != newest_group:
                for suffix in ("", "_mirror"):
                    batch.add(
                        f"DELETE FROM groups{suffix} WHERE id = ? AND NOT EXISTS "
                        "(SELECT 1 FROM entries WHERE id >= ? AND id <= ?)",
                        (group, row_id(group, 0), row_id(group, INDEX_MASK)),
                    )
            batch.done.append(partial(self._group_bitten, group, tally))

    def _blocks_bitten(self, rows: list[int], error: Exception | None) -> None:
        if error is not None:
            self._blocks.extend(rows)

    def _group_bitten(self, group: int, tally: list[int], error: Exception | None) -> None:
        if error is not None or tally[0] == _BITE:
            self._groups.append(group)
