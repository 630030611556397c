"""Reads SQLite's file format without SQLite, to get rows out of a database that SQLite gives up on.

Owns page images (main file overlaid with WAL frames) and the decoding of table rows. It never writes.
Everything it returns is unverified: callers believe a row only when its own checksum fits.

Format: https://www.sqlite.org/fileformat2.html sections 1.6 (b-tree pages), 2.1 (records), 4 (WAL).
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Any, Final, TypeAlias

from nimsnats.storage.layout import PAGE_SIZE

_WAL_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_FRAME: Final = Struct(">IIII")
_TABLE_LEAF: Final = 0x0D
_TABLE_INTERIOR: Final = 0x05
_MAX_COLUMNS: Final = 16
_MAX_LOCAL: Final = PAGE_SIZE - 35
_MIN_LOCAL: Final = (PAGE_SIZE - 12) * 32 // 255 - 23
_MAX_DEPTH: Final = 16
_INT_SIZES: Final = (0, 1, 2, 3, 4, 6, 8)

Row: TypeAlias = tuple[int, list[Any]]
"""Row id and column values."""


class Malformed(Exception):
    """These bytes are no page, cell or record."""


class Wal:
    """The frames of a WAL file that belong to its current generation, whether or not SQLite still believes in
    them."""

    def __init__(self, path: Path) -> None:
        self.content = _map(path)
        self.frames: list[tuple[int, int, int]] = []
        """(frame number from 0, page number, database size after commit or 0)."""
        count = (len(self.content) - _WAL_HEADER) // (_FRAME_HEADER + PAGE_SIZE)
        headers = [_FRAME.unpack_from(self.content, self._offset(number)) for number in range(max(count, 0))]
        if not headers:
            return
        salts = self._salts(headers)
        if salts == (0, 0):  # zeros that nothing was written over (`runway.py`)
            return
        for number, (page, size, salt1, salt2) in enumerate(headers):
            if (salt1, salt2) == salts:
                self.frames.append((number, page, size))

    def _salts(self, headers: list[tuple[int, int, int, int]]) -> tuple[int, int]:
        """The generation's salts: the header's when its checksum fits, else what the first frames agree
        on."""
        head = bytes(self.content[:_WAL_HEADER])
        if wal_checksum(head[:24]) == (int.from_bytes(head[24:28], "big"), int.from_bytes(head[28:32], "big")):
            return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        votes = [(salt1, salt2) for _, _, salt1, salt2 in headers[:3]]
        return max(votes, key=votes.count)

    @staticmethod
    def _offset(number: int) -> int:
        return _WAL_HEADER + number * (_FRAME_HEADER + PAGE_SIZE)

    def page(self, number: int) -> bytes:
        """The page image in frame `number`."""
        start = self._offset(number) + _FRAME_HEADER
        return self.content[start : start + PAGE_SIZE]

    def committed(self) -> int:
        """One past the last frame that ends a transaction."""
        return max((number + 1 for number, _, size in self.frames if size), default=0)

    def stray(self, valid: int) -> list[tuple[int, int, int]]:
        """Frames of this generation behind the first `valid` ones."""
        return [frame for frame in self.frames if frame[0] >= valid]


def wal_checksum(data: bytes) -> tuple[int, int]:
    """SQLite's WAL checksum of the WAL header (little-endian words, as on our platforms)."""
    first = second = 0
    for position in range(0, len(data), 8):
        first = (first + int.from_bytes(data[position : position + 4], "little") + second) & 0xFFFFFFFF
        second = (second + int.from_bytes(data[position + 4 : position + 8], "little") + first) & 0xFFFFFFFF
    return first, second


class PageImage:
    """The database as of any moment: the main file, overlaid with the WAL frames up to a given one."""

    def __init__(self, database: Path, wal: Wal | None) -> None:
        self._main = _map(database)
        self.wal = wal
        self._frames: dict[int, list[int]] = {}
        if wal is not None:
            for number, page, _ in wal.frames:
                self._frames.setdefault(page, []).append(number)
        self.count = max(len(self._main) // PAGE_SIZE, max(self._frames, default=0))

    def page(self, page: int, before: int = 1 << 62) -> bytes:
        """Page number `page` (from 1) as written by the newest frame below `before`, or by the main file."""
        versions = self._frames.get(page)
        if versions is not None and self.wal is not None:
            at = bisect_right(versions, before - 1)
            if at:
                return self.wal.page(versions[at - 1])
        image = self._main[(page - 1) * PAGE_SIZE : page * PAGE_SIZE] if page > 0 else b""
        if len(image) < PAGE_SIZE:
            raise Malformed(f"page {page} is beyond the end of the file")
        return image

    def main_leaves(self) -> Iterator[bytes]:
        """Pages of the main file that look like table leaves."""
        for start in range(0, len(self._main) - PAGE_SIZE + 1, PAGE_SIZE):
            if self._main[start] == _TABLE_LEAF:
                yield self._main[start : start + PAGE_SIZE]

    def rows(self, image: bytes, before: int = 1 << 62, columns: int = 0) -> Iterator[Row]:
        """The decodable rows of a leaf page; with `columns`, only those that have so many columns."""
        if image[0] != _TABLE_LEAF:
            return
        cells = int.from_bytes(image[3:5], "big")
        for slot in range(8, min(8 + 2 * cells, PAGE_SIZE - 1), 2):
            with suppress(Malformed, IndexError, ValueError):  # a bad cell does not spoil its neighbours
                row = self._cell(image, int.from_bytes(image[slot : slot + 2], "big"), before, columns)
                if row is not None:
                    yield row

    def _cell(self, image: bytes, at: int, before: int, columns: int) -> Row | None:
        size, at = _varint(image, at)
        row, at = _varint(image, at)
        if size <= _MAX_LOCAL:
            return _record(row, image[at : at + size], columns)
        local = _MIN_LOCAL + (size - _MIN_LOCAL) % (PAGE_SIZE - 4)
        if local > _MAX_LOCAL:
            local = _MIN_LOCAL
        if columns and _column_count(image, at) != columns:
            return None
        parts = [image[at : at + local]]
        following = int.from_bytes(image[at + local : at + local + 4], "big")
        left = size - local
        while left > 0:
            overflow = self.page(following, before)
            parts.append(overflow[4 : 4 + left])
            following = int.from_bytes(overflow[:4], "big")
            left -= PAGE_SIZE - 4
        return _record(row, b"".join(parts), columns)

    def tree(self, root: int, broken: list[str]) -> Iterator[Row]:
        """Rows reachable from a table's root page; what cannot be followed is noted in `broken`."""
        seen: set[int] = set()
        todo = [(root, 0)]
        while todo:
            number, depth = todo.pop()
            if number in seen or depth > _MAX_DEPTH:
                broken.append(f"page {number} is reached twice")
                continue
            seen.add(number)
            try:
                image = self.page(number)
            except Malformed as error:
                broken.append(str(error))
                continue
            cells = int.from_bytes(image[3:5], "big")
            if image[0] == _TABLE_LEAF:
                found = list(self.rows(image))
                if len(found) != cells:
                    broken.append(f"page {number} has unreadable rows")
                yield from found
            elif image[0] == _TABLE_INTERIOR and 12 + 2 * cells <= PAGE_SIZE:
                slots = [int.from_bytes(image[at : at + 2], "big") for at in range(12, 12 + 2 * cells, 2)]
                todo.append((int.from_bytes(image[8:12], "big"), depth + 1))
                todo.extend((int.from_bytes(image[at : at + 4], "big"), depth + 1) for at in slots)
            else:
                broken.append(f"page {number} is no table page")


def _map(path: Path) -> bytes:
    """The file's bytes, mapped when there are many."""
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                return b""
            mapped: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # slices are bytes
            return mapped
    except FileNotFoundError:
        return b""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | data[at], at + 1


def _column_count(data: bytes, at: int) -> int:
    """Columns of the record whose header begins at `at`."""
    size, position = _varint(data, at)
    end, count = at + size, 0
    while position < end and count <= _MAX_COLUMNS:
        _, position = _varint(data, position)
        count += 1
    return count


def _record(row: int, data: bytes, columns: int) -> Row | None:
    size, at = _varint(data, 0)
    types: list[int] = []
    while at < size:
        kind, at = _varint(data, at)
        types.append(kind)
        if len(types) > _MAX_COLUMNS:
            raise Malformed("no record of ours")
    if columns and len(types) != columns:
        return None
    values: list[Any] = []
    for kind in types:
        if kind >= 12:
            end = at + (kind - 12) // 2
            part = data[at:end]
            if end > len(data):
                raise Malformed("record is cut short")
            values.append(part.decode() if kind % 2 else part)
            at = end
        elif kind == 0:
            values.append(None)
        elif kind <= 6:
            values.append(int.from_bytes(data[at : at + _INT_SIZES[kind]], "big", signed=True))
            at += _INT_SIZES[kind]
        elif kind in {8, 9}:
            values.append(kind - 8)
        else:
            raise Malformed("no record of ours")
    return row, values
