"""The files of one stream's backup: segments of checked, compressed chunks, and the manifest.

Owns their format and everything that can be wrong with them; errors name file and offset. It knows no server.

    chunk     "NBC1", kind u8, 3 bytes 0, size u32, compressed size u32, CRC-32 u32 of all before it and of what
              follows, then zlib data; little endian
    kind 0    first chunk: JSON {"format", "stream", "created", "after"}
    kind 1    messages, each as an entry of an archive (`nimsnats.protocol.archive`), in ascending sequence
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, Final, cast

from nimsnats.files import open_regular, read, reading
from nimsnats.protocol.archive import MAX_PAYLOAD, ArchivedMessage, ArchiveReader, BadArchive, message_entry

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
CHUNK: Final = 1 << 20
"""Bytes of messages in one chunk, before compression, and at most one message more."""

_STREAM: Final = re.compile(r"[^\x00-\x20\x7f.*>/\\]{1,255}")
"""What nats-server and we let a stream be called."""
_SEGMENT: Final = re.compile(r"messages-(\d{6})\.nims")
_HEAD: Final = Struct("<4sB3xII")
_CRC: Final = Struct("<I")
_MAGIC: Final = b"NBC1"
_OPENING, _MESSAGES = 0, 1
_LARGEST: Final = CHUNK + MAX_PAYLOAD + (1 << 20)
_MANIFEST_MOST: Final = 1 << 30
_SYNC_BYTES: Final = 64 << 20
_LEVEL: Final = 1


class Damaged(Exception):
    """A file of a backup is not as it was written; the text names it and the offset."""

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        super().__init__(f"{path}: damaged at byte {offset}: {reason}")
        self.path = path
        self.offset = offset
        """Where the last whole chunk ends."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Of which stream a segment is: created at `created` (ns; 0 when the server does not tell); its messages come
    after sequence `after`."""

    stream: str
    created: int
    after: int


@dataclass(slots=True)
class Segment:
    """A whole segment as the manifest lists it."""

    file: str
    size: int
    sha256: str
    last: int
    """Its highest sequence, 0 when it holds no message."""
    messages: int


@dataclass(slots=True)
class Manifest:
    """One stream's backup. `gone` are runs (first, count) of sequences up to `after` that are not part of it."""

    stream: str
    taken: str
    created: int
    config: dict[str, Any]
    state: dict[str, Any]
    consumers: dict[str, dict[str, Any]]
    messages: int
    segments: list[Segment]
    after: int = 0
    gone: list[int] = field(default_factory=list[int])

    @property
    def last(self) -> int:
        """The highest sequence that a message of the segments has."""
        return max((segment.last for segment in self.segments), default=0)

    def holds(self, seq: int) -> bool:
        """Whether a message of the segments is part of this backup."""
        if seq < self.state.get("first_seq", 0):
            return False
        if seq > self.after or not self.gone:
            return True
        at = bisect_right(self.gone[::2], seq) - 1
        return at < 0 or seq >= self.gone[2 * at] + self.gone[2 * at + 1]

    def check(self) -> None:
        """A checksum vouches for a manifest and no secret does, so anything may stand in it. Raises ValueError for what
        is not of its type."""
        texts = (self.stream, self.taken, *(segment.file for segment in self.segments))
        texts += (*self.consumers, *(segment.sha256 for segment in self.segments))
        tables = (self.config, self.state, self.consumers, *self.consumers.values())
        numbers = [self.created, self.messages, self.after, self.state.get("first_seq", 0), *self.gone]
        for segment in self.segments:
            numbers += (segment.size, segment.last, segment.messages)
        if not (
            all(type(text) is str for text in texts)
            and all(type(table) is dict for table in tables)
            and all(type(number) is int and 0 <= number < 1 << 64 for number in numbers)
            and len(self.gone) % 2 == 0
        ):
            raise ValueError("a field of the wrong type")

    def write(self, directory: Path) -> None:
        """Put it in the place of the one before, durably."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "segments"}
        fields["segments"] = [{name: getattr(segment, name) for name in Segment.__slots__} for segment in self.segments]
        body: dict[str, Any] = {"format": FORMAT, **fields}
        aside = directory / (MANIFEST + ".new")
        aside.unlink(missing_ok=True)
        with os.fdopen(open_regular(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, follow=False), "w") as file:
            json.dump({**body, "check": _digest(body)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(directory / MANIFEST)
        _sync_directory(directory)

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises Damaged; FileNotFoundError when there is none."""
        path = directory / MANIFEST
        raw = read(path, _MANIFEST_MOST, follow=False)
        try:
            fields = cast("dict[str, Any]", json.loads(raw))
            version, check = fields.pop("format"), fields.pop("check")
        except json.JSONDecodeError as error:
            raise Damaged(path, error.pos, error.msg) from error
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            raise Damaged(path, 0, "no manifest of a backup") from error
        if type(version) is int and version > FORMAT:
            raise Damaged(path, 0, f"it has format {version}, this version reads up to {FORMAT}")
        if _digest({"format": version, **fields}) != check:
            raise Damaged(path, 0, "its checksum does not fit")
        try:
            fields["segments"] = [Segment(**one) for one in fields["segments"]]
            found = cls(**fields)
            found.check()
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise Damaged(path, 0, "no manifest of a backup") from error
        if _STREAM.fullmatch(found.stream) is None:
            raise Damaged(path, 0, f"{found.stream!r} is no name of a stream")
        for segment in found.segments:
            if _SEGMENT.fullmatch(segment.file) is None:
                raise Damaged(path, 0, f"{segment.file!r} is no name of a segment")
        return found


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def segment_files(directory: Path) -> list[str]:
    """Names of the segments in a directory, in order, whether or not a manifest lists them."""
    return sorted(entry.name for entry in directory.iterdir() if _SEGMENT.fullmatch(entry.name))


def next_segment(directory: Path) -> str:
    """A name for a new segment."""
    numbers = [int(_SEGMENT.fullmatch(name)[1]) for name in segment_files(directory)]  # type: ignore[index]
    return f"messages-{max(numbers, default=0) + 1:06d}.nims"


class SegmentWriter:
    """Writes one segment; what has been handed out as a chunk survives whatever comes."""

    def __init__(self, directory: Path, opening: Opening) -> None:
        self.file = next_segment(directory)
        self.size = self.last = self.messages = 0
        self._sha = hashlib.sha256()
        self._held: list[bytes] = []
        self._held_size = self._unsynced = 0
        made = open_regular(directory / self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, follow=False)
        self._out: BinaryIO = os.fdopen(made, "wb")
        self._directory = directory
        fields = {"format": FORMAT, "stream": opening.stream, "created": opening.created, "after": opening.after}
        self._write(_OPENING, json.dumps(fields).encode())

    def add(self, message: ArchivedMessage) -> None:
        """Take a message."""
        entry = message_entry(message)
        self._held.append(entry)
        self._held_size += len(entry)
        self.last = message.seq
        self.messages += 1
        if self._held_size >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a chunk."""
        if self._held:
            self._write(_MESSAGES, b"".join(self._held))
            self._held, self._held_size = [], 0

    def _write(self, kind: int, content: bytes) -> None:
        stored = zlib.compress(content, _LEVEL)
        head = _HEAD.pack(_MAGIC, kind, len(content), len(stored))
        for part in (head, _CRC.pack(zlib.crc32(stored, zlib.crc32(head))), stored):
            self._out.write(part)
            self._sha.update(part)
            self.size += len(part)
            self._unsynced += len(part)
        self._out.flush()
        if self._unsynced >= _SYNC_BYTES:
            os.fsync(self._out.fileno())
            self._unsynced = 0

    def finish(self) -> Segment:
        """Everything is there, and on disk."""
        self.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        _sync_directory(self._directory)
        return Segment(self.file, self.size, self._sha.hexdigest(), self.last, self.messages)

    def close(self) -> None:
        """Stop here; what is held is written, so that it need not come again."""
        if not self._out.closed:
            self.flush()
            self._out.close()


class SegmentReader:
    """Reads one segment from its beginning. `offset` is where the last whole chunk ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = self.last = self.messages = 0
        self._sha = hashlib.sha256()
        self._parser = ArchiveReader.of_messages()

    def opening(self) -> Opening:
        """The first chunk. Raises Damaged."""
        with reading(self.path, follow=False) as file:
            return self._opening(self._chunk(file))

    def read(self) -> Iterator[ArchivedMessage]:
        """All messages. Raises Damaged after those before the damage."""
        with reading(self.path, follow=False) as file:
            self._opening(self._chunk(file))
            while (chunk := self._chunk(file)) is not None:
                kind, content, end = chunk
                if kind != _MESSAGES:
                    raise Damaged(self.path, self.offset, f"a chunk of kind {kind}")
                try:
                    found = cast("list[ArchivedMessage]", list(self._parser.feed(content)))
                    self._parser.at_boundary()
                except BadArchive as error:
                    raise Damaged(self.path, self.offset, str(error)) from error
                self.offset = end
                for message in found:
                    self.last = message.seq
                    self.messages += 1
                    yield message

    def whole(self) -> Segment:
        """The segment as it would be listed, once all has been read."""
        return Segment(self.path.name, self.offset, self._sha.hexdigest(), self.last, self.messages)

    def _opening(self, chunk: tuple[int, bytes, int] | None) -> Opening:
        if chunk is None or chunk[0] != _OPENING:
            raise Damaged(self.path, 0, "it does not begin as a segment")
        try:
            fields = json.loads(chunk[1])
            version, found = fields["format"], Opening(fields["stream"], fields["created"], fields["after"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Damaged(self.path, 0, "it does not begin as a segment") from error
        numbers: tuple[object, ...] = (version, found.created, found.after)
        if type(found.stream) is not str or any(type(number) is not int for number in numbers):
            raise Damaged(self.path, 0, "it does not begin as a segment")
        if version > FORMAT:
            raise Damaged(self.path, 0, f"it has format {version}, this version reads up to {FORMAT}")
        self.offset = chunk[2]
        return found

    def _chunk(self, file: BinaryIO) -> tuple[int, bytes, int] | None:
        """Kind, content and end of the next chunk; None at the end of the file. Raises Damaged."""
        head = file.read(_HEAD.size + _CRC.size)
        if not head:
            return None
        if len(head) < _HEAD.size + _CRC.size:
            raise Damaged(self.path, self.offset, "it is cut short")
        magic, kind, size, stored_size = _HEAD.unpack_from(head)
        if magic != _MAGIC or size > _LARGEST or stored_size > _LARGEST:
            raise Damaged(self.path, self.offset, "no chunk begins here")
        stored = file.read(stored_size)
        if len(stored) < stored_size:
            raise Damaged(self.path, self.offset, "it is cut short")
        if zlib.crc32(stored, zlib.crc32(head[: _HEAD.size])) != _CRC.unpack_from(head, _HEAD.size)[0]:
            raise Damaged(self.path, self.offset, "a chunk's checksum does not fit")
        try:
            content = zlib.decompressobj().decompress(stored, size + 1)
        except zlib.error as error:
            raise Damaged(self.path, self.offset, str(error)) from error
        if len(content) != size:
            raise Damaged(self.path, self.offset, "a chunk has another size than it says")
        self._sha.update(head)
        self._sha.update(stored)
        return kind, content, self.offset + len(head) + stored_size


def read_messages(directory: Path, manifest: Manifest) -> Iterator[ArchivedMessage]:
    """The messages of a backup in ascending sequence, everything checked on the way. Raises Damaged."""
    count = 0
    for listed in manifest.segments:
        path = directory / listed.file
        reader = SegmentReader(path)
        try:
            for message in reader.read():
                if manifest.holds(message.seq):
                    count += 1
                    yield message
        except FileNotFoundError:
            raise Damaged(path, 0, "the file is missing") from None
        if reader.offset < listed.size:
            raise Damaged(path, reader.offset, f"it is cut short, {listed.size} bytes are expected")
        if reader.whole() != listed:
            raise Damaged(path, 0, "its content is not what the manifest lists")
    if count != manifest.messages:
        raise Damaged(directory / MANIFEST, 0, f"{manifest.messages} messages are listed and {count} are there")
