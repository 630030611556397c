"""A second opinion on what was acknowledged, kept outside the database.

Owns the two witness files and their meaning. SQLite drops everything in its WAL behind the first frame whose
checksum fails, without a word: after a torn or flipped page, acknowledged commits would vanish and their
indexes be used again. So after each commit, and before anybody is told of it, one small checksummed record
names the entries that became durable. At start the database is compared with the records (`inspection.py`):
what it has less than them is lost, and is said to be.

Records are written without fsync: they survive a killed process at once and a power failure a little later.
They follow the commit, so they never name something that was not durable, and losing their tail only makes
the witness know less.

A file is a header, one base record with the state of all groups, then a record a commit. Two files take
turns: when one has grown, the next generation begins in the other and is fsynced before the first is
forgotten.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Final
from zlib import crc32

from nimsnats.files import open_regular, reading

_MAGIC: Final = b"NIMSWIT1"
_HEADER: Final = Struct("<8sQI")
_RECORD: Final = Struct("<II")
_ITEM: Final = Struct("<BIQQ")
_NAME_ITEM: Final = Struct("<BI16s")
_ROTATE_BYTES: Final = 4 * 1024 * 1024
_FILES: Final = ("witness.0", "witness.1")

_BASE, _ENTRY, _TRUNCATE, _TERM, _REMOVED, _NAME = range(6)
_NAME_PART: Final = 16

_pack = _ITEM.pack


def entry_item(group: int, index: int, messages: int) -> bytes:
    """An entry became durable."""
    return _pack(_ENTRY, group, index, messages)


def truncate_item(group: int, index: int) -> bytes:
    """Entries from `index` on were taken back."""
    return _pack(_TRUNCATE, group, index, 0)


def term_item(group: int, term: int) -> bytes:
    """A term was entered."""
    return _pack(_TERM, group, term, 0)


def removed_item(group: int) -> bytes:
    """A group was removed."""
    return _pack(_REMOVED, group, 0, 0)


def name_items(group: int, name: str) -> bytes:
    """A group was created: its name, in parts."""
    raw = name.encode()
    parts = (raw[at : at + _NAME_PART].ljust(_NAME_PART, b"\0") for at in range(0, len(raw), _NAME_PART))
    return b"".join(_NAME_ITEM.pack(_NAME, group, part) for part in parts)


@dataclass(slots=True)
class GroupTestimony:
    """What the witness has seen of a group. `entries` holds the message counts of recent entries by index."""

    last: int = 0
    term: int = 0
    name: str = ""
    entries: dict[int, int] = field(default_factory=dict[int, int])


@dataclass(slots=True)
class Testimony:
    """What the witness has seen of all groups; empty when there is no readable witness."""

    groups: dict[int, GroupTestimony] = field(default_factory=dict[int, GroupTestimony])
    generation: int = 0
    found: bool = False

    def take(self, items: bytes) -> None:
        """Account for the items of one record."""
        for kind, group, first, second in _ITEM.iter_unpack(items):
            seen = self.groups.get(group)
            if seen is None:
                seen = self.groups[group] = GroupTestimony()
            if kind == _ENTRY:
                seen.last = first
                seen.entries[first] = second
            elif kind == _BASE:
                seen.last = first
                seen.term = second
            elif kind == _TERM:
                seen.term = first
            elif kind == _TRUNCATE:
                seen.last = first - 1
                for index in [index for index in seen.entries if index >= first]:
                    del seen.entries[index]
            elif kind == _NAME:
                part = (first.to_bytes(8, "little") + second.to_bytes(8, "little")).rstrip(b"\0")
                seen.name = (seen.name.encode("utf-8", "surrogateescape") + part).decode("utf-8", "surrogateescape")
            elif kind == _REMOVED:
                del self.groups[group]


def read_testimony(directory: Path) -> Testimony:
    """The newest readable witness file of a data directory."""
    best = Testimony()
    for name in _FILES:
        try:
            with reading(directory / name, follow=False) as file:
                content = file.read()
        except OSError:
            continue
        testimony = _parse(content)
        if testimony.found and testimony.generation >= best.generation:
            best = testimony
    return best


def _parse(content: bytes) -> Testimony:
    testimony = Testimony()
    try:
        magic, generation, crc = _HEADER.unpack_from(content)
    except StructError:
        return testimony
    if magic != _MAGIC or crc != crc32(content[:16]):
        return testimony
    testimony.generation = generation
    position = _HEADER.size
    while position + _RECORD.size <= len(content):
        size, crc = _RECORD.unpack_from(content, position)
        items = content[position + _RECORD.size : position + _RECORD.size + size]
        if len(items) != size or size % _ITEM.size or crc != crc32(items, generation & 0xFFFFFFFF):
            break
        testimony.take(items)
        testimony.found = True
        position += _RECORD.size + size
    return testimony


class Witness:
    """The witness being written. Every method is a few microseconds of `pwrite`, except `rotate` (one
    fsync)."""

    def __init__(self, directory: Path, generation: int) -> None:
        self._directory = directory
        self._generation = generation
        self._handles: list[int] = []
        """Of both files, held from the start: no descriptor may be left when one is needed."""
        self._file = -1
        self._position = 0
        self.last: dict[int, int] = {}
        """Highest durable index of each group."""
        self.names: dict[int, str] = {}
        self.terms: dict[int, int] = {}

    def start(self, groups: Iterable[tuple[int, str, int, int]]) -> None:
        """Begin a new generation that knows `groups` as (id, name, last index, term). Raises OSError."""
        for group, name, last, term in groups:
            self.last[group] = last
            self.names[group] = name
            self.terms[group] = term
        for name in _FILES:
            self._handles.append(open_regular(self._directory / name, os.O_RDWR | os.O_CREAT, follow=False))
        self.rotate()

    def write(self, items: list[bytes]) -> None:
        """Record what one commit made durable. Raises OSError (disk full); the record is then missing, no
        more."""
        body = b"".join(items)
        record = _RECORD.pack(len(body), crc32(body, self._generation & 0xFFFFFFFF)) + body
        for kind, group, first, _ in _ITEM.iter_unpack(body):
            if kind == _ENTRY:
                self.last[group] = first
            elif kind == _TRUNCATE:
                self.last[group] = first - 1
            elif kind == _TERM:
                self.terms[group] = first
                self.last.setdefault(group, 0)
            elif kind == _REMOVED:
                self.last.pop(group, None)
                self.terms.pop(group, None)
                self.names.pop(group, None)
        if os.pwrite(self._file, record, self._position) == len(record):
            self._position += len(record)
        if self._position > _ROTATE_BYTES:
            self.rotate()

    def rotate(self) -> None:
        """Begin the next generation in the other file. Raises OSError."""
        generation = self._generation + 1
        head = _MAGIC + generation.to_bytes(8, "little")
        body = b"".join(
            _pack(_BASE, group, last, self.terms.get(group, 0)) + name_items(group, self.names.get(group, ""))
            for group, last in sorted(self.last.items())
        )
        content = head + crc32(head).to_bytes(4, "little")
        content += _RECORD.pack(len(body), crc32(body, generation & 0xFFFFFFFF)) + body
        handle = self._handles[generation % 2]
        os.ftruncate(handle, 0)
        written = os.pwrite(handle, content, 0)
        if written < len(content):
            raise OSError(errno.ENOSPC, "no space left for the witness", str(self._directory / _FILES[generation % 2]))
        os.fdatasync(handle)
        self._file, self._position, self._generation = handle, len(content), generation

    def close(self) -> None:
        """Close the files."""
        handles, self._handles, self._file = self._handles, [], -1
        for handle in handles:
            os.close(handle)
