"""Protocol traces in nats-server's notation: `<<-` is what a client sent, `->>` what it was sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nimsnats.broker.connection import Connection

TRACE: Final = 5
"""Log level below DEBUG for protocol traces."""


def readable(raw: bytes) -> str:
    """Bytes of the protocol as one line of a log."""
    return _escaped(raw.decode("utf-8", "backslashreplace"))


def quoted(words: str) -> str:
    """A client's own words in double quotes, as one line of a log (Go's %q)."""
    return '"' + _escaped(words.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _escaped(words: str) -> str:
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def published(connection: Connection, subject: bytes, reply: bytes, header: int, body: bytes) -> None:
    """A PUB, or an HPUB when `header` (its length) is not negative."""
    words = [subject, reply, b"" if header < 0 else b"%d" % header, b"%d" % len(body)]
    verb = "PUB" if header < 0 else "HPUB"
    connection.log(TRACE, "<<- [%s %s]", verb, readable(b" ".join(word for word in words if word)))
    connection.log(TRACE, "<<- MSG_PAYLOAD: [%s]", _payload(body))


def delivered(connection: Connection, prefix: bytes, tail: bytes) -> None:
    """A MSG or HMSG."""
    line, _, body = (prefix + tail).partition(b"\r\n")
    connection.log(TRACE, "->> [%s]", readable(line))
    connection.log(TRACE, "->> MSG_PAYLOAD: [%s]", _payload(body[:-2]))


def _payload(body: bytes) -> str:
    return quoted(body.decode("utf-8", "backslashreplace"))
