"""Takes backups: one stream or all of an account, from any server that answers.

Owns the conversation of a snapshot on the client's side, and what of an earlier attempt can be kept. A stream's
directory is whole at every moment: the manifest changes last.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nats.errors

from nimsnats.backup.files import Damaged, Manifest, Opening, Segment, SegmentReader, SegmentWriter, segment_files
from nimsnats.backup.link import Link, Refused
from nimsnats.files import open_regular
from nimsnats.protocol.archive import ArchivedConsumer, ArchivedMessage, ArchivedState, ArchiveReader, BadArchive, Item
from nimsnats.protocol.s2 import BadStream, S2Reader

_PATIENCE: Final = 30.0
"""Seconds without a chunk after which a transfer is given up."""
_AFTER: Final = "Nimsnats-Snapshot-After"
_OURS: Final = "nimsnats"

Told = Callable[[str, int], Callable[[int], None]]
"""(stream, bytes in all) -> what to call with the size of each message."""


@dataclass(slots=True)
class Taken:
    """What a backup of one stream came to. `kept` messages were there already."""

    manifest: Manifest
    kept: int
    received: int


@dataclass(slots=True)
class _Held:
    """Segments of earlier attempts, whole ones and one that may have been cut short."""

    segments: list[Segment]
    created: int
    last: int


async def back_up(link: Link, stream: str, directory: Path, told: Told, taken: str, *, consumers: bool = True) -> Taken:
    """Back up a stream into a directory, keeping what is there of it already; `taken` is the time, for people.

    Raises Refused (run it again to resume), Damaged for what is there, OSError.
    """
    lock = _claim(directory)
    try:
        return await _Transfer(link, stream, directory, told, consumers).run(taken)
    except OSError as error:
        if error.errno is None or error.filename:
            raise
        raise OSError(error.errno, error.strerror, str(directory)) from error  # a write does not know where it writes
    finally:
        os.close(lock)


def _claim(directory: Path) -> int:
    """Make a directory and keep other backups out of it. Raises Refused."""
    if not directory.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)  # whatever the umask
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Refused(f"{directory} is in use by another backup") from None
    return lock


class _Transfer:
    """One snapshot on its way to disk."""

    def __init__(self, link: Link, stream: str, directory: Path, told: Told, consumers: bool) -> None:
        self._link = link
        self._stream = stream
        self._directory = directory
        self._told = told
        self._with_consumers = consumers
        self._held = _find_held(directory, stream)
        self._writer: SegmentWriter | None = None
        self._moved: Callable[[int], None] = lambda size: None
        self._config: dict[str, Any] = {}
        self._state: dict[str, Any] = {}
        self._ours: dict[str, Any] = {}
        self._consumers: dict[str, dict[str, Any]] = {}

    async def run(self, taken: str) -> Taken:
        def begun(answer: dict[str, Any]) -> None:
            self._config = answer["config"]
            self._moved = self._told(self._stream, answer["state"].get("bytes", 0))

        try:
            items = _snapshot(self._link, self._stream, begun, consumers=self._with_consumers, after=self._held.last)
            async for item in items:
                self._take(item)
            return self._conclude(taken)
        finally:
            if self._writer is not None:
                self._writer.close()

    def _take(self, item: Item) -> None:
        if isinstance(item, ArchivedState):
            self._begin(item.fields)
        elif isinstance(item, ArchivedConsumer):
            self._consumers[item.name] = item.fields
        else:
            assert self._writer is not None
            self._writer.add(item)
            self._moved(len(item.subject) + len(item.headers) + len(item.payload))

    def _begin(self, fields: dict[str, Any]) -> None:
        """The state has come: does the server send a part, and is it the stream of which we hold the rest?"""
        ours: Any = fields.pop(_OURS, None)
        self._state, self._ours = fields, ours if isinstance(ours, dict) else {}
        created, after = self._ours.get("created", 0), self._ours.get("after", 0)
        if after and (after != self._held.last or created != self._held.created):
            raise Refused(
                f"{self._directory} holds a backup of another stream of this name: move it away, or choose another "
                "directory"
            )
        if not after:
            self._held = _Held([], created, 0)
        self._writer = SegmentWriter(self._directory, Opening(self._stream, created, after))

    def _conclude(self, taken: str) -> Taken:
        """Write the manifest, then remove what it does not list."""
        assert self._writer is not None
        received = self._writer.messages
        segments = [*self._held.segments, self._writer.finish()]
        after, gone = self._ours.get("after", 0), self._ours.get("gone", [])
        first = self._state.get("first_seq", 0)
        kept = max(after - max(first, 1) + 1, 0) - sum(gone[1::2]) if after else 0
        manifest = Manifest(
            self._stream,
            taken,
            self._held.created,
            self._config,
            self._state,
            self._consumers,
            kept + received,
            segments,
            after,
            gone,
        )
        if self._ours and manifest.messages != self._state.get("messages"):
            raise Refused(f"{manifest.messages} messages have come, the server counts {self._state.get('messages')}")
        manifest.write(self._directory)
        listed = {segment.file for segment in segments}
        for name in segment_files(self._directory):
            if name not in listed:
                (self._directory / name).unlink()
        return Taken(manifest, kept, received)


async def each_message(link: Link, stream: str) -> AsyncIterator[ArchivedMessage]:
    """The messages of a stream at this moment. Raises Refused."""
    async for item in _snapshot(link, stream, lambda answer: None, consumers=False):
        if isinstance(item, ArchivedMessage):
            yield item


async def _snapshot(
    link: Link, stream: str, begun: Callable[[dict[str, Any]], None], *, consumers: bool, after: int = 0
) -> AsyncIterator[Item]:
    """Have a server send a snapshot; a chunk is acknowledged when its items have been taken. Raises Refused."""
    client = link.client
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)  # pyright: ignore[reportUnknownMemberType]
    await client.flush()
    frames, archive = S2Reader(), ArchiveReader()
    try:
        request = {"deliver_subject": inbox, "no_consumers": not consumers}
        begun(await link.ask(f"STREAM.SNAPSHOT.{stream}", request, {_AFTER: str(after)} if after else None))
        while True:
            message = await subscription.next_msg(timeout=_PATIENCE)
            if not message.data:
                _check_status({getattr(key, "value", key): text for key, text in (message.headers or {}).items()})
                break
            for piece in frames.feed(message.data):
                for item in archive.feed(piece):
                    yield item
            if message.reply:
                await client.publish(message.reply)
        frames.finish()
        archive.finish()
    except (nats.errors.TimeoutError, TimeoutError):
        raise Refused("the server has stopped sending; run it again to go on from here") from None
    except (BadStream, BadArchive) as error:
        raise Refused(f"the server sends what cannot be read: {error}") from error
    except nats.errors.Error as error:
        raise Refused(f"the connection is lost ({error}); run it again to go on from here") from error


def _check_status(headers: dict[str, str]) -> None:
    """Raises Refused when the message that ends a transfer tells of a failure."""
    status = headers.get("Status", "204")
    if status != "204":
        raise Refused(
            f"the server gives up: {status} {headers.get('Description', '')}; run it again to go on from here"
        )


def _find_held(directory: Path, stream: str) -> _Held:
    """What is there of earlier attempts, cut back to what is whole. Raises Damaged, Refused."""
    try:
        manifest = Manifest.read(directory)
    except FileNotFoundError:
        manifest = None
    if manifest is not None and manifest.stream != stream:
        raise Refused(f"{directory} holds a backup of stream {manifest.stream!r}")
    held = _Held([], 0, 0)
    if manifest is not None and not manifest.created:
        return held  # of a server that does not tell which stream it is: nothing can be added to it
    listed = {segment.file: segment for segment in manifest.segments} if manifest is not None else {}
    for name in segment_files(directory):
        if not _add_segment(held, directory / name, listed.get(name), stream):
            break
    missing = listed.keys() - {segment.file for segment in held.segments}
    if missing:
        raise Damaged(directory / min(missing), 0, "the file is missing")
    return held


def _add_segment(held: _Held, path: Path, listed: Segment | None, stream: str) -> bool:
    """Add a segment that goes on where the others end; False when it and those behind it are of no use."""
    reader = SegmentReader(path)
    try:
        opening = reader.opening()
        fits = opening.stream == stream and (not held.segments or opening.created == held.created)
        if not fits or opening.after != held.last or not opening.created:
            return False
        reader = SegmentReader(path)
        for _ in reader.read():
            pass
    except Damaged as damaged:
        if listed is not None:
            raise
        if not reader.offset:
            return False
        with os.fdopen(open_regular(path, os.O_RDWR, follow=False), "r+b") as file:
            file.truncate(reader.offset)
        reader = SegmentReader(path)
        opening = reader.opening()
        reader = SegmentReader(path)
        for _ in reader.read():
            pass
        del damaged
    whole = reader.whole()
    if listed is not None and whole != listed:
        raise Damaged(path, 0, "its content is not what the manifest lists")
    held.segments.append(whole)
    held.created = opening.created
    held.last = max(held.last, whole.last)
    return True
