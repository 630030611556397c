"""JetStream throughput on a file-backed stream with one replica: acknowledged publishes, fetch and push consumption.

A publisher keeps a window of unacknowledged messages in flight and counts acknowledgements by their line feeds (two in
each: control line and payload). A consumer finds the ack subjects of everything one read brought with one regular
expression and acknowledges them in one write.
"""

from __future__ import annotations

import json
import re
import select
import time
from dataclasses import dataclass
from typing import Final

from benchmarks.scenario import CPU, Aim, Metric, Scenario, Settings
from benchmarks.servers import Server
from benchmarks.wire import Address, Connection
from benchmarks.workers import Crew, Signals

STREAM: Final = "BENCH"
SUBJECT: Final = "bench.js.orders"
WINDOW: Final = 4000
_BATCH: Final = 200
_READ: Final = 512 * 1024
_ACK: Final = re.compile(rb" (\$JS\.ACK\.\S+) \d+\r\n")


@dataclass(frozen=True, slots=True)
class Publishing:
    """What a windowed publisher sends: payload `size`, at most `window` in flight, `total` messages (0 is no end)."""

    size: int
    window: int = WINDOW
    total: int = 0


def create_stream(server: Server) -> None:
    """An empty file-backed stream with one replica; dirty pages are flushed by the runner before."""
    with server.connect() as connection:
        connection.api(
            f"STREAM.CREATE.{STREAM}",
            {"name": STREAM, "subjects": ["bench.js.>"], "storage": "file", "retention": "limits", "num_replicas": 1},
        )


def delete_stream(server: Server) -> None:
    """Delete the stream of this measurement."""
    with server.connect() as connection:
        connection.api(f"STREAM.DELETE.{STREAM}")


def publish_windowed(signals: Signals, address: Address, load: Publishing, settings: Settings) -> float:
    """Worker: acknowledged messages a second after the warm-up; with `total`, over all messages."""
    batch = min(_BATCH, load.window)
    ring = [_publishes(load.size, start, batch) for start in range(0, 64 * batch, batch)]
    with Connection(address) as connection:
        connection.send(b"SUB _INBOX.bench.js.* 1\r\n")
        connection.flush()
        signals.ready()
        return _drive(connection, ring, batch, load, settings)


def _publishes(size: int, start: int, count: int) -> bytes:
    """`count` publishes that each ask for their acknowledgement at an inbox subject of their own."""
    head, payload = SUBJECT.encode(), b"x" * size
    return b"".join(
        b"PUB %b _INBOX.bench.js.%08d %d\r\n%b\r\n" % (head, n, size, payload) for n in range(start, start + count)
    )


def _drive(connection: Connection, ring: list[bytes], batch: int, load: Publishing, settings: Settings) -> float:
    """Keep the window full and count what is acknowledged. Not split: the loop is what must stay cheap."""
    sock, clock = connection.socket, time.perf_counter
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT)
    buffer = bytearray(_READ)
    view = memoryview(b"")
    sent = lines = slot = 0
    mode = select.POLLIN | select.POLLOUT
    began = clock()
    start, at_start = (began, 0) if load.total else (0.0, 0)
    while True:
        if not view and sent - lines // 2 <= load.window - batch and (not load.total or sent < load.total):
            view, slot = memoryview(ring[slot]), (slot + 1) % len(ring)
            sent += batch
        wanted = select.POLLIN | select.POLLOUT if view else select.POLLIN
        if wanted != mode:
            poll.modify(sock, wanted)
            mode = wanted
        events = poll.poll(10_000)
        if not events:
            raise TimeoutError(f"no acknowledgement for 10 s after {lines // 2} of {sent}")
        ready = events[0][1]
        if ready & select.POLLIN:
            size = sock.recv_into(buffer)
            if not size:
                raise ConnectionError("the server closed the publisher's connection")
            lines += buffer.count(b"\n", 0, size)
        if ready & select.POLLOUT and view:
            view = view[sock.send(view) :]
        now = clock()
        if load.total:
            if lines // 2 >= load.total:
                return load.total / (now - began)
        elif not start:
            if now - began >= settings.warm:
                start, at_start = now, lines // 2
        elif now - start >= settings.duration:
            return (lines // 2 - at_start) / (now - start)


def publish_rate(server: Server, settings: Settings, load: Publishing) -> dict[str, float]:
    """Acknowledged publishes a second, and the processor time that the server spent on one."""
    create_stream(server)
    with Crew() as crew:
        worker = crew.start(publish_windowed, server.address, load, settings)
        worker.wait_ready()
        before = server.cpu_seconds()
        rate = worker.result(settings.warm + settings.duration + 30)
        spent = server.cpu_seconds() - before
    stored = _state(server)["messages"]
    if stored < rate * settings.duration * 0.9:
        raise ValueError(f"{server.kind.name} acknowledged more than the {stored} messages it holds")
    delete_stream(server)
    return {"rate": rate, "cpu": spent / (settings.warm + settings.duration) / rate}


def _state(server: Server) -> dict[str, int]:
    with server.connect() as connection:
        return connection.api(f"STREAM.INFO.{STREAM}")["state"]


def publish_one_by_one(signals: Signals, address: Address, size: int, settings: Settings) -> list[float]:
    """Worker: seconds from each publish to its acknowledgement, one in flight."""
    with Connection(address) as connection:
        connection.send(b"SUB _INBOX.bench.js.* 1\r\n")
        connection.flush()
        signals.ready()
        return round_trips(connection, _publishes(size, 0, 1), 2, settings)


def round_trips(connection: Connection, request: bytes, lines: int, settings: Settings) -> list[float]:
    """Send `request`, wait for `lines` line feeds, again and again; the durations in seconds after the warm-up."""
    sock, clock = connection.socket, time.perf_counter
    sock.settimeout(10)
    times: list[float] = []
    begin = clock() + settings.warm
    end = begin + settings.duration
    while True:
        sent = clock()
        sock.sendall(request)
        missing = lines
        while missing > 0:
            data = sock.recv(65536)
            if not data:
                raise ConnectionError("the server closed the connection")
            missing -= data.count(b"\n")
        now = clock()
        if sent >= begin:
            times.append(now - sent)
        if now >= end:
            return times


def percentiles(times: list[float]) -> dict[str, float]:
    """p50 and p99 in seconds."""
    ordered = sorted(times)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]}


def publish_latency(server: Server, settings: Settings) -> dict[str, float]:
    """Synchronous publish latency."""
    create_stream(server)
    with Crew() as crew:
        worker = crew.start(publish_one_by_one, server.address, 128, settings)
        worker.wait_ready()
        times = worker.result(settings.warm + settings.duration + 30)
    delete_stream(server)
    return percentiles(times)


@dataclass(frozen=True, slots=True)
class Consuming:
    """How a consumer takes `total` messages: `fetch` messages a pull request, or pushed when `fetch` is 0."""

    total: int
    fetch: int


def consume(signals: Signals, address: Address, plan: Consuming) -> float:
    """Worker: create a durable with explicit acks, take and acknowledge `total` messages; messages a second."""
    with Connection(address) as connection:
        config: dict[str, object] = {"durable_name": "C", "ack_policy": "explicit", "max_ack_pending": 20_000}
        if not plan.fetch:
            config["deliver_subject"] = "_INBOX.bench.push"
        body = {"stream_name": STREAM, "config": config}
        connection.api(f"CONSUMER.DURABLE.CREATE.{STREAM}.C", body)
        connection.flush()
        signals.ready()
        began = time.perf_counter()
        _take(connection, plan)
        return plan.total / (time.perf_counter() - began)


def _take(connection: Connection, plan: Consuming) -> None:
    """Receive and acknowledge everything; a new pull request goes out when the one before is used up."""
    sock = connection.socket
    body = json.dumps({"batch": plan.fetch, "expires": 5_000_000_000}).encode()
    pull = f"PUB $JS.API.CONSUMER.MSG.NEXT.{STREAM}.C _INBOX.bench.fetch {len(body)}\r\n".encode() + body + b"\r\n"
    connection.send(b"SUB _INBOX.bench.fetch 1\r\n" + pull if plan.fetch else b"SUB _INBOX.bench.push 1\r\n")
    due = plan.fetch
    buffer = bytearray(_READ)
    kept = 0
    taken = 0
    while taken < plan.total:
        size = sock.recv_into(memoryview(buffer)[kept:])
        if not size:
            raise ConnectionError("the server closed the consumer's connection")
        data = bytes(memoryview(buffer)[: kept + size])
        replies: list[bytes] = []
        end = 0
        for match in _ACK.finditer(data):
            replies.append(match[1])
            end = match.end()
        kept = min(len(data) - end, 600)  # enough for a control line that the read has cut in two
        buffer[:kept] = data[len(data) - kept :]
        if not replies:
            continue
        taken += len(replies)
        acks = b"PUB " + b" 4\r\n+ACK\r\nPUB ".join(replies) + b" 4\r\n+ACK\r\n"
        if plan.fetch and taken >= due:
            due += plan.fetch
            acks += pull
        sock.sendall(acks)


def consume_rate(server: Server, settings: Settings, fetch: int) -> dict[str, float]:
    """Fill a stream with 128 B messages, then take them all with one consumer."""
    total = int(100_000 * settings.scale)
    create_stream(server)
    with Crew() as crew:
        filler = crew.start(publish_windowed, server.address, Publishing(128, total=total), settings)
        filler.wait_ready()
        filler.result(60)
        worker = crew.start(consume, server.address, Consuming(total, fetch))
        worker.wait_ready()
        before, began = server.cpu_seconds(), time.perf_counter()
        rate = worker.result(60)
        spent = (server.cpu_seconds() - before) / (time.perf_counter() - began)
    delete_stream(server)
    return {"rate": rate, "cpu": spent / rate}


def _publish(size: int) -> Scenario:
    label = f"{size} B" if size < 1024 else f"{size // 1024} KiB"
    load = Publishing(size)
    return Scenario(
        name=f"js/publish {label}",
        title=f"JetStream R1 file publish, {WINDOW} in flight, {label}",
        metrics=(
            Metric("rate", "msg/s", aims=(Aim("go", 0.7), Aim("go-sync", 15))),
            CPU,
        ),
        measure=lambda server, settings: publish_rate(server, settings, load),
        servers=("go", "nims", "go-sync"),
    )


_RATE: Final = (Metric("rate", "msg/s"), CPU)
_LATENCY: Final = (Metric("p50", "s", "lower"), Metric("p99", "s", "lower"))

SCENARIOS: Final = (
    _publish(128),
    _publish(1024),
    Scenario(
        "js/publish sync",
        "JetStream R1 file publish, 1 in flight, 128 B: latency",
        _LATENCY,
        publish_latency,
        servers=("go", "nims", "go-sync"),
    ),
    Scenario("js/fetch", "pull consumer, fetch 500, explicit acks, 128 B", _RATE, lambda s, o: consume_rate(s, o, 500)),
    Scenario("js/push", "push consumer, explicit acks, 128 B", _RATE, lambda s, o: consume_rate(s, o, 0)),
)
