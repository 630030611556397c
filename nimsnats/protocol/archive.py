"""The archive of a stream, as nats-server 2.15 and this server write and read it (ADR "Stream Backup and Restore V2").

Owns the bytes of entries, their order and their limits, in both directions; compression (`s2.py`) and what the content
means are others' business. It allocates nothing for what an archive merely claims.

    "NATSARC1", then entries of: name length uvarint, time varint (ns), sequence uvarint, header size uvarint, payload
    size uvarint, name, headers, payload

In this order: `state.json`; one `consumers/<name>` for each of the `consumer_count` in it; the messages in ascending
sequence, each under its subject; an entry of nothing but zeros, without which the archive is incomplete.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from json import dumps
from typing import Any, Final, cast

from nimsnats.protocol.json import BadJson, loads

MAGIC: Final = b"NATSARC1"
STATE: Final = "state.json"
CONSUMERS: Final = "consumers/"
END: Final = b"\0\0\0\0\0"

MAX_NAME: Final = 64 * 1024
"""Bytes of a name: subjects are shorter, because a control line is."""
MAX_DOCUMENT: Final = 64 << 20
"""Bytes of `state.json` or of one consumer's document."""
MAX_DOCUMENTS: Final = 256 << 20
"""Bytes of all documents of an archive."""
MAX_VALUES: Final = 4 << 20
"""Values of one document: what it becomes in memory is in proportion to them."""
MAX_PAYLOAD: Final = 64 << 20
"""Bytes of a message, headers included; nats-server's `max_payload` cannot be higher."""


class BadArchive(ValueError):
    """Bytes that are no archive of a stream, or not a whole one."""


class ForeignArchive(BadArchive):
    """It does not even begin as an archive."""

    def __init__(self) -> None:
        super().__init__(
            "this is no archive of this server or of nats-server 2.15: backups of older servers can be restored into "
            "nats-server 2.15, and a new backup taken there restores here"
        )


@dataclass(frozen=True, slots=True)
class ArchivedState:
    """`state.json`: the stream's state when the snapshot was taken."""

    time: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ArchivedConsumer:
    """`consumers/<name>`: its configuration and state, as JSON."""

    name: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ArchivedMessage:
    """One message; `time` in nanoseconds since the epoch, `headers` the whole block or empty."""

    seq: int
    time: int
    subject: bytes
    headers: bytes
    payload: bytes


Item = ArchivedState | ArchivedConsumer | ArchivedMessage


def _uvarint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _entry(name: bytes, time: int, seq: int, headers: bytes, payload: bytes) -> bytes:
    stamp = time << 1 if time >= 0 else (-time << 1) - 1
    sizes = _uvarint(len(headers)) + _uvarint(len(payload))
    return _uvarint(len(name)) + _uvarint(stamp) + _uvarint(seq) + sizes + name + headers + payload


def state_entry(time: int, fields: dict[str, Any]) -> bytes:
    """The beginning of an archive."""
    return MAGIC + _entry(STATE.encode(), time, 0, b"", _json(fields))


def consumer_entry(time: int, name: str, fields: dict[str, Any]) -> bytes:
    """One consumer."""
    return _entry((CONSUMERS + name).encode(), time, 0, b"", _json(fields))


def message_entry(message: ArchivedMessage) -> bytes:
    """One message."""
    return _entry(message.subject, message.time, message.seq, message.headers, message.payload)


def _json(fields: dict[str, Any]) -> bytes:
    return dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


class ArchiveReader:
    """Decodes an archive that comes in pieces of any size. `complete` once the end has been seen.

    `consumed` counts the bytes of complete entries, and errors name it.
    """

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self.complete = False
        self.consumed = 0
        self._max_payload = max_payload
        self._held = bytearray()
        self._begun = False
        self._state = False
        self._consumers = 0
        self._messages: int | None = None
        self._documents = 0
        self._last = 0

    @classmethod
    def of_messages(cls) -> ArchiveReader:
        """For messages alone, without what begins and ends an archive."""
        reader = cls()
        reader._begun = reader._state = True
        return reader

    def at_boundary(self) -> None:
        """An entry ends where the data ends. Raises BadArchive."""
        if self._held:
            raise self._bad("an entry is cut short")

    def feed(self, data: bytes) -> Iterator[Item]:
        """Everything that is complete now, one at a time. Raises BadArchive."""
        held = self._held
        held += data
        at = 0
        if not self._begun:
            if not MAGIC.startswith(held[: len(MAGIC)]):
                raise ForeignArchive
            if len(held) < len(MAGIC):
                return
            self._begun = True
            at = self.consumed = len(MAGIC)
        try:
            while at < len(held):
                if self.complete:
                    raise self._bad("data after the end")
                found = self._head(at)
                if found is None:
                    break
                (name, stamp, seq, headers, payload), start = found
                self._check(name, stamp, seq, headers, payload)
                end = start + name + headers + payload
                if end > len(held):
                    break
                body = bytes(held[start:end])
                self.consumed += end - at
                at = end
                time = stamp >> 1 if not stamp & 1 else -(stamp >> 1) - 1
                item = self._item(body[:name], time, seq, body[name : name + headers], body[name + headers :])
                if item is not None:
                    yield item
        finally:
            del held[:at]

    def finish(self) -> None:
        """The archive ends here. Raises BadArchive when it is not complete."""
        if not self.complete:
            raise self._bad("unexpected EOF")

    def _bad(self, reason: str) -> BadArchive:
        return BadArchive(f"archive: invalid archive stream, {reason} at byte {self.consumed}")

    def _head(self, at: int) -> tuple[tuple[int, int, int, int, int], int] | None:
        """The numbers before an entry and where its name begins; None while they are not all there."""
        held = self._held
        numbers: list[int] = []
        for _ in range(5):
            value = shift = 0
            while True:
                if at >= len(held):
                    return None
                byte = held[at]
                at += 1
                value |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
                if shift > 63:
                    raise self._bad("number too long")
            if value >> 64:
                raise self._bad("number too large")
            numbers.append(value)
        return cast("tuple[int, int, int, int, int]", tuple(numbers)), at

    def _check(self, name: int, stamp: int, seq: int, headers: int, payload: int) -> None:
        """Refuse what an entry claims to be before waiting for it."""
        if name > MAX_NAME:
            raise self._bad(f"a name of {name} bytes")
        if not seq and headers:
            raise self._bad("headers without a message")
        if seq and headers + payload > self._max_payload:
            raise self._bad(f"message {seq} of {headers + payload} bytes, the limit is {self._max_payload}")
        if payload > MAX_DOCUMENT:
            raise self._bad(f"an entry of {payload} bytes")
        if not name and (stamp or seq or payload):
            raise self._bad("an entry without a name")

    def _item(self, name: bytes, time: int, seq: int, headers: bytes, payload: bytes) -> Item | None:
        if not self._state:
            if name != STATE.encode() or seq:
                raise self._bad(f"expected {STATE}, found {name.decode('utf-8', 'replace')!r}")
            return self._take_state(time, self._document(name, payload))
        if self._consumers:
            text = name.decode("utf-8", "replace")
            if not text.startswith(CONSUMERS) or seq:
                raise self._bad(f"expected a consumer, found {text!r}")
            self._consumers -= 1
            return ArchivedConsumer(text.removeprefix(CONSUMERS), self._document(name, payload))
        if not name:
            self.complete = True
            return None
        if seq <= self._last:
            raise self._bad(f"message sequence {seq} out of order")
        if self._messages is not None:
            if not self._messages:
                raise self._bad(f"more messages than {STATE} says")
            self._messages -= 1
        self._last = seq
        return ArchivedMessage(seq, time, name, headers, payload)

    def _take_state(self, time: int, fields: dict[str, Any]) -> ArchivedState:
        numbers = [fields.get(key, 0) for key in ("messages", "bytes", "first_seq", "last_seq", "consumer_count")]
        if any(type(number) is not int or not 0 <= number < 1 << 64 for number in numbers):
            raise self._bad(f"nonsense in {STATE}")
        messages, _, first, last, self._consumers = numbers
        if last + 1 < first or (messages and not first) or messages > last - first + 1:
            raise self._bad(f"sequences {first} to {last} with {messages} messages")
        self._state = True
        self._messages = messages
        self._last = max(first - 1, 0)
        return ArchivedState(time, fields)

    def _document(self, name: bytes, payload: bytes) -> dict[str, Any]:
        self._documents += len(payload)
        if self._documents > MAX_DOCUMENTS or sum(map(payload.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise self._bad(f"{name.decode('utf-8', 'replace')} is too large")
        try:
            fields = loads(payload)
        except BadJson as error:
            raise self._bad(f"{name.decode('utf-8', 'replace')} is no JSON ({error})") from None
        if not isinstance(fields, dict):
            raise self._bad(f"{name.decode('utf-8', 'replace')} is no JSON object")
        return cast("dict[str, Any]", fields)
