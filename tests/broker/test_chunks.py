"""What waits for a slow peer is written in chunks, in order and whole, and stalls who fills it before it grows."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest

from nimsnats.broker.client import ClientConnection
from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.reasons import Reason
from nimsnats.broker.server import Broker
from nimsnats.runtime import Runtime
from nimsnats.slices import BUDGET
from tests.broker.peer import until

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n'
CHUNK = 256 * 1024
LARGEST = CHUNK + 64 * 1024
"""Of a write: the chunk that is full, and what made it full."""


class _Kernel(asyncio.Transport):
    """Takes one write, then is full until it is drained."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.writes: list[bytes] = []
        self.protocol: ClientConnection | None = None
        self.full = False
        self.narrow = True
        """Whether one write fills it."""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.writes.append(bytes(data))
        if self.narrow and not self.full and self.protocol is not None:
            self.full = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self.write(b"".join(list_of_data))

    def drain(self) -> None:
        assert self.protocol is not None and self.full
        self.full = False
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.writes[-1]) if self.full else 0

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class _Stand:
    """A broker, a publisher in memory, and a receiver whose kernel the test is."""

    def __init__(self, options: BrokerOptions, step: int = 0) -> None:
        """The broker's clock moves by `step` whenever it is read."""
        loop = asyncio.get_running_loop()
        clock = itertools.count(0, step)
        self.broker = Broker(options, Runtime(lambda: 0, random.Random(1), loop, boot_time_ns=lambda: next(clock)))
        self.said = bytearray()
        self.publisher = self.broker.connect_local(self.said.extend)
        self.kernel = _Kernel()
        self.receiver = ClientConnection(self.broker, self.broker.next_id())
        self.receiver.connection_made(self.kernel)

    async def turns(self, count: int = 20) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    def hear(self, data: bytes) -> None:
        """The receiver sends something."""
        for at in range(0, len(data), 4096):
            piece = data[at : at + 4096]
            view = self.receiver.get_buffer(-1)
            view[: len(piece)] = piece
            self.receiver.buffer_updated(len(piece))

    async def begin(self, subscriptions: int) -> None:
        self.hear(CONNECT + b"".join(b"SUB f %d\r\n" % sid for sid in range(subscriptions)))
        self.publisher.write(CONNECT)
        await self.turns()
        self.kernel.writes.clear()
        self.kernel.protocol = self.receiver

    async def publish(self, count: int) -> None:
        before = self.said.count(b"PONG")
        self.publisher.write(b"PUB f 5\r\nhello\r\n" * count + b"PING\r\n")
        await until(lambda: self.said.count(b"PONG") > before)
        await self.turns()


def _expected(subscriptions: int, count: int) -> bytes:
    return b"".join(b"MSG f %d 5\r\nhello\r\n" % sid for sid in range(subscriptions)) * count


def _sorted(data: bytes) -> list[bytes]:
    return sorted(data.split(b"hello\r\n"))


@pytest.mark.parametrize("large", [False, True])
async def test_a_peer_that_reads_again_is_sent_chunks(large: bool) -> None:
    stand = _Stand(BrokerOptions())
    await stand.begin(1)
    size = 5000 if large else 5
    for index in range(400 if large else 60_000):
        stand.receiver.send(b"%05d" % (index % 100_000) + b"x" * size)
    queued = stand.receiver.queued
    await stand.turns()
    first = len(b"".join(stand.kernel.writes))
    assert stand.receiver.queued == queued - first == stand.receiver.pending - len(stand.kernel.writes[-1])
    while stand.kernel.full:
        before = len(stand.kernel.writes)
        stand.kernel.drain()
        assert len(stand.kernel.writes) - before <= 1
    assert max(map(len, stand.kernel.writes)) <= LARGEST
    said = b"".join(stand.kernel.writes)
    assert len(said) == queued and stand.receiver.queued == 0
    assert said == b"".join(b"%05d" % index + b"x" * size for index in range(400 if large else 60_000))


async def test_many_subscriptions_of_one_peer_are_sent_everything_in_chunks() -> None:
    stand = _Stand(BrokerOptions())
    await stand.begin(2000)
    await stand.publish(40)
    while stand.kernel.full:
        stand.kernel.drain()
        await stand.turns()
    assert max(map(len, stand.kernel.writes)) <= LARGEST
    assert _sorted(b"".join(stand.kernel.writes)) == _sorted(_expected(2000, 40))


async def test_a_kernel_that_takes_everything_is_given_so_much_a_turn() -> None:
    stand = _Stand(BrokerOptions())
    await stand.begin(1)
    stand.kernel.narrow = False
    piece = b"x" * 1000
    for _ in range(20_000):
        stand.receiver.send(piece)
    sizes: list[int] = []
    while stand.receiver.queued:
        before = stand.receiver.queued
        await asyncio.sleep(0)
        sizes.append(before - stand.receiver.queued)
    assert sum(sizes) == 20_000_000
    assert max(sizes) <= 10 * CHUNK and len(sizes) >= 8


async def test_a_connection_that_is_closed_says_everything_first() -> None:
    stand = _Stand(BrokerOptions())
    await stand.begin(1)
    for _ in range(5000):
        stand.receiver.send(b"x" * 1000)
    stand.receiver.close(Reason.PROTOCOL_VIOLATION)
    assert sum(map(len, stand.kernel.writes)) == 5_000_000
    assert stand.kernel.closed


async def test_slices_of_input_wait_while_a_receiver_is_nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nimsnats.broker.connection._STALL", 3600)
    stand = _Stand(BrokerOptions(max_pending=1024 * 1024), step=BUDGET)  # each look at the clock ends a slice
    await stand.begin(1000)
    stand.publisher.write(b"PUB f 5\r\nhello\r\n" * 400)
    await until(lambda: stand.publisher.client.stalled)
    held = stand.receiver.queued
    await stand.turns(50)
    assert stand.receiver.queued == held <= 1024 * 1024
    assert not stand.receiver.closed


async def test_a_slice_goes_on_after_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nimsnats.broker.connection._STALL", 0)
    stand = _Stand(BrokerOptions(max_pending=1024 * 1024), step=BUDGET)
    await stand.begin(1000)
    stand.publisher.write(b"PUB f 5\r\nhello\r\n" * 150 + b"PING\r\n")
    while b"PONG" not in stand.said:
        await asyncio.sleep(0)
        while stand.kernel.full and stand.receiver.queued > 512 * 1024:
            stand.kernel.drain()
    while stand.kernel.full:
        stand.kernel.drain()
    assert _sorted(b"".join(stand.kernel.writes)) == _sorted(_expected(1000, 150))
