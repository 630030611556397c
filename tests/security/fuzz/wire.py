"""Targets for what comes over a connection line by line: parsers of clients and routes, INFO, CONNECT, headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forest.signature import BadSignature, sign, verify
from nimsnats.jetstream.admission import nats_headers
from nimsnats.jetstream.clock import format_duration, format_time, parse_duration, parse_time
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.expiry import parse_ttl
from nimsnats.protocol import subject
from nimsnats.protocol.acks import AckRun, AckWatch
from nimsnats.protocol.connect import BadConnect, parse_connect
from nimsnats.protocol.headers import (
    header_block,
    header_value,
    status_block,
    with_headers,
    without_header,
    without_status,
)
from nimsnats.protocol.parser import AcksTaker, Way
from nimsnats.protocol.route_info import RouteConnect, RouteInfo, encode_info
from tests.protocol.recorder import Recorder
from tests.protocol.test_parser import FAILURES, SAMPLES
from tests.protocol.test_route_parser import SAMPLES as ROUTE_SAMPLES
from tests.protocol.test_route_parser import WRONG as ROUTE_WRONG
from tests.protocol.test_route_parser import Calls
from tests.security.fuzz.target import Target, pieces_of

_ACK = b"PUB $JS.ACK.S.C.1.%d.%d.1700000000000000000.0 4\r\n+ACK\r\n"
_ROUTE_ACK = b"RMSG $G $JS.ACK.S.C.1.%d.%d.1700000000000000000.0 4\r\n+ACK\r\n"
_REQUEST = b"PUB foo.bar _INBOX.1.%d 2\r\nhi\r\n"


def _taker(run: AckRun, events: list[Any], event: Callable[[bytes, bytes], tuple[object, ...]]) -> AcksTaker:
    """Writes acknowledgements of a run down as the messages that they are."""

    def take(seqs: list[int], text: bytes) -> None:
        lines = text.split(b"\r\n")
        assert not lines.pop()
        heads, bodies = lines[::2], lines[1::2]
        assert len(heads) == len(bodies) == len(seqs)
        for head, body, seq in zip(heads, bodies, seqs, strict=True):
            subject, size = head.removeprefix(run.verb).split(b" ")
            assert int(subject.split(b".")[5]) == seq and int(size) == len(body) == run.size
            events.append(event(subject, body))

    return take


class _Client(Recorder):
    """Events that are the same whichever way through the parser a message takes; any subject may come."""

    def route(self, subject: bytes, headers: bool, reply: bytes) -> Way[bytes] | None:
        way = super().route(subject, headers, reply)
        return None if way is None else ((b"H" if headers else b"P") + subject, self, way[2])

    def run(self, lane: bytes, pieces: list[bytes], size: int) -> None:
        header, subject = lane[:1] == b"H", lane[1:]
        assert pieces[0] == b""
        tails = pieces[2::2] if subject == b"a" else pieces[1:]
        assert set(pieces[1::2]) == {b"MSG a 1 "} or subject != b"a"
        for tail in tails:
            line, _, body = tail.partition(b"\r\n")
            words = line.split(b" ")
            assert body.endswith(b"\r\n") and int(words[-1]) == len(body) - 2
            size -= len(body) - 2
            reply = words[0] if len(words) > 1 + header else b""
            self.events.append(("message", subject, reply, int(words[-2]) if header else -1, body[:-2]))
        assert size == 0

    def acks(self, run: AckRun) -> AcksTaker | None:
        if not self.routed or run.consumer.startswith(b"x"):
            return None
        return _taker(run, self.events, lambda subject, body: ("message", subject, b"", -1, body))


def _client_events(pieces: list[bytes], *, routed: bool, waiting: bool) -> list[tuple[object, ...]]:
    client = _Client(routed=routed)
    client.parser.max_control_line = 256
    client.parser.awaiting_connect = waiting
    for piece in pieces:
        client.parser.feed(piece)
        assert len(client.parser.tail) <= sum(map(len, pieces))
    while client.parser.paused and not client.parser.stopped:
        client.parser.resume()
    assert sum(event[0] == "fail" for event in client.events) <= 1
    return client.events


def client_parser(data: bytes) -> None:
    """The parser of clients: cut anywhere, by any way, before and after authentication, the events are the same."""
    for waiting in (False, True):
        whole = _client_events([data], routed=True, waiting=waiting)
        assert _client_events(pieces_of(data), routed=True, waiting=waiting) == whole
        assert _client_events(pieces_of(data), routed=False, waiting=waiting) == whole


class _Peer(Calls):
    """The same for a route."""

    def rows(self, subject: bytes) -> bytes | None:
        return None

    def run_rows(self, lane: bytes, replies: list[bytes], payloads: list[bytes], size: int) -> None:
        raise AssertionError("rows without a lane")

    def acks(self, run: AckRun) -> AcksTaker | None:
        if not self.fast:
            return None

        def event(words: bytes, body: bytes) -> tuple[object, ...]:
            return ("routed", run.verb.split(b" ")[1], words, (), b"", 0, body)

        return _taker(run, self.events, event)


def _route_events(pieces: list[bytes], *, fast: bool, waiting: bool) -> list[tuple[object, ...]]:
    peer = _Peer(fast=fast)
    peer.parser.max_control_line = 256
    peer.parser.awaiting_connect = waiting
    for piece in pieces:
        peer.parser.feed(piece)
    assert sum(event[0] == "fail" for event in peer.events) <= 1
    return peer.events


def route_parser(data: bytes) -> None:
    """The parser of routes."""
    for waiting in (False, True):
        whole = _route_events([data], fast=True, waiting=waiting)
        assert _route_events(pieces_of(data), fast=True, waiting=waiting) == whole
        assert _route_events(pieces_of(data), fast=False, waiting=waiting) == whole


def introductions(data: bytes) -> None:
    """INFO and CONNECT, of clients and of servers."""
    for read in (RouteInfo.parse, RouteConnect.parse, parse_connect):
        try:
            read(data)
        except BadConnect as error:
            str(error).encode()
    try:
        info = RouteInfo.parse(data)
    except BadConnect:
        return
    line = encode_info({"server_id": info.server_id, "server_name": info.server_name, "port": info.port})
    assert line.count(b"\n") == 1 and line.endswith(b"\r\n")
    again = RouteInfo.parse(line[5:])
    assert again.port == info.port


def headers(data: bytes) -> None:
    """A header block: look-ups, additions, removals, and the numbers and times in the values that mean something."""
    block = data if data.startswith(b"NATS/1.0") else b"NATS/1.0\r\n" + data
    if not block.endswith(b"\r\n\r\n"):
        block += b"\r\n\r\n"
    for name in (b"Nats-TTL", b"Nats-Msg-Id", b"Nats-Expected-Last-Sequence"):
        value = header_value(block, name)
        without = without_header(block, name)
        assert value is None or len(without) < len(block)
        assert header_value(without, name) is None
        assert header_value(with_headers(without, [(name, b"1")]), name) == b"1" or b"\r\n\r\n" in without[:-4]
    without_status(block)
    nats_headers(block)
    values(data)


def values(data: bytes) -> None:
    """A TTL, a duration and a time, each with the way back where there is one."""
    try:
        ttl = parse_ttl(data)
    except ApiError:
        ttl = 1
    assert ttl == -1 or ttl > 0 or not data  # nothing is no TTL
    text = data.decode("utf-8", "replace")
    try:
        duration = parse_duration(text)
    except ValueError:
        pass
    else:
        assert parse_duration(format_duration(duration)) == duration
    try:
        time = parse_time(text)
    except ValueError:
        return
    assert abs(time) < 1 << 63
    if time > 0:
        assert parse_time(format_time(time)) == time


def subjects(data: bytes) -> None:
    """Two subjects, separated by a blank: what is said about one, and about both."""
    first, _, second = data.partition(b" ")
    for one in (first, second):
        subject.is_configurable(one)
        subject.has_empty_token(one)
        if subject.is_literal(one):
            assert subject.is_valid(one) and not subject.has_wildcard(one)
    if subject.is_valid(first) and subject.is_valid(second):
        if subject.is_literal(first):
            found = subject.matches(first, second)
            assert subject.matcher(second)(first) == found == subject.is_subset(first, second)
            assert subject.any_matcher([second])(first) == found
        if subject.is_subset(first, second):
            assert subject.collide(first, second) and subject.collide(second, first)


def acknowledgements(data: bytes) -> None:
    """The watch for runs of acknowledgements, and the runs themselves."""
    watch = AckWatch()
    line, _, rest = data.partition(b"\n")
    words = line.split(b" ")
    for _ in range(10):
        run = watch.seen(words[0], words[-1], 4096)
        if run is not None:
            seqs, after = run.take(rest, 0)
            assert 0 <= after <= len(rest) and len(seqs) <= len(rest) // 14


def signature(data: bytes) -> None:
    """The signature header of a webhook, as aiohttp hands it over."""
    header = data.decode("utf-8", "surrogateescape")
    try:
        verify(header, b"body", ["secret"], 1_700_000_000.0)
    except BadSignature as error:
        str(error)
    else:
        assert b"v1=" in data and b"t=" in data
    verify(sign(data, "secret", 1_700_000_000), data, ["other", "secret"], 1_700_000_000.0)


TARGETS = (
    Target(
        "parser",
        client_parser,
        [
            *SAMPLES,
            *FAILURES,
            b"".join(SAMPLES),
            b"".join(_REQUEST % number for number in range(45)),
            b"".join(_ACK % (number, number) for number in range(30)),
            b"".join(_ACK % (number, number) for number in range(12)) + b"PUB $JS.ACK.S.C.1.x 4\r\n+ACK\r\n",
            b'CONNECT {"wait":1}\r\nPUB a 1\r\nx\r\nPING\r\n',
        ],
        [b"PUB ", b"HPUB ", b"SUB ", b"UNSUB ", b"PING\r\n", b"\r\n", b" ", b"\t", b"$JS.ACK.", b"_INBOX.", b" 4\r\n"],
    ),
    Target(
        "route",
        route_parser,
        [
            *ROUTE_SAMPLES,
            *ROUTE_WRONG,
            b"".join(ROUTE_SAMPLES),
            b"".join(_ROUTE_ACK % (number, number) for number in range(30)),
        ],
        [b"RS+ ", b"RS- ", b"RMSG ", b"HMSG ", b"LMSG ", b"LS+ ", b"A+ ", b" | ", b" + ", b"\r\n", b"$G ", b" 4\r\n"],
    ),
    Target(
        "introductions",
        introductions,
        [
            b'{"server_id":"A","server_name":"n","port":4222,"connect_urls":["a:1"],"ldm":true,"nimsnats":{"http":"x"}}',
            b'{"user":"a","pass":"b","verbose":false,"protocol":1,"name":"\\ud800","jwt":null}',
            b"null",
            b"[]",
            b'{"port":1e999}',
            b'{"port":%s}' % (b"9" * 4500),
            b'{"a":' + b"[" * 2000,
        ],
        [b'"port":', b"null", b"NaN", b"1e9", b"\\ud800", b"[[[[", b'"nimsnats":{', b"true"],
        longest=8192,
    ),
    Target(
        "headers",
        headers,
        [
            header_block([(b"Nats-Msg-Id", b"1"), (b"Nats-TTL", b"1h30m")]),
            status_block(404, "Message Not Found"),
            b"Nats-TTL:  never\r\nNats-TTL: 2\r\nNats-Expected-Last-Sequence:1\r\n",
            b"99999999999999999999",
            b"2023-02-30T00:00:00Z",
            b"2262-04-11T23:47:16.854775807+23:59",
            b"-1.5h0.1ns",
            b"9" * 5000,
            b"9" * 5000 + b"h",
            b"9" * 60_000 + b"x",
            "\u0661\u0662\xb5s".encode(),
        ],
        [b"Nats-TTL: ", b"\r\n", b"NATS/1.0", b"never", b"h", b"\xc2\xb5s", b"T00:00:00Z", b"99999999999999999999"],
        longest=8192,
    ),
    Target(
        "subjects",
        subjects,
        [b"a.b.c a.*.c", b"a.> a.b", b"foo.bar foo.bar", b"> *", b"a..b .", b"\n \x00", b"a*b a*b", b"*.> >.*"],
        [b".", b"*", b">", b" ", b"..", b".>", b"*."],
        longest=256,
    ),
    Target(
        "acknowledgements",
        acknowledgements,
        [
            b"$JS.ACK.S.C.1.1.1.1.0 4\n" + b"".join(_ACK % (number, number) for number in range(5)),
            b"$JS.ACK.S.C.1.1.1.1.0 0\nPUB $JS.ACK.S.C.1.99999999999999999999.1.1.0 0\r\n\r\n",
        ],
        [b".", b"$JS.ACK.", b"99999999999999999999", b"+ACK\r\n", b" 4\r\n", b" 0\r\n"],
    ),
    Target(
        "signature",
        signature,
        [
            sign(b"body", "secret", 1_700_000_000).encode(),
            sign(b"body", "secret", 1).encode(),
            b"t=1,v1=\xff",
            "t=\uff11,v1=\xe9".encode(),
            b"v1=,v1=,t=",
        ],
        [b"t=", b"v1=", b",", b"v0=", b"\xc3\xa9", b"\xff"],
    ),
)
