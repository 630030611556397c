"""The route protocol's parser by itself: each sample whole and in pieces, by the run path and without it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimsnats.protocol.connect import BadConnect
from nimsnats.protocol.parser import LINES_KEPT, Failure, Line, Way
from nimsnats.protocol.route import RouteParser
from nimsnats.protocol.route_info import RouteConnect, RouteInfo, encode_connect, encode_info

Event = tuple[object, ...]

HEAD = b"NATS/1.0\r\n\r\n"


class Calls:
    """`RouteCommands` that writes down what it is told. With `fast`, subjects without an `x` have a way."""

    def __init__(self, *, fast: bool = True) -> None:
        self.lines: dict[bytes, Line[bytes]] = {}
        self.headers = True
        self.delivered = 0
        self.runs = 0
        self.fast = fast
        self.events: list[Event] = []
        self.parser: RouteParser[bytes] = RouteParser(self, 1024, 64)
        self._ways: dict[bytes, Event] = {}
        self._lanes: dict[bytes, bytes] = {}

    def arrival(
        self, account: bytes, subject: bytes, queues: tuple[bytes, ...], headers: bool, reply: bytes
    ) -> Way[bytes] | None:
        if not self.fast or b"x" in subject:
            return None
        lane = (b"H" if headers else b"R") + b" ".join((account, subject, *queues))
        lane = self._lanes.setdefault(lane, lane)  # a lane is recognised by its identity
        self._ways[lane] = (account, subject, queues)
        return lane, self, b""

    def run(self, lane: bytes, pieces: list[bytes], size: int) -> None:
        self.runs += 1
        headers = lane[:1] == b"H"
        for tail in pieces[1:]:
            line, _, body = tail.partition(b"\r\n")
            words = line.split(b" ")
            assert len(body) - 2 == int(words[-1])
            size -= len(body) - 2
            reply = words[0] if len(words) > 1 + headers else b""
            self.events.append(("routed", *self._ways[lane], reply, int(words[-2]) if headers else 0, body[:-2]))
        assert size == 0

    def routed(
        self, account: bytes, subject: bytes, queues: tuple[bytes, ...], reply: bytes, header: int, body: bytes
    ) -> None:
        self.events.append(("routed", account, subject, queues, reply, header, body))

    def interested(self, account: bytes, subject: bytes, queue: bytes, weight: int) -> None:
        self.events.append(("RS+", account, subject, queue, weight))

    def uninterested(self, account: bytes, subject: bytes, queue: bytes) -> None:
        self.events.append(("RS-", account, subject, queue))

    def route(self, subject: bytes, headers: bool, reply: bytes) -> Way[bytes] | None:
        return None

    def message(self, subject: bytes, reply: bytes, header: int, data: bytes, start: int, end: int) -> None:
        self.events.append(("PUB", subject))

    def over(self, *, first: bool) -> bool:
        return False

    def announced(self, subject: bytes) -> None: ...

    def subscribe(self, subject: bytes, queue: bytes, sid: bytes) -> None:
        self.events.append(("SUB", subject))

    def unsubscribe(self, sid: bytes, limit: int) -> None:
        self.events.append(("UNSUB", sid))

    def ping(self) -> None:
        self.events.append(("PING",))

    def pong(self) -> None:
        self.events.append(("PONG",))

    def connect(self, arg: bytes) -> None:
        self.events.append(("CONNECT", arg))

    def info(self, arg: bytes) -> None:
        self.events.append(("INFO", arg))

    def error(self, text: bytes) -> None:
        self.events.append(("-ERR", text))

    def early(self) -> bool:
        return False

    def fail(self, failure: Failure, detail: str) -> None:
        self.events.append(("fail", failure))


def routed(account: bytes, subject: bytes, *queues: bytes, reply: bytes = b"", header: int = 0, body: bytes) -> Event:
    return ("routed", account, subject, queues, reply, header, body)


SAMPLES: dict[bytes, Event] = {
    b"RS+ $G foo\r\n": ("RS+", b"$G", b"foo", b"", 1),
    b"RS+ $G foo q 3\r\n": ("RS+", b"$G", b"foo", b"q", 3),
    b"RS+ $G foo q 0\r\n": ("RS+", b"$G", b"foo", b"q", 1),
    b"rs+\t$G  foo \t q 3 \n": ("RS+", b"$G", b"foo", b"q", 3),
    b"LS+ L $G foo\r\n": ("RS+", b"$G", b"foo", b"", 1),
    b"LS+ L $G foo q 2\r\n": ("RS+", b"$G", b"foo", b"q", 2),
    b"RS- $G foo\r\n": ("RS-", b"$G", b"foo", b""),
    b"RS- $G foo q\r\n": ("RS-", b"$G", b"foo", b"q"),
    b"LS- L $G foo q\r\n": ("RS-", b"$G", b"foo", b"q"),
    b"RMSG $G foo 5\r\nhello\r\n": routed(b"$G", b"foo", body=b"hello"),
    b"RMSG $G foo 0\r\n\r\n": routed(b"$G", b"foo", body=b""),
    b"RMSG $G foo r 5\r\nhello\r\n": routed(b"$G", b"foo", reply=b"r", body=b"hello"),
    b"RMSG $G foo | 5\r\nhello\r\n": routed(b"$G", b"foo", reply=b"|", body=b"hello"),
    b"RMSG $G foo | q w 5\r\nhello\r\n": routed(b"$G", b"foo", b"q", b"w", body=b"hello"),
    b"RMSG $G foo + r q w 5\r\nhello\r\n": routed(b"$G", b"foo", b"q", b"w", reply=b"r", body=b"hello"),
    b"rmsg $G  foo 5\nhello\r\n": routed(b"$G", b"foo", body=b"hello"),
    b"HMSG $G foo 12 14\r\n" + HEAD + b"hi\r\n": routed(b"$G", b"foo", header=12, body=HEAD + b"hi"),
    b"HMSG $G foo r 12 14\r\n" + HEAD + b"hi\r\n": routed(b"$G", b"foo", reply=b"r", header=12, body=HEAD + b"hi"),
    b"HMSG $G foo | q 12 14\r\n" + HEAD + b"hi\r\n": routed(b"$G", b"foo", b"q", header=12, body=HEAD + b"hi"),
    b"HMSG $G foo 0 2\r\nhi\r\n": routed(b"$G", b"foo", body=b"hi"),
    b"LMSG L $G foo r 0 2\r\nhi\r\n": routed(b"$G", b"foo", reply=b"r", body=b"hi"),
    b"PING\r\n": ("PING",),
    b"PONG\r\n": ("PONG",),
    b"INFO {}\r\n": ("INFO", b"{}"),
    b"CONNECT {}\r\n": ("CONNECT", b"{}"),
    b"-ERR 'x'\r\n": ("-ERR", b"'x'"),
    b"SUB a 1\r\n": ("SUB", b"a"),
    b"PUB a 1\r\nx\r\n": ("PUB", b"a"),
    b"UNSUB 1\r\n": ("UNSUB", b"1"),
}
NOTHING = [b"A+ $G\r\n", b"A- $G\r\n", b"+OK\r\n"]
WRONG: dict[bytes, Failure] = {
    b"RS+ $G\r\n": Failure.VIOLATION,
    b"RS+ $G foo q\r\n": Failure.VIOLATION,
    b"RS+ $G foo q -1\r\n": Failure.VIOLATION,
    b"RS+ $G foo q 1 2\r\n": Failure.VIOLATION,
    b"LS+ $G foo\r\n": Failure.VIOLATION,
    b"RS- $G\r\n": Failure.VIOLATION,
    b"RS- $G foo q 1\r\n": Failure.VIOLATION,
    b"RMSG $G 5\r\nhello\r\n": Failure.VIOLATION,
    b"RMSG $G foo x\r\n": Failure.VIOLATION,
    b"RMSG $G foo 1234567890\r\n": Failure.VIOLATION,
    b"RMSG $G foo * r q 5\r\nhello\r\n": Failure.VIOLATION,
    b"RMSG $G foo 1025\r\n": Failure.PAYLOAD,
    b"HMSG $G foo 6 5\r\nhello\r\n": Failure.VIOLATION,
    b"HMSG $G foo x 5\r\nhello\r\n": Failure.VIOLATION,
    b"RMSG $G foo 5\r\nhello!!\r\n": Failure.UNKNOWN,
    b"RMSG $G foo 5\r\nhello\r!\r\n": Failure.UNKNOWN,
    b"RS* $G foo\r\n": Failure.UNKNOWN,
    b"RMSGX $G foo 1\r\n": Failure.UNKNOWN,
    b"MSG foo 1 1\r\nx\r\n": Failure.UNKNOWN,
    b"RS+ $G " + b"f" * 65 + b"\r\n": Failure.CONTROL_LINE,
    b"RMSG $G " + b"f" * 65 + b" 1\r\nx\r\n": Failure.CONTROL_LINE,
    b"RMSG $G " + b"f" * 80: Failure.CONTROL_LINE,
}


def told(*pieces: bytes, fast: bool = True) -> list[Event]:
    """What a parser says of some input."""
    calls = Calls(fast=fast)
    for piece in pieces:
        calls.parser.feed(piece)
    return calls.events


WAYS: list[Callable[[bytes], list[Event]]] = [
    told,
    lambda data: told(data, fast=False),
    lambda data: told(*(bytes([byte]) for byte in data)),
    lambda data: told(data + data)[1:],
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_understood(sample: bytes, way: Callable[[bytes], list[Event]]) -> None:
    assert way(sample) == [SAMPLES[sample]]


@pytest.mark.parametrize("sample", NOTHING)
def test_without_effect(sample: bytes) -> None:
    assert told(sample + b"PING\r\n") == told(*(bytes([byte]) for byte in sample), b"PING\r\n") == [("PING",)]


@pytest.mark.parametrize("sample", WRONG)
def test_refused(sample: bytes) -> None:
    assert told(sample) == told(sample, fast=False) == [("fail", WRONG[sample])]
    assert told(*(bytes([byte]) for byte in sample)) == [("fail", WRONG[sample])]


@given(st.lists(st.sampled_from(sorted(SAMPLES)), max_size=12), st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_cut_is_the_same(samples: list[bytes], cuts: list[int]) -> None:
    data = b"".join(samples)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges)]
    assert told(*pieces) == told(*pieces, fast=False) == [SAMPLES[sample] for sample in samples]


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([*SAMPLES, *WRONG])), max_size=8))
@settings(max_examples=150, deadline=None)
def test_garbage_is_an_event_never_an_exception(pieces: list[bytes]) -> None:
    whole = told(b"".join(pieces))
    assert sum(event[0] == "fail" for event in whole) <= 1
    assert told(*pieces, fast=False) == whole


def test_consecutive_messages_are_one_run_and_their_lines_are_kept() -> None:
    calls = Calls()
    calls.parser.feed(b"RMSG $G foo 1\r\na\r\nRMSG $G foo r 1\r\nb\r\nRMSG $G foo 1\r\nc\r\n" * 3)
    assert (calls.runs, len(calls.events), len(calls.lines)) == (1, 9, 1)
    for number in range(LINES_KEPT + 5):
        calls.parser.feed(b"RMSG $G s.%d 1\r\na\r\n" % number)
    assert len(calls.lines) <= LINES_KEPT


def test_only_connect_is_heard_before_connect() -> None:
    calls = Calls()
    calls.parser.awaiting_connect = True
    calls.parser.feed(b"RS+ $G foo\r\n")
    assert calls.events == [("fail", Failure.AUTHORIZATION)]


def test_info_there_and_back() -> None:
    fields = {"server_id": "N1", "server_name": "é", "port": 6222, "headers": True, "nimsnats": {"instance": "i"}}
    info = RouteInfo.parse(encode_info({**fields, "ip": "", "ldm": False, "connect_urls": []})[5:])
    assert (info.server_id, info.server_name, info.port, info.headers, info.node) == (
        "N1",
        "é",
        6222,
        True,
        {"instance": "i"},
    )
    assert info.raw == fields
    connect = RouteConnect.parse(encode_connect("N1", "X", "u", "p")[8:])
    assert (connect.name, connect.cluster, connect.user, connect.password) == ("N1", "X", "u", "p")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b'{"server_id":1}',
        b'{"port":true}',
        b'{"headers":1}',
        b'{"connect_urls":[1]}',
        b"\xff",
        b"[" * 5000,
    ],
)
def test_info_of_the_wrong_shape(text: bytes) -> None:
    with pytest.raises(BadConnect):
        RouteInfo.parse(text)


def test_info_says_little() -> None:
    info = RouteInfo.parse(b'{"server_id":"N","nimsnats":{"instance":"i","more":1},"ldm":null}')
    assert (info.node, info.lame_duck) == ({"instance": "i"}, False)
    assert RouteInfo.parse(b'{"nimsnats":true}').node is None
