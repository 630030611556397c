"""What a client does to take a snapshot of a stream and to restore one, word for word; and archives made by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client

from nimsnats.protocol import s2
from nimsnats.protocol.archive import (
    END,
    ArchivedConsumer,
    ArchivedMessage,
    ArchivedState,
    ArchiveReader,
    consumer_entry,
    message_entry,
    state_entry,
)


@dataclass
class Snapshot:
    """The answer to the request, the archive, and what came with each chunk: (size, reply, status)."""

    answer: dict[str, Any]
    archive: bytes
    chunks: list[tuple[int, str, dict[str, str]]]
    items: list[Any] = field(default_factory=list[Any])
    """The decoded archive, if it is complete."""

    @property
    def messages(self) -> list[ArchivedMessage]:
        return [item for item in self.items if isinstance(item, ArchivedMessage)]

    @property
    def state(self) -> dict[str, Any]:
        return next(item.fields for item in self.items if isinstance(item, ArchivedState))

    @property
    def consumers(self) -> dict[str, dict[str, Any]]:
        return {item.name: item.fields for item in self.items if isinstance(item, ArchivedConsumer)}


def decoded(archive: bytes) -> list[Any]:
    """All items of a complete archive."""
    frames, reader = s2.S2Reader(), ArchiveReader()
    items = [item for piece in frames.feed(archive) for item in reader.feed(piece)]
    frames.finish()
    reader.finish()
    return items


def archive_of(state: dict[str, Any], entries: Iterable[Any], *, end: bytes = END) -> bytes:
    """An archive of a state and of consumers and messages."""
    content = state_entry(1, state)
    for entry in entries:
        is_message = isinstance(entry, ArchivedMessage)
        content += message_entry(entry) if is_message else consumer_entry(1, entry.name, entry.fields)
    return framed(content + end)


def framed(content: bytes) -> bytes:
    """Any bytes as an S2 stream."""
    size = s2.FRAME_BYTES
    return s2.STREAM_IDENTIFIER + b"".join(s2.frame(content[at : at + size]) for at in range(0, len(content), size))


async def snapshot(
    client: Client, stream: str, headers: dict[str, str] | None = None, *, deaf: bool = False, **request: Any
) -> Snapshot:
    """Take a snapshot, acknowledging every chunk unless `deaf`."""
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    body = json.dumps({"deliver_subject": inbox, **request}).encode()
    response = await client.request(f"$JS.API.STREAM.SNAPSHOT.{stream}", body, headers=headers, timeout=5)
    taken = Snapshot(json.loads(response.data), b"", [])
    pieces: list[bytes] = []
    while "error" not in taken.answer:
        message = await subscription.next_msg(timeout=15)
        status = {getattr(key, "value", key): value for key, value in (message.headers or {}).items()}
        taken.chunks.append((len(message.data), message.reply, status))
        if not message.data:
            break
        pieces.append(message.data)
        if message.reply and not deaf:
            await client.publish(message.reply)
    await subscription.unsubscribe()
    taken.archive = b"".join(pieces)
    if taken.chunks and taken.chunks[-1][2].get("Status", "204") == "204":
        taken.items = await asyncio.to_thread(decoded, taken.archive)  # servers on this loop have to go on
    return taken


async def ask(client: Client, subject: str, body: Any = None) -> dict[str, Any]:
    """The answer of the API."""
    data = b"" if body is None else json.dumps(body).encode()
    return json.loads((await client.request(f"$JS.API.{subject}", data, timeout=5)).data)


async def restore(
    client: Client, config: dict[str, Any], archive: bytes, *, chunk: int = 100_000, state: Any = None
) -> dict[str, Any]:
    """Restore a stream; the last answer, which is the first error if there is one."""
    name = config["name"]
    answer = await ask(client, f"STREAM.RESTORE.{name}", {"config": config, "state": state or {}})
    if "error" in answer:
        return answer
    for at in range(0, len(archive), chunk):
        message = await client.request(answer["deliver_subject"], archive[at : at + chunk], timeout=10)
        if message.data:
            return json.loads(message.data)
    return json.loads((await client.request(answer["deliver_subject"], b"", timeout=10)).data)
