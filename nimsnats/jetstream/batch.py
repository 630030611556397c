"""The batch: many messages in columns, as they are proposed, logged, and kept as a block on disk.

Owns the codec only. Everything is done per column with C built-ins (`b"".join`, `array`, `map(len, ...)`), because a
loop over messages would cost more than all the rest of a publish.

Layout, little endian: a fixed head, then the columns that the flags announce, then bytes.

    head      version u8, flags u8, rules u16, time u64 (ns), messages u32, bytes of subjects u32, bytes of headers u64
    subjects  the distinct subjects in order of appearance. Version 1: joined by LF, when none of them holds one, which
              is nearly always. Version 2: how many they are u32, the length of each u32, the subjects
    columns   subject number u32 each (unless SINGLE), header length u32 each (HEADERS), payload length u32 each
              (one for all if EVEN), distance from the first sequence u32 each (SPARSE), time u64 each (TIMES), the
              first sequence u64 (BASED), what is told of earlier batches as u32 and so many bytes (TELLING)
    bytes     headers, payloads

`rules` says which rules about headers were in force when it was published (`admission.py`): entries of a log that was
written by an earlier version are applied as they were then.

A batch carries no sequences when it is proposed: applying it assigns them. A block that was rewritten to leave out dead
messages is SPARSE: its sequences are in the block; a batch out of an archive is BASED, too. Integrity is the storage's
business (checksums); the decoder only promises that damaged bytes raise `BadBatch` and never read outside the block.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from struct import Struct
from typing import Final

VERSION: Final = 1
SIZED: Final = 2
"""The version of batches with a subject that holds LF."""
RULES: Final = 2
"""Those of this version; 0 are those before header values were bounded, 1 those before messages of atomic batches were
refused."""
MAX_MESSAGES: Final = 1 << 20
"""In one batch; bounds what a damaged count can make the decoder allocate."""
SINGLE: Final = 1
HEADERS: Final = 2
EVEN: Final = 4
SPARSE: Final = 8
TIMES: Final = 16
EXPIRE: Final = 32
"""Expire what is due at the batch's time before storing; the messages are delete markers, kept where still apt."""
BASED: Final = 64
TELLING: Final = 128
"""It says what became of the batches before it (`outcomes.py`). Only batches of single copies do."""

_HEAD: Final = Struct("<BBHQIIQ")
_TIME: Final = Struct("<Q")
_TIME_AT: Final = 4
_SWAP: Final = sys.byteorder == "big"


class BadBatch(ValueError):
    """Bytes that are no batch."""


class Batch:
    """Columns of one batch; `headers` is None when no message has any. Lists are shared, never copied or changed."""

    __slots__ = (
        "_body",
        "_payloads",
        "_start",
        "_subjects",
        "base",
        "expire",
        "headers",
        "numbers",
        "offsets",
        "rules",
        "sizes",
        "table",
        "time",
        "times",
        "told",
    )

    def __init__(
        self,
        time: int,
        subjects: Sequence[bytes] | None,
        payloads: Sequence[bytes] | None,
        headers: Sequence[bytes] | None = None,
        *,
        expire: bool = False,
    ) -> None:
        self.time = time
        self.headers = headers
        self.expire = expire
        self.rules = RULES
        self._subjects = subjects
        self.table: list[bytes] = []
        """The distinct subjects."""
        self.numbers: array[int] | None = None
        """Each message's subject as a position in `table`; None when there is only one."""
        if subjects is not None:
            self.table = list(dict.fromkeys(subjects))
            if len(self.table) > 1:
                number = dict(zip(self.table, range(len(self.table)), strict=True))
                self.numbers = array("I", map(number.__getitem__, subjects))
        self.offsets: array[int] | None = None
        """SPARSE blocks: distance of each message from the block's first sequence."""
        self.base = 0
        """Out of an archive: the first sequence, from which `offsets` count; 0 otherwise."""
        self.times: array[int] | None = None
        """Merged blocks: each message's own time."""
        self.told = b""
        """What the batch says about those before it; opaque here."""
        self.sizes: array[int] = array("I", map(len, payloads)) if payloads is not None else array("I")
        """Payload lengths."""
        self._payloads = payloads
        self._body = b""
        self._start = 0

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def subjects(self) -> Sequence[bytes]:
        """Subject of each message."""
        if self._subjects is None:
            numbers = self.numbers
            table = self.table
            self._subjects = table * len(self) if numbers is None else list(map(table.__getitem__, numbers))
        return self._subjects

    @property
    def payloads(self) -> Sequence[bytes]:
        """Payload of each message, cut out of the block on first use."""
        if self._payloads is None:
            ends = list(accumulate(self.sizes, initial=self._start))
            body = self._body
            self._payloads = [body[a:b] for a, b in pairwise(ends)]
            self._body = b""
        return self._payloads

    def encode(self) -> bytes:
        """The bytes to propose or to store."""
        count = len(self.sizes)
        version, table = _joined(self.table)
        flags = EXPIRE if self.expire else 0
        parts: list[bytes | array[int]] = [b"", table]
        if self.numbers is None:
            flags |= SINGLE
        else:
            parts.append(_column(self.numbers))
        header_bytes = b""
        if self.headers is not None:
            flags |= HEADERS
            parts.append(_column(array("I", map(len, self.headers))))
            header_bytes = b"".join(self.headers)
        sizes = self.sizes
        if sizes.count(sizes[0]) == count:
            flags |= EVEN
            sizes = sizes[:1]
        parts.append(_column(sizes))
        if self.offsets is not None:
            flags |= SPARSE
            parts.append(_column(self.offsets))
        if self.times is not None:
            flags |= TIMES
            parts.append(_column(self.times))
        if self.base:
            flags |= BASED
            parts.append(_column(array("Q", (self.base,))))
        if self.told:
            flags |= TELLING
            parts += (_column(array("I", (len(self.told),))), self.told)
        parts.append(header_bytes)
        parts[0] = _HEAD.pack(version, flags, self.rules, self.time, count, len(table), len(header_bytes))
        parts.extend(self.payloads)
        return b"".join(parts)

    def stamp(self, time: int, data: bytes) -> bytes:
        """Give a batch that was decoded from `data` another time; the bytes that say so."""
        self.time = time
        return b"%b%b%b" % (data[:_TIME_AT], _TIME.pack(time), data[_TIME_AT + _TIME.size :])

    @classmethod
    def decode(cls, data: bytes) -> Batch:
        """Columns out of bytes; payloads are cut later. Raises BadBatch."""
        try:
            return cls._decode(data)
        except BadBatch:
            raise
        except (ValueError, IndexError, OverflowError, MemoryError) as error:
            raise BadBatch(f"damaged batch: {error}") from error

    @classmethod
    def _decode(cls, data: bytes) -> Batch:
        if len(data) < _HEAD.size:
            raise BadBatch("batch shorter than its head")
        version, flags, rules, time, count, table_size, header_size = _HEAD.unpack_from(data)
        if version not in (VERSION, SIZED) or not 0 < count <= MAX_MESSAGES:
            raise BadBatch(f"batch of version {version} with {count} messages")
        reader = _Reader(data, _HEAD.size)
        subjects = reader.take(table_size)
        table = subjects.split(b"\n") if version == VERSION else _parted(subjects)
        numbers = None if flags & SINGLE else reader.column("I", count)
        if len(table) != 1 if numbers is None else max(numbers) >= len(table):
            raise BadBatch("subjects do not add up")
        header_sizes = reader.column("I", count) if flags & HEADERS else None
        sizes = reader.column("I", 1) * count if flags & EVEN else reader.column("I", count)
        batch = cls(time, None, None, expire=bool(flags & EXPIRE))
        batch.rules = rules
        batch.table = table
        batch.numbers = numbers
        batch.sizes = sizes
        batch.offsets = reader.column("I", count) if flags & SPARSE else None
        batch.times = reader.column("Q", count) if flags & TIMES else None
        batch.base = reader.column("Q", 1)[0] if flags & BASED else 0
        if batch.offsets is not None and batch.base + max(batch.offsets) >= 1 << 64:
            raise BadBatch("sequences beyond 64 bits")
        batch.told = reader.take(reader.column("I", 1)[0]) if flags & TELLING else b""
        if header_sizes is not None:
            start = reader.at
            if sum(header_sizes) != header_size:
                raise BadBatch("headers do not add up")
            ends = list(accumulate(header_sizes, initial=start))
            batch.headers = [data[a:b] for a, b in pairwise(ends)]
            reader.take(header_size)
        if reader.at + sum(sizes) != len(data):
            raise BadBatch("columns do not add up")
        batch._body = data
        batch._start = reader.at
        return batch


def _joined(table: list[bytes]) -> tuple[int, bytes]:
    """The distinct subjects as one piece, and the version whose form that is."""
    joined = b"\n".join(table)
    if joined.count(b"\n") == len(table) - 1:
        return VERSION, joined
    sizes = array("I", (len(table),))
    sizes.extend(map(len, table))
    return SIZED, b"".join((_column(sizes), *table))


def _parted(piece: bytes) -> list[bytes]:
    """The subjects out of what `_joined` made in the version with sizes. Raises BadBatch."""
    reader = _Reader(piece, 0)
    sizes = reader.column("I", reader.column("I", 1)[0])
    if not sizes or reader.at + sum(sizes) != len(piece):
        raise BadBatch("subjects do not add up")
    return [piece[a:b] for a, b in pairwise(accumulate(sizes, initial=reader.at))]


def _column(column: array[int]) -> array[int]:
    """The column in the byte order of the disk."""
    if _SWAP:
        column = column[:]
        column.byteswap()
    return column


class _Reader:
    """A bounded walk through a block."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise BadBatch("batch cut short")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def column(self, code: str, count: int) -> array[int]:
        column: array[int] = array(code)
        column.frombytes(self.take(count * column.itemsize))
        if _SWAP:
            column.byteswap()
        return column
