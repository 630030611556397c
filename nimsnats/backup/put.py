"""Restores backups: everything is checked first, then a stream is sent as an archive and comes into being as a whole.

Owns the conversation of a restore on the client's side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from nimsnats.backup.files import Manifest, read_messages
from nimsnats.backup.link import Link, Refused, parsed
from nimsnats.protocol.archive import END, consumer_entry, message_entry, state_entry
from nimsnats.protocol.s2 import FRAME_BYTES, STREAM_IDENTIFIER, frame

_NOT_FOUND: Final = "(10059)"


def check(directory: Path) -> Manifest:
    """Read everything of a stream's backup. Raises Damaged, FileNotFoundError when there is none."""
    manifest = Manifest.read(directory)
    for _ in read_messages(directory, manifest):
        pass
    return manifest


async def exists(link: Link, stream: str) -> bool:
    """Whether the server has a stream of this name. Raises Refused."""
    try:
        await link.ask(f"STREAM.INFO.{stream}")
    except Refused as refused:
        if _NOT_FOUND in str(refused):
            return False
        raise
    return True


async def put_back(
    link: Link, directory: Path, manifest: Manifest, config: dict[str, Any], moved: Callable[[int], None]
) -> dict[str, Any]:
    """Restore a checked backup as the stream that `config` describes; its information. `moved` is told the size of each
    message. Raises Refused, Damaged."""
    name = config["name"]
    answer = await link.ask(f"STREAM.RESTORE.{name}", {"config": config, "state": manifest.state})
    subject: str = answer["deliver_subject"]
    held = bytearray(STREAM_IDENTIFIER)
    for piece in _frames(directory, manifest, moved):
        held += piece
        while len(held) >= link.chunk:
            await _send(link, subject, bytes(held[: link.chunk]))
            del held[: link.chunk]
    await _send(link, subject, bytes(held))
    return parsed(await link.request(subject, b""))


async def _send(link: Link, subject: str, chunk: bytes) -> None:
    answer = await link.request(subject, chunk)
    if answer:
        parsed(answer)
        raise Refused("the server ends the restore before its time")


def _frames(directory: Path, manifest: Manifest, moved: Callable[[int], None]) -> Iterator[bytes]:
    held = bytearray()
    for entry in _entries(directory, manifest, moved):
        held += entry
        while len(held) >= FRAME_BYTES:
            yield frame(bytes(held[:FRAME_BYTES]))
            del held[:FRAME_BYTES]
    yield frame(bytes(held))


def _entries(directory: Path, manifest: Manifest, moved: Callable[[int], None]) -> Iterator[bytes]:
    yield state_entry(0, {**manifest.state, "consumer_count": len(manifest.consumers)})
    for name, fields in sorted(manifest.consumers.items()):
        yield consumer_entry(0, name, fields)
    for message in read_messages(directory, manifest):
        moved(len(message.subject) + len(message.headers) + len(message.payload))
        yield message_entry(message)
    yield END
