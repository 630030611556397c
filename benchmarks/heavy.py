"""Heavy requests and long pipelines: the bytes of each, and what has to be there before.

Owns the table of requests. It measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.asking import INBOX
from benchmarks.scenario import Settings
from benchmarks.stock import BUCKET, GROUPS, KEYS, STREAM

OWN: Final = "OWN"
"""The stream that a request has for itself, because it changes it."""
CONSUMER: Final = "C"
FULL: Final = 1_000_000
"""Subjects of the whole stock; a stream of its own is as much smaller as the stock is."""
_OWN_MESSAGES: Final = 500_000
_OWN_SUBJECTS: Final = 50_000
_JS: Final = "$JS.API."


@dataclass(frozen=True, slots=True)
class Setup:
    """What a request needs: a stream of its own with `messages` in it, API requests before, protocol lines at the end.

    `before` are lines of the asker's own connection, such as subscriptions.
    """

    config: dict[str, Any] | None = None
    messages: int = 0
    requests: tuple[tuple[str, dict[str, Any]], ...] = ()
    after: tuple[str, ...] = ()
    before: Callable[[Settings], bytes] = lambda settings: b""


@dataclass(frozen=True, slots=True)
class Request:
    """One heavy request: `data` makes its bytes, `replies` says how many answers complete it."""

    name: str
    title: str
    data: Callable[[Settings], bytes]
    replies: Callable[[Settings], int] = lambda settings: 1
    setup: Setup = field(default_factory=Setup)
    mark: str = INBOX


def own(n: int) -> str:
    """The subject of the n-th message of a stream of its own."""
    return f"own.{n % 100}.{n % _OWN_SUBJECTS}"


def amount(count: int) -> Callable[[Settings], int]:
    """So many, scaled."""
    return lambda settings: max(1, int(count * settings.scale))


def none(_: Settings) -> int:
    """Nothing is answered but the PING."""
    return 0


def publish(subject: str, body: bytes, reply: str = f"{INBOX}.1") -> bytes:
    """One PUB."""
    return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(body), body)


def headed(subject: str, lines: str, body: bytes = b"x") -> bytes:
    """One HPUB."""
    block = f"NATS/1.0\r\n{lines}\r\n\r\n".encode()
    sizes = f"{len(block)} {len(block) + len(body)}"
    return f"HPUB {subject} {INBOX}.1 {sizes}\r\n".encode() + block + body + b"\r\n"


def api(subject: str, body: dict[str, Any] | None = None) -> bytes:
    """One API request."""
    return publish(_JS + subject, json.dumps(body).encode() if body is not None else b"")


def _once(subject: str, body: dict[str, Any] | None = None) -> Callable[[Settings], bytes]:
    data = api(subject, body)
    return lambda settings: data


def _pipeline(message: bytes, count: int) -> Callable[[Settings], bytes]:
    return lambda settings: message * amount(count)(settings)


def _numbered(line: Callable[[int], bytes], count: int) -> Callable[[Settings], bytes]:
    return lambda settings: b"".join(line(n) for n in range(amount(count)(settings)))


def _consumer(name: str, config: dict[str, Any], stream: str = STREAM) -> tuple[str, dict[str, Any]]:
    body = {"stream_name": stream, "config": {"name": name, "ack_policy": "explicit", **config}}
    return f"CONSUMER.CREATE.{stream}.{name}", body


def _creates(name: str, config: dict[str, Any], stream: str = STREAM) -> Callable[[Settings], bytes]:
    subject, body = _consumer(name, config, stream)
    return _once(subject, body)


_MANY_STREAM: Final[dict[str, Any]] = {"name": OWN, "subjects": ["own.>"]}
_FILLED: Final = Setup(_MANY_STREAM, _OWN_MESSAGES)
_EMPTY: Final = Setup(_MANY_STREAM)
_GONE: Final = Setup(after=(f"STREAM.DELETE.{OWN}",))
_ONE: Final = Setup(after=(f"CONSUMER.DELETE.{STREAM}.X",))
_C: Final = Setup(requests=(_consumer(CONSUMER, {}),), after=(f"CONSUMER.DELETE.{STREAM}.{CONSUMER}",))
_IDLE: Final = Setup(
    requests=(_consumer(CONSUMER, {"deliver_policy": "new"}),), after=(f"CONSUMER.DELETE.{STREAM}.{CONSUMER}",)
)


def _update(**changed: Any) -> Callable[[Settings], bytes]:
    return _once(f"STREAM.UPDATE.{OWN}", {**_MANY_STREAM, "storage": "file", **changed})


def _subscriptions(subject: Callable[[int], str], count: int, queue: str = "") -> Callable[[Settings], bytes]:
    return _numbered(lambda n: f"SUB {subject(n)} {queue}{n}\r\n".encode(), count)


def _fan(settings: Settings) -> bytes:
    return _subscriptions(lambda n: "q.fan", 5000)(settings)


def _watched() -> list[str]:
    return [f"$KV.BIG.k.{n % 100}.{n}" for n in range(0, KEYS, KEYS // 1000)]


def _pull(batch: int, expires: float = 0) -> bytes:
    body = {"batch": batch, **({"expires": int(expires * 1e9)} if expires else {"no_wait": True})}
    return api(f"CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}", body)


ASKED: Final = (
    Request("nothing", "nothing but a PING", lambda settings: b"", none),
    Request(
        "objects", "100,000 times {} as a request", lambda s: publish(f"{_JS}STREAM.INFO.{STREAM}", b"{}" * 100_000)
    ),
    Request(
        "pulls",
        "100,000 pipelined pulls that wait",
        _pipeline(_pull(1, 60), 100_000),
        lambda s: amount(100_000)(s) - 512,
        _IDLE,
    ),
    Request(
        "multi-last",
        "20 wildcards in one multi-last",
        lambda s: api(f"DIRECT.GET.{STREAM}", {"multi_last": [f"stock.*.{n * 7}" for n in range(20)]}),
        lambda s: 21,
    ),
    Request(
        "direct gets",
        "100,000 pipelined direct gets",
        _pipeline(api(f"DIRECT.GET.{STREAM}", {"last_by_subj": "stock.7.7"}), 100_000),
        amount(100_000),
    ),
    Request(
        "create subjects",
        "STREAM.CREATE with 95 KB of subjects",
        _once("STREAM.CREATE.OWN", {"name": "OWN", "subjects": [f"own.many.subjects.{n}" for n in range(4000)]}),
        setup=_GONE,
    ),
    Request(
        "stream infos",
        "100,000 pipelined STREAM.INFO",
        _pipeline(api(f"STREAM.INFO.{STREAM}"), 100_000),
        amount(100_000),
    ),
    Request(
        "create filters",
        "CONSUMER.CREATE with 115 KB of filters",
        _creates("X", {"filter_subjects": [f"stock.{n % GROUPS}.other.{n}" for n in range(5000)]}),
        setup=_ONE,
    ),
    Request(
        "acks",
        "300,000 acknowledgements of nothing",
        _pipeline(b"PUB $JS.ACK.STOCK.C.1.1.1.1.0 4\r\n+ACK\r\n", 300_000),
        none,
        _C,
    ),
    Request(
        "ttl headers",
        "900 KB of repeated TTL headers",
        lambda s: headed("own.x", "\r\n".join(["Nats-TTL: 1h"] * 64_000)),
        setup=Setup({**_MANY_STREAM, "allow_msg_ttl": True}),
    ),
    Request("subscribes", "200,000 SUBs in one go", _subscriptions(lambda n: f"sub.{n % 500}.{n}", 200_000), none),
    Request(
        "watch",
        "watch of 1,000 of 100,000 keys",
        _creates(
            "W",
            {
                "deliver_policy": "last_per_subject",
                "deliver_subject": "_INBOX.watch",  # subscribed to literally, because nats-server asks for that
                "filter_subjects": _watched(),
                "ack_policy": "none",
                "mem_storage": True,
            },
            BUCKET,
        ),
        lambda s: 1000,
        Setup(after=(f"CONSUMER.DELETE.{BUCKET}.W",), before=lambda s: b"SUB _INBOX.watch w\r\n"),
        "$KV.BIG.",
    ),
    Request(
        "fan-out",
        "200 publishes to 5,000 subscriptions",
        lambda s: b"PUB q.fan 16\r\n0123456789abcdef\r\n" * 200,
        lambda s: 200 * amount(5000)(s),
        Setup(before=_fan),
        "q.fan",
    ),
    Request("info subjects", "STREAM.INFO of all subjects", _once(f"STREAM.INFO.{STREAM}", {"subjects_filter": ">"})),
    Request(
        "lower per subject",
        "lower max_msgs_per_subject, 500,000 messages",
        _update(max_msgs_per_subject=1),
        setup=_FILLED,
    ),
    Request(
        "filtered consumer",
        "consumer filtered by a wildcard",
        _creates("X", {"filter_subject": "stock.*.77"}),
        setup=_ONE,
    ),
    Request(
        "last per subject",
        "consumer of the last message per subject",
        _creates("X", {"deliver_policy": "last_per_subject", "filter_subject": "stock.>"}),
        setup=_ONE,
    ),
    Request("lower messages", "lower max_msgs, 500,000 messages", _update(max_msgs=1000), setup=_FILLED),
    Request(
        "purge keep", "purge that keeps 10, 500,000 messages", _once(f"STREAM.PURGE.{OWN}", {"keep": 10}), setup=_FILLED
    ),
    Request("max age", "a new max_age, 500,000 messages", _update(max_age=3_600_000_000_000), setup=_FILLED),
    Request(
        "last of wildcard",
        "last message of a wildcard",
        _once(f"STREAM.MSG.GET.{STREAM}", {"last_by_subj": "stock.*.78"}),
    ),
    Request(
        "next of wildcard",
        "next message of a wildcard",
        lambda s: api(f"STREAM.MSG.GET.{STREAM}", {"seq": 1, "next_by_subj": f"stock.*.{s.subjects - 1}"}),
    ),
    Request(
        "expected last",
        "1,000 wildcard checks of the last sequence",
        lambda s: (
            headed(
                "stock.7.7",
                "Nats-Expected-Last-Subject-Sequence: 79\r\nNats-Expected-Last-Subject-Sequence-Subject: stock.*.78",
            )
            * 1000
        ),
        lambda s: 1000,
    ),
    # what follows is not of the first search
    Request(
        "nested",
        "100,000 nested brackets as a request",
        lambda s: publish(f"{_JS}STREAM.INFO.{STREAM}", b"[" * 100_000),
    ),
    Request(
        "digits",
        "a number of 100,000 digits",
        lambda s: publish(f"{_JS}STREAM.MSG.GET.{STREAM}", b'{"seq":' + b"7" * 100_000 + b"}"),
    ),
    Request(
        "purge filter",
        "purge of a wildcard, 500,000 messages",
        _once(f"STREAM.PURGE.{OWN}", {"filter": "own.*.77"}),
        setup=_FILLED,
    ),
    Request(
        "purge half",
        "purge up to a sequence, 500,000 messages",
        _once(f"STREAM.PURGE.{OWN}", {"seq": 250_000}),
        setup=_FILLED,
    ),
    Request("purge", "purge of everything, 500,000 messages", _once(f"STREAM.PURGE.{OWN}"), setup=_FILLED),
    Request("delete stream", "STREAM.DELETE of 500,000 messages", _once(f"STREAM.DELETE.{OWN}"), setup=_FILLED),
    Request("lower bytes", "lower max_bytes, 500,000 messages", _update(max_bytes=1_000_000), setup=_FILLED),
    Request(
        "deletes",
        "20,000 pipelined deletes of single messages",
        _numbered(lambda n: api(f"STREAM.MSG.DELETE.{OWN}", {"seq": 2 * n + 1}), 20_000),
        amount(20_000),
        Setup(_MANY_STREAM, 50_000),
    ),
    Request(
        "consumers",
        "3,000 pipelined CONSUMER.CREATE",
        _numbered(lambda n: api(*_consumer(f"N{n}", {"mem_storage": True, "filter_subject": "own.7.7"}, OWN)), 3000),
        amount(3000),
        Setup(_MANY_STREAM, 1000),
    ),
    Request("account infos", "50,000 pipelined account infos", _pipeline(api("INFO"), 50_000), amount(50_000)),
    Request(
        "names",
        "20,000 pipelined look-ups of a stream by subject",
        _pipeline(api("STREAM.NAMES", {"subject": "stock.7.7"}), 20_000),
        amount(20_000),
    ),
    Request("pings", "500,000 pipelined PINGs", _pipeline(b"PING\r\n", 500_000), none),
    Request("wildcard subscribes", "50,000 SUBs of wildcards", _subscriptions(lambda n: f"sub.*.{n}.>", 50_000), none),
    Request(
        "unsubscribes",
        "200,000 UNSUBs in one go",
        _numbered(lambda n: f"UNSUB {n}\r\n".encode(), 200_000),
        none,
        Setup(before=_subscriptions(lambda n: f"sub.{n % 500}.{n}", 200_000)),
    ),
    Request(
        "queue",
        "20,000 publishes to a group of 5,000",
        lambda s: b"PUB q.group 16\r\n0123456789abcdef\r\n" * 20_000,
        lambda s: 20_000,
        Setup(before=_subscriptions(lambda n: "q.group g", 5000)),
        "q.group",
    ),
    Request(
        "long subjects",
        "2,000 publishes with 1,000 tokens each",
        lambda s: publish("own." + "t." * 1000 + "x", b"x") * 2000,
        lambda s: 2000,
        _EMPTY,
    ),
    Request(
        "many headers",
        "a message with 30,000 headers",
        lambda s: headed("own.x", "\r\n".join(f"Header-{n}: {n}" for n in range(30_000))),
        setup=_EMPTY,
    ),
    Request(
        "batch get",
        "direct get of 10,000 messages",
        lambda s: api(f"DIRECT.GET.{STREAM}", {"seq": 1, "batch": 10_000, "next_by_subj": "stock.>"}),
        lambda s: 10_001,
    ),
    Request(
        "fetch",
        "a pull of 50,000 messages",
        lambda s: _pull(min(50_000, s.subjects), 30),
        lambda s: min(50_000, s.subjects),
        Setup(requests=(_consumer(CONSUMER, {"ack_policy": "none"}),), after=_C.after),
        "stock.",
    ),
    Request(
        "sparse fetch",
        "a pull of one in 1,000 subjects",
        lambda s: _pull(s.subjects // GROUPS, 30),
        lambda s: s.subjects // GROUPS,
        Setup(requests=(_consumer(CONSUMER, {"ack_policy": "none", "filter_subject": "stock.7.*"}),), after=_C.after),
        "stock.",
    ),
    Request(
        "start time",
        "consumer from a time in the middle",
        _creates(
            "X",
            {
                "deliver_policy": "by_start_time",
                "opt_start_time": "2020-01-01T00:00:00Z",
                "filter_subject": "stock.*.77",
            },
        ),
        setup=_ONE,
    ),
    Request(
        "other filter",
        "another filter for a consumer",
        _creates(CONSUMER, {"filter_subject": "stock.*.78"}),
        setup=Setup(requests=(_consumer(CONSUMER, {"filter_subject": "stock.*.77"}),), after=_C.after),
    ),
    Request(
        "stream subjects",
        "other subjects for a stream of 500,000 messages",
        _update(subjects=["own.>", *(f"more.{n}.>" for n in range(500))]),
        setup=_FILLED,
    ),
)


def names(requests: Sequence[Request] = ASKED) -> list[str]:
    """The requests' names in order."""
    return [request.name for request in requests]
