"""Core NATS throughput: publishers flood the server, subscribers count the bytes that reach them.

The publishers send as fast as the server reads (TCP holds them back); the rate is taken at the receiving end over a
window that starts after the warm-up, so start-up and what is still queued at the end do not count.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from benchmarks.scenario import CPU, Aim, Metric, Scenario, Settings
from benchmarks.servers import Server
from benchmarks.wire import Address, Connection
from benchmarks.workers import Crew, Signals

_BUFFER: Final = 128 * 1024
_READ: Final = 512 * 1024


class Sample(NamedTuple):
    """Bytes received in a window, and how long the window was in seconds."""

    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one publisher repeats for ever: (subject, payload size) pairs."""

    messages: tuple[tuple[str, int], ...]

    def buffer(self) -> bytes:
        """The messages as PUB lines, repeated up to the size of one write."""
        cycle = b"".join(b"PUB %b %d\r\n%b\r\n" % (s.encode(), n, b"x" * n) for s, n in self.messages)
        return cycle * max(1, _BUFFER // len(cycle))

    def delivered_bytes(self) -> float:
        """Mean size of a delivered message on the wire; every subscription id is four characters long."""
        return sum(len(f"MSG {s} 1000 {n}\r\n") + n + 2 for s, n in self.messages) / len(self.messages)


def publish(signals: Signals, address: Address, traffic: Traffic) -> None:
    """Worker: send one publisher's traffic until stopped."""
    buffer = memoryview(traffic.buffer())
    with Connection(address, timeout=0.5) as connection:
        signals.ready()
        send, offset = connection.socket.send, 0
        while not signals.stopped():
            try:
                offset += send(buffer[offset:])
            except TimeoutError:
                continue
            except OSError:
                return  # the measurement is over, or the receivers will notice that nothing comes
            if offset == len(buffer):
                offset = 0


def subscribe(signals: Signals, address: Address, plans: Sequence[Sequence[str]], settings: Settings) -> Sample:
    """Worker: one connection for each plan (its list of subjects); counts the bytes that all of them receive."""
    connections = [Connection(address) for _ in plans]
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for connection, subjects in zip(connections, plans, strict=True):
        connection.send(b"".join(b"SUB %b %d\r\n" % (s.encode(), 1000 + i) for i, s in enumerate(subjects)))
        connection.flush()
        connection.socket.settimeout(5)
        sockets[connection.socket.fileno()] = connection.socket
        poll.register(connection.socket, select.EPOLLIN)
    signals.ready()
    try:
        return _count(poll, sockets, settings)
    finally:
        for connection in connections:
            connection.close()


def _count(poll: select.epoll, sockets: dict[int, socket.socket], settings: Settings) -> Sample:
    buffer = bytearray(_READ)
    clock = time.perf_counter
    total = 0
    began = clock() + settings.warm
    start = 0.0
    at_start = 0
    while True:
        for descriptor, _ in poll.poll(10):
            size = sockets[descriptor].recv_into(buffer)
            if not size:
                raise ConnectionError("the server closed a subscriber's connection")
            total += size
        now = clock()
        if not start:
            if now >= began:
                start, at_start = now, total
        elif now - start >= settings.duration:
            return Sample(total - at_start, now - start)


def throughput(
    server: Server, settings: Settings, publishers: Sequence[Traffic], plans: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Delivered messages a second, and the processor time that the server spent on one."""
    with Crew() as crew:
        receiver = crew.start(subscribe, server.address, plans, settings)
        receiver.wait_ready()
        senders = [crew.start(publish, server.address, traffic) for traffic in publishers]
        for sender in senders:
            sender.wait_ready()
        before = server.cpu_seconds()
        sample = receiver.result(settings.warm + settings.duration + 30)
        spent = server.cpu_seconds() - before
    size = sum(traffic.delivered_bytes() for traffic in publishers) / len(publishers)
    rate = sample.bytes / size / sample.seconds
    return {"rate": rate, "cpu": spent / (settings.warm + sample.seconds) / rate}


def _pairs(size: int, receivers: int) -> Scenario:
    traffic = Traffic((("bench.core.subject", size),))
    label = f"{size} B" if size < 1024 else f"{size // 1024} KiB"
    name = f"core/1:{receivers} {label}"
    return Scenario(
        name=name,
        title=f"core publish to {receivers} subscriber{'s' if receivers > 1 else ''}, {label}",
        metrics=(Metric("rate", "msg/s", aims=(Aim(ratio=0.6),)), CPU),
        measure=lambda server, settings: throughput(server, settings, [traffic], [["bench.core.subject"]] * receivers),
    )


_MIXED_SIZES: Final = (16, 64, 128, 128, 256, 512, 1024, 16, 64, 4096)
_SUBJECTS: Final = tuple(f"bench.mixed.{n:03}" for n in range(100))
_MIXED: Final = Traffic(tuple((s, _MIXED_SIZES[n * 7 % 10]) for n, s in enumerate(_SUBJECTS)))

SCENARIOS: Final = (
    _pairs(128, 1),
    _pairs(128, 10),
    Scenario(
        name="core/mixed",
        title="2 publishers, 100 subjects, 16 B to 4 KiB, 2 subscribers of 50 subjects each",
        metrics=(Metric("rate", "msg/s", aims=(Aim(ratio=0.6),)), CPU),
        measure=lambda server, settings: throughput(
            server, settings, [_MIXED, _MIXED], [_SUBJECTS[:50], _SUBJECTS[50:]]
        ),
    ),
    _pairs(1024, 1),
    _pairs(16384, 1),
)
