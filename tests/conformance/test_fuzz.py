"""Generated conversations: the oracle and we must say the same, whatever the client says.

Each example is one connection's whole life, sent at once and ended by closing the sending side. The second test keeps
several connections in step and lets Hypothesis choose who does what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.server import Broker
from nimsnats.runtime import Runtime
from tests.conformance.oracle import Oracle
from tests.conformance.transcript import Transcript, converse, normalise

# Not generated: HMSG (nats-server takes one from a client for an empty publish, by accident).

_words = [
    b"foo",
    b"foo.bar",
    b"foo.*",
    b"foo.>",
    b">",
    b"*",
    b"a..b",
    b"x.y.z",
    b"*.bar",
    b"in.1",
    b"\xff\xfe",
    b"foo.>.x",
]
_subject = st.sampled_from(_words)
_sid = st.sampled_from([b"1", b"2", b"3", b"abc"])
_blank = st.sampled_from([b" ", b" ", b" ", b"  ", b"\t", b" \t "])
_eol = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n"])
_payload = st.sampled_from([b"", b"hi", b"PING\r\n", b"\r\n", b"\x00\x01", b"x" * 600])
_OPTIONS = (
    b'{"verbose":false,"pedantic":false}',
    b'{"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1}',
    b'{"verbose":true,"pedantic":false,"headers":true}',
    b'{"verbose":false,"pedantic":true}',
    b'{"verbose":false,"pedantic":false,"echo":false,"headers":true,"no_responders":true}',
    b"{}",
)


@st.composite
def _line(draw: st.DrawFn, verbs: Sequence[bytes], *arguments: st.SearchStrategy[bytes]) -> bytes:
    words = [draw(st.sampled_from(verbs)), *(draw(argument) for argument in arguments)]
    return draw(_blank).join(words) + draw(_eol)


@st.composite
def _publish(draw: st.DrawFn) -> bytes:
    body = draw(_payload)
    words = [draw(st.sampled_from([b"PUB", b"PUB", b"pub"])), draw(_subject)]
    if draw(st.booleans()):
        words.append(draw(_subject))
    if draw(st.integers(0, 4)) == 0:
        words[0] = b"HPUB"
        words.append(b"%d" % draw(st.integers(0, len(body))))
    words.append(b"%d" % len(body))
    return draw(_blank).join(words) + draw(_eol) + body + b"\r\n"


_good = st.one_of(
    _publish(),
    _publish(),
    _line([b"SUB", b"sub"], _subject, _sid),
    # A queue group of its own for each sid: which one of several members is asked is a draw.
    _line([b"SUB"], _subject, st.sampled_from([b"q1 1", b"q2 2", b"q3 3"])),
    _line([b"UNSUB"], _sid),
    _line([b"UNSUB"], _sid, st.sampled_from([b"1", b"2", b"3", b"0", b"x"])),
    _line([b"PING", b"PONG", b"+OK", b"ping"]),
    st.sampled_from([b"CONNECT " + options + b"\r\n" for options in _OPTIONS]),
)
_bad = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"PUB foo 5\r\nhi\r\n", b"PUB foo 2\r\nhello\r\n", b"PUB foo\r\n", b"PUB foo -1\r\n", b"PUB foo 9999999\r\n",
         b"SUB foo\r\n", b"SUB a b c d\r\n", b"UNSUB 1 2 3\r\n", b"FOO\r\n", b"MSG a 1 1\r\nx\r\n", b"CONNECT {\r\n",
         b"HPUB foo 9 2\r\nhi\r\n", b"SUB " + b"a" * 400, b"-ERR x\r\n", b"INFO {}\r\n", b"PUB foo 2\r\nh", b"PI"]
    ),
)  # fmt: skip


def _answers(oracle: Oracle, *pieces: bytes) -> tuple[Transcript, Transcript]:
    """The same conversation with both, on a loop of its own (Hypothesis calls tests synchronously)."""

    async def both() -> tuple[Transcript, Transcript]:
        server = Broker(BrokerOptions(host="127.0.0.1", port=-1), Runtime.real())
        await server.start()
        try:
            return await converse(oracle.port, *pieces), await converse(server.port, *pieces)
        finally:
            await server.stop()

    return asyncio.run(both())


def _same(oracle: Oracle, *pieces: bytes) -> None:
    theirs, ours = _answers(oracle, *pieces)
    assert ours.frames == theirs.frames or (theirs.reset and ours.agrees(theirs))


_repeat = st.sampled_from([1, 1, 2, 4])
"""Conversations are repeated so that subjects become known and messages travel in runs."""


def _script(first: bytes, commands: list[bytes], repeat: int, end: bytes = b"") -> bytes:
    greeting = b"CONNECT " + first + b"\r\n" if first else b""
    script = greeting + b"".join(commands * repeat) + end
    return script.replace(b"HMSG", b"").replace(b"hmsg", b"")


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.sampled_from((b"", *_OPTIONS)), st.lists(_good, max_size=14), _repeat, _bad | st.just(b""))
def test_any_conversation(oracle: Oracle, first: bytes, commands: list[bytes], repeat: int, end: bytes) -> None:
    _same(oracle, _script(first, commands, repeat, end))


@pytest.mark.extended
@pytest.mark.timeout(1800)
@settings(
    max_examples=20_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from((b"", *_OPTIONS)), st.lists(st.one_of(_good, _good, _good, _bad), max_size=30), _repeat)
def test_many_conversations(oracle: Oracle, first: bytes, commands: list[bytes], repeat: int) -> None:
    _same(oracle, _script(first, commands, repeat))


_step = st.tuples(st.integers(0, 2), st.lists(_good.filter(lambda line: not line.startswith(b"CONNECT")), max_size=4))


class _Talker:
    """One connection that is kept in step: after each turn a PING tells that everything before it was processed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = bytearray()

    @classmethod
    async def open(cls, port: int) -> _Talker:
        talker = cls(*await asyncio.open_connection("127.0.0.1", port))
        await talker.reader.readuntil(b"\r\n")
        await talker.turn(b"CONNECT " + _OPTIONS[1] + b"\r\n")
        return talker

    async def turn(self, data: bytes) -> None:
        mark = len(self.received)
        self.writer.write(data + b"PING\r\n")
        expected = 1 + data.count(b"PING\n") + data.count(b"PING\r\n") + data.count(b"ping\r\n") + data.count(b"ping\n")
        while sum(f == b"PONG\r\n" for f in normalise(b"INFO {}\r\n" + bytes(self.received[mark:]))) < expected:
            more = await self.reader.read(65536)
            if not more:
                return
            self.received += more


async def _play(port: int, steps: list[tuple[int, list[bytes]]]) -> list[list[bytes]]:
    talkers = [await _Talker.open(port) for _ in range(3)]
    for who, commands in steps:
        await talkers[who].turn(b"".join(commands))
        for other in talkers:
            await other.turn(b"")
    for talker in talkers:
        talker.writer.close()
    return [normalise(b"INFO {}\r\n" + bytes(talker.received)) for talker in talkers]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=st.lists(_step, max_size=6))
def test_several_connections_in_step(oracle: Oracle, steps: list[tuple[int, list[bytes]]]) -> None:
    # Payloads that look like PING would confuse the counting, and which member of a queue group is asked is a draw.
    unfit = (b"PING\r\n\r\n", b"q1", b"q2", b"q3")
    clean = [(who, [line for line in lines if not any(part in line for part in unfit)]) for who, lines in steps]

    async def both() -> tuple[list[list[bytes]], list[list[bytes]]]:
        server = Broker(BrokerOptions(host="127.0.0.1", port=-1), Runtime.real())
        await server.start()
        try:
            return await _play(oracle.port, clean), await _play(server.port, clean)
        finally:
            await server.stop()

    theirs, ours = asyncio.run(both())
    assert ours == theirs
