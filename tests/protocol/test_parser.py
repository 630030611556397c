"""The parser by itself: each sample whole, byte by byte, and with more behind it; any cut gives the same events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimsnats.protocol.parser import LINES_KEPT, Failure, parse_size
from tests.protocol.recorder import Recorder

Event = tuple[object, ...]

SAMPLES: dict[bytes, Event] = {
    b"PUB foo 5\r\nhello\r\n": ("message", b"foo", b"", -1, b"hello"),
    b"PUB foo bar 5\r\nhello\r\n": ("message", b"foo", b"bar", -1, b"hello"),
    b"PUB foo 0\r\n\r\n": ("message", b"foo", b"", -1, b""),
    b"PUB foo 9\r\nhel\r\nPING\r\n": ("message", b"foo", b"", -1, b"hel\r\nPING"),
    b"pub\tfoo \t bar  5 \r\nhello\r\n": ("message", b"foo", b"bar", -1, b"hello"),
    b"PUB foo 5\nhello\r\n": ("message", b"foo", b"", -1, b"hello"),
    b"PUB foo 000000005\r\nhello\r\n": ("message", b"foo", b"", -1, b"hello"),
    b"PUB \xff\x0b 1\r\n\x00\r\n": ("message", b"\xff\x0b", b"", -1, b"\x00"),
    b"HPUB foo 12 17\r\nNATS/1.0\r\n\r\nhello\r\n": ("message", b"foo", b"", 12, b"NATS/1.0\r\n\r\nhello"),
    b"hpub foo re 12 12\r\nNATS/1.0\r\n\r\n\r\n": ("message", b"foo", b"re", 12, b"NATS/1.0\r\n\r\n"),
    b"SUB foo 1\r\n": ("sub", b"foo", b"", b"1"),
    b"sub\tfoo q\t\t1\n": ("sub", b"foo", b"q", b"1"),
    b"UNSUB 1\r\n": ("unsub", b"1", 0),
    b"UNSUB 1 5\r\n": ("unsub", b"1", 5),
    b"UNSUB 1 -5\r\n": ("unsub", b"1", -1),
    b"PING\r\n": ("ping",),
    b"pInGle bells\n": ("ping",),
    b"PONG\r\n": ("pong",),
    b'CONNECT {"a":1}\r\n': ("connect", b'{"a":1}'),
    b"CONNECT{}\r\n": ("connect", b"{}"),
    b"INFO {}\r\n": ("info", b"{}"),
    b"-ERR 'x y'\r\n": ("error", b"'x y'"),
}

FAILURES: dict[bytes, Failure] = {
    b"\r\n": Failure.UNKNOWN,
    b" PING\r\n": Failure.UNKNOWN,
    b"PUBX foo 1\r\n": Failure.UNKNOWN,
    b"PUB\r\n": Failure.UNKNOWN,
    b"MSG foo 1 1\r\n": Failure.UNKNOWN,
    b"PUB foo 2\r\nhi\n": Failure.UNKNOWN,
    b"PUB foo 2\r\nhi\rx": Failure.UNKNOWN,
    b"PUB foo 2\r\nhix": Failure.UNKNOWN,
    b"PUB foo\r\n": Failure.VIOLATION,
    b"PUB a b c 1\r\n": Failure.VIOLATION,
    b"PUB foo 0000000001\r\n": Failure.VIOLATION,
    b"PUB foo +1\r\n": Failure.VIOLATION,
    b"PUB foo 1_0\r\n": Failure.VIOLATION,
    b"PUB foo \xd9\xa1\r\n": Failure.VIOLATION,
    b"HPUB foo 3 2\r\n": Failure.VIOLATION,
    b"HPUB foo 2\r\n": Failure.VIOLATION,
    b"SUB foo\r\n": Failure.VIOLATION,
    b"SUB a b c d\r\n": Failure.VIOLATION,
    b"UNSUB 1 2 3\r\n": Failure.VIOLATION,
    b"PUB foo 1025\r\n": Failure.PAYLOAD,
    b"HPUB foo 1 1025\r\n": Failure.PAYLOAD,
    b"SUB " + b"a" * 63 + b" 1\r\n": Failure.CONTROL_LINE,
    b"PUB " + b"a" * 63 + b" 1\r\n": Failure.CONTROL_LINE,
    b"CONNECT {" + b" " * 64 + b"}\r\n": Failure.CONTROL_LINE,
    b"SUB " + b"a" * 65: Failure.CONTROL_LINE,
}


def parsed(*pieces: bytes, routed: bool = True) -> list[Event]:
    recorder = Recorder(routed=routed)
    for piece in pieces:
        recorder.parser.feed(piece)
    return recorder.events


@pytest.mark.parametrize("routed", [True, False])
@pytest.mark.parametrize("sample", SAMPLES)
def test_sample(sample: bytes, routed: bool) -> None:
    event = SAMPLES[sample]
    assert parsed(sample, routed=routed) == [event]
    assert parsed(*(bytes([byte]) for byte in sample), routed=routed) == [event]
    assert parsed(sample + sample + b"PI", routed=routed) == [event, event]
    assert parsed(sample[:-1], routed=routed) == []


@pytest.mark.parametrize("sample", FAILURES)
def test_failure(sample: bytes) -> None:
    event = ("fail", FAILURES[sample])
    assert parsed(sample) == [event]
    assert parsed(*(bytes([byte]) for byte in sample)) == [event]
    assert parsed(b"PING\r\n" + sample + b"PING\r\n", b"PING\r\n")[:2] == [("ping",), event]


def test_nothing_happens_after_a_failure() -> None:
    assert parsed(b"FOO\r\nPING\r\n", b"PING\r\n") == [("fail", Failure.UNKNOWN)]


def test_runs_are_collected_and_kept_in_order() -> None:
    recorder = Recorder()
    one, two = b"PUB a 1\r\n1\r\n", b"PUB b 1\r\n2\r\n"
    recorder.parser.feed(one * 3 + two * 2 + b"PUB x 1\r\n3\r\n" + one + b"PING\r\n" + one)
    bodies = [event[-1] for event in recorder.events]
    assert bodies == [b"1", b"1", b"1", b"2", b"2", b"3", b"1", "ping", b"1"]
    assert recorder.runs == 4


def test_known_lines_are_bounded() -> None:
    recorder = Recorder()
    for n in range(LINES_KEPT + 10):
        recorder.parser.feed(b"PUB s%d 0\r\n\r\n" % n)
    assert len(recorder.events) == LINES_KEPT + 10
    assert len(recorder.lines) <= LINES_KEPT


def test_a_known_line_still_has_its_payload_checked() -> None:
    assert parsed(b"PUB a 1\r\n1\r\nPUB a 1\r\n1\n\n")[-1] == ("fail", Failure.UNKNOWN)


def test_headers_must_have_been_agreed_on() -> None:
    recorder = Recorder(headers=False)
    recorder.parser.feed(b"HPUB foo 0 0\r\n\r\n")
    assert recorder.events == [("fail", Failure.VIOLATION)]


@pytest.mark.parametrize("first", [b"PING\r\n", b"P", b"X", b"\r\n", b"PUB foo 1\r\n"])
def test_only_connect_before_authentication(first: bytes) -> None:
    recorder = Recorder()
    recorder.parser.awaiting_connect = True
    recorder.parser.feed(first)
    assert recorder.events == [("fail", Failure.AUTHORIZATION)]


def test_connect_before_authentication() -> None:
    recorder = Recorder()
    recorder.parser.awaiting_connect = True
    recorder.parser.feed(b"CONN")
    recorder.parser.feed(b"ECT {}\r\nPING\r\n")
    assert recorder.events == [("connect", b"{}"), ("ping",)]


def test_a_paused_parser_holds_what_follows() -> None:
    recorder = Recorder()
    recorder.parser.feed(b"CONNECT wait\r\nPING\r\nPU")
    recorder.parser.feed(b"B foo 1\r\nx\r\n")
    assert recorder.events == [("connect", b"wait")]
    recorder.parser.resume()
    assert recorder.events[1:] == [("ping",), ("message", b"foo", b"", -1, b"x")]


@pytest.mark.parametrize("filler", [b"PING" + b"x" * 100_000, b"PUB " + b" " * 100_000, b"+OK" + b"\r" * 100_000])
def test_endless_lines_are_not_kept(filler: bytes) -> None:
    recorder = Recorder()
    for start in range(0, len(filler), 1000):
        recorder.parser.feed(filler[start : start + 1000])
        assert len(recorder.parser.tail) <= 1100
    assert recorder.events == []


def test_front_spares_the_join() -> None:
    recorder = Recorder()
    recorder.parser.feed(b"PUB foo 5\r\nhe")
    front = recorder.parser.front(100)
    assert front == b"PUB foo 5\r\nhe"
    assert recorder.parser.front(5) == b""
    recorder.parser.joined(front + b"llo\r\n")
    assert recorder.events == [SAMPLES[b"PUB foo 5\r\nhello\r\n"]]


@pytest.mark.parametrize(
    ("text", "size"), [(b"0", 0), (b"007", 7), (b"999999999", 999999999), (b"", -1), (b"1" * 10, -1), (b"\xb2", -1)]
)
def test_sizes(text: bytes, size: int) -> None:
    assert parse_size(text) == size


_token = st.sampled_from([b"a", b"b", b"foo.bar", b"x", b"_INBOX.1"])
_blank = st.sampled_from([b" ", b"  ", b"\t"])
_eol = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"])
_body = st.sampled_from([b"", b"hi", b"\r\n", b"PUB a 2\r\nhi\r\n", b"\x00" * 100])


@st.composite
def _publish(draw: st.DrawFn) -> bytes:
    body = draw(_body)
    words = [draw(st.sampled_from([b"PUB", b"pub", b"PUB", b"PUB"])), draw(_token)]
    if draw(st.booleans()):
        words.append(draw(_token))
    if draw(st.integers(0, 3)) == 0:
        words[0] = b"HPUB"
        words.append(b"%d" % draw(st.integers(0, len(body))))
    words.append(b"%d" % len(body))
    return draw(_blank).join(words) + draw(_eol) + body + b"\r\n"


def _request(number: int, body: bytes = b"hi") -> bytes:
    return b"PUB foo.bar _INBOX.1.%d %d\r\n%b\r\n" % (number, len(body), body)


def test_requests_of_one_kind_are_taken_in_columns() -> None:
    recorder = Recorder()
    stream = b"".join(map(_request, range(100)))
    for start in range(0, len(stream), 700):
        recorder.parser.feed(stream[start : start + 700])
    assert [event[2] for event in recorder.events] == [b"_INBOX.1.%d" % number for number in range(100)]
    assert recorder.in_columns > 50


@pytest.mark.parametrize(
    "stranger",
    [
        b"PING\r\n",
        b"PUB a 1\r\n1\r\n",
        _request(0, b"longer"),
        b"PUB foo.bar _INBOX.1.a.b 2\r\nhi\r\n",
        b"PUB foo.bar _INBOX.1. 2\r\nhi\r\n",
        b"PUB foo.bar  _INBOX.1.a 2\r\nhi\r\n",
        b"PUB foo.bar _INBOX.1.a\x0b 2\r\nhi\r\n",
        b"PUB foo.bar _INBOX.1.a b 2\r\nhi\r\n",
        b"PUB foo.bar _INBOX.1.%b 2\r\nhi\r\n" % (b"a" * 40),
        b"PUB foo.bar _INBOX.1.a 2\r\nhi\n\n",
        b"PUB foo.bar _INBOX.1.a 2\r\nhix",
        b"FOO\r\n",
    ],
)
def test_what_stands_among_requests_of_one_kind_is_seen_in_its_place(stranger: bytes) -> None:
    many = b"".join(map(_request, range(50)))
    whole = many + stranger + many + stranger + many
    assert parsed(many, many, whole) == parsed(many, many, whole, routed=False)


_command = st.one_of(
    st.integers(0, 9).map(_request),
    _publish(),
    _publish(),
    st.sampled_from([sample for sample in SAMPLES if not sample.startswith(b"PUB \xff")]),
    st.sampled_from(list(FAILURES)),
    st.binary(max_size=8),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_command, max_size=12), st.lists(st.integers(0, 2000), max_size=8), st.sampled_from([0, 40]))
def test_any_cut_gives_the_same_events(commands: list[bytes], cuts: list[int], requests: int) -> None:
    stream = b"".join([*map(_request, range(requests)), *commands])
    points = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    pieces = [stream[a:b] for a, b in pairwise(points)]
    whole = parsed(stream)
    assert parsed(*pieces) == whole
    assert parsed(*pieces, routed=False) == whole
