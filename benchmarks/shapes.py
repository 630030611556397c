"""The shapes of floods: what a publisher that waits for nobody sends, and into which stream.

Owns the bytes of the messages and the streams' configurations. It opens no socket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.flooding import Chunks, chunks

STREAM: Final = "FLOOD"
SUBJECTS: Final = "flood.js.>"
CORE: Final = "flood.core.subject"
_SIZE: Final = 100
_MESSAGES: Final = 300_000
_LARGE: Final = 64 * 1024
_LARGE_MESSAGES: Final = 12_000
_INBOX: Final = "_INBOX.flood"
_CONNECTIONS: Final = 50


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of flood.

    `stream` is the configuration beyond name and subjects; None is a flood of core NATS, which `listener` hears.
    """

    name: str
    title: str
    build: Callable[[int, int], Chunks]
    stream: dict[str, Any] | None = field(default_factory=dict[str, Any])
    listener: str = ""
    count: int = _MESSAGES
    connections: int = 1
    prelude: bytes = b""
    unread: bool = False


def _plain(subject: Callable[[int], str], reply: str = "", size: int = _SIZE) -> Callable[[int, int], Chunks]:
    """Messages without headers; `subject` makes the subject of each from its number."""
    payload = b"x" * size
    tail = f" {reply} {size}\r\n".encode() if reply else f" {size}\r\n".encode()

    def build(first: int, count: int) -> Chunks:
        return chunks([b"PUB %b%b%b\r\n" % (subject(n).encode(), tail, payload) for n in range(first, first + count)])

    return build


def _repeated(subject: str, size: int) -> Callable[[int, int], Chunks]:
    """The same message again and again, for those that are too large to hold all of them."""
    message = b"PUB %b %d\r\n%b\r\n" % (subject.encode(), size, b"x" * size)
    each = max(1, 64 * 1024 // len(message))

    def build(_: int, count: int) -> Chunks:
        return [(message * each, each)] * (count // each)

    return build


def _headed(subject: Callable[[int], str], header: Callable[[int], str]) -> Callable[[int, int], Chunks]:
    """Messages with headers; `header` makes the lines of each from its number."""
    payload = b"x" * _SIZE

    def one(n: int) -> bytes:
        block = f"NATS/1.0\r\n{header(n)}\r\n\r\n".encode()
        head = f"HPUB {subject(n)} {len(block)} {len(block) + _SIZE}\r\n".encode()
        return b"%b%b%b\r\n" % (head, block, payload)

    return lambda first, count: chunks([one(n) for n in range(first, first + count)])


def _new(n: int) -> str:
    return f"flood.js.new.{n}"


def _one(_: int) -> str:
    return "flood.js.one"


_FOUR_HEADERS: Final = "Content-Type: text/plain\r\nTrace-Id: 0123456789abcdef\r\nOrder: 17\r\nX-Origin: bench"

SHAPES: Final = (
    Shape("core", "core flood that nobody hears", _plain(lambda _: CORE), None),
    Shape("core listener", "core flood with a listener", _plain(lambda _: CORE), None, "fast"),
    Shape("core slow listener", "core flood with a slow listener", _plain(lambda _: CORE), None, "slow"),
    Shape(
        "core large",
        "core flood of 64 KiB messages with a listener",
        _repeated(CORE, _LARGE),
        None,
        "fast",
        _LARGE_MESSAGES,
    ),
    Shape("new subjects", "stream, each message a new subject", _plain(_new)),
    Shape("one subject", "stream, one subject", _plain(_one)),
    Shape("headers", "stream, four headers each", _headed(_one, lambda _: _FOUR_HEADERS)),
    Shape("ids", "stream, a message id each", _headed(_one, lambda n: f"Nats-Msg-Id: order-{n}")),
    Shape("same id", "stream, all with the same message id", _headed(_one, lambda _: "Nats-Msg-Id: order")),
    Shape(
        "expectations",
        "stream, new subjects expected to be new",
        _headed(_new, lambda _: "Nats-Expected-Last-Subject-Sequence: 0"),
    ),
    Shape("refused", "stream, expectations that fail", _headed(_one, lambda _: "Nats-Expected-Last-Sequence: 777")),
    Shape("full refuses", "full stream that refuses new messages", _plain(_one), {"max_msgs": 1000, "discard": "new"}),
    Shape("full drops", "full stream that drops old messages", _plain(_one), {"max_msgs": 1000, "discard": "old"}),
    Shape("interest", "interest stream without consumers", _plain(_one), {"retention": "interest"}),
    Shape("memory", "memory stream, new subjects", _plain(_new), {"storage": "memory"}),
    Shape("large", "stream, 64 KiB messages", _repeated("flood.js.one", _LARGE), count=_LARGE_MESSAGES),
    Shape(
        "replies unread",
        "stream, acknowledgements asked for and never read",
        _plain(_one, f"{_INBOX}.1"),
        prelude=f"SUB {_INBOX}.* 1\r\n".encode(),
        unread=True,
    ),
    Shape(
        "replies read",
        "stream, acknowledgements asked for and not waited for",
        _plain(_one, f"{_INBOX}.1"),
        prelude=f"SUB {_INBOX}.* 1\r\n".encode(),
    ),
    Shape("connections", f"stream, {_CONNECTIONS} connections at once", _plain(_new), connections=_CONNECTIONS),
)
