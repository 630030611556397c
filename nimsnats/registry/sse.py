"""Server-sent events (WHATWG HTML, section 9.2): the reader of the client and the writer of the server.

Owns: the wire format. Sans-IO: bytes in, messages out. Bounded: a message may not grow past `MAX_MESSAGE` bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from nimsnats.registry.errors import RegistryAnswerError

MAX_MESSAGE: Final = 2 << 20
_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE: Final = re.compile(r"\r\n|\n|\r")
KEEP_ALIVE: Final = b": keep-alive\n\n"


@dataclass(frozen=True, slots=True)
class Message:
    """One event; `event` is "message" where the stream names none, `id` "" where it has none."""

    event: str
    data: str
    id: str


class EventReader:
    """Collects chunks of any size into messages. Comments and messages without data are dropped (standard)."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[Message]:
        """Take bytes as they came and return the messages that they complete. Raises `RegistryAnswerError`."""
        searched = max(0, len(self._buffer) - 3)
        self._buffer += chunk
        messages: list[Message] = []
        start = 0
        for end in _END.finditer(self._buffer, searched):
            if end.start() < start:
                continue
            message = _parse(bytes(self._buffer[start : end.start()]))
            start = end.end()
            if message is not None:
                messages.append(message)
        del self._buffer[:start]
        if len(self._buffer) > MAX_MESSAGE:
            raise RegistryAnswerError(f"sent an event of more than {MAX_MESSAGE >> 10} KiB")
        return messages


def _parse(block: bytes) -> Message | None:
    event, identity, data = "message", "", list[str]()
    for line in _LINE.split(block.decode(errors="replace").lstrip("\ufeff")):
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            event = value
        elif key == "id":
            identity = value
        elif key == "data":
            data.append(value)
    return Message(event, "\n".join(data), identity) if data else None


def encode(event: str, data: str, identity: int) -> bytes:
    """One message; `data` must be one line, as compact JSON is."""
    assert "\n" not in data
    return f"id: {identity}\nevent: {event}\ndata: {data}\n\n".encode()
