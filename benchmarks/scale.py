"""Many things at rest in a cluster of three, and a replica that was away: what they cost, and how fast they come back.

Owns the set-up by many API requests in flight, and the measurement of processor time while nothing happens. A set-up
that takes too long is cut off: figures for one stream or one consumer are then those of as many as there are.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.clusters import SIZE, Cluster, current
from benchmarks.jetstream import STREAM, SUBJECT, Publishing, publish_windowed
from benchmarks.scenario import Aim, Metric, Scenario, Settings
from benchmarks.servers import Server, ServerError
from benchmarks.wire import Address, Connection, WireError
from benchmarks.workers import Crew, Signals

_STREAMS: Final = 1_000
_CONSUMERS: Final = 10_000
_AWAY: Final = 1_000_000
_IN_FLIGHT: Final = 50
_CREATING: Final = 60.0
"""Seconds after which a set-up goes on with what there is."""
_REST: Final = 8.0
"""Seconds for everything to come to rest, and again to measure what rest costs."""
_PACE: Final = 10_000
"""Messages a second that go on being published while a replica catches up."""
_PACED: Final = 0.01
_RETURN: Final = 120.0
_POLL: Final = 0.05
_LIMIT: Final = b'"err_code":10026'
"""Maximum consumers limit reached."""
_FAILED: Final = re.compile(rb'"error":\{[^}]*\}')


def create_many(connection: Connection, requests: list[tuple[str, dict[str, Any]]]) -> tuple[int, float]:
    """Send API requests with a number of them in flight; how many were granted, and in how many seconds.

    Once the server takes no more (nats-server has a limit of consumers), or it takes too long, no more are sent; what
    is under way is let finish.
    """
    connection.send(b"SUB _INBOX.bench.create.* c\r\n")
    began = time.perf_counter()
    sent = answered = granted = 0
    enough = False
    while answered < sent or (sent < len(requests) and not enough):
        while sent < len(requests) and sent - answered < _IN_FLIGHT and not enough:
            subject, fields = requests[sent]
            body = json.dumps(fields).encode()
            line = f"PUB $JS.API.{subject} _INBOX.bench.create.{sent} {len(body)}\r\n"
            connection.send(line.encode() + body + b"\r\n")
            sent += 1
        answer = connection.next_message().payload
        failed = _FAILED.search(answer)
        if failed and _LIMIT not in answer:
            raise WireError(failed[0].decode())
        answered += 1
        granted += not failed
        enough = enough or bool(failed) or time.perf_counter() - began > _CREATING
    return granted, time.perf_counter() - began


def _at_rest(cluster: Cluster, settings: Settings) -> float:
    """Share of a core that a node uses while nothing happens, as a mean of the nodes."""
    rest = max(_REST * min(settings.scale, 1.0), 3 * settings.duration)
    time.sleep(rest)
    before, began = cluster.cpu_seconds(), time.perf_counter()
    time.sleep(rest)
    return (cluster.cpu_seconds() - before) / (time.perf_counter() - began) / SIZE


def _many(cluster: Cluster, settings: Settings, requests: list[tuple[str, dict[str, Any]]]) -> dict[str, float]:
    base = cluster.resident_bytes()
    with cluster.connect() as connection:
        connection.socket.settimeout(30)
        made, seconds = create_many(connection, requests)
        cpu = _at_rest(cluster, settings)
    size = (cluster.resident_bytes() - base) / SIZE / made
    return {"rate": made / seconds, "idle": cpu, "each": cpu / made, "bytes": size, "made": made}


def many_streams(cluster: Cluster, settings: Settings) -> dict[str, float]:
    """A thousand streams of three replicas that do nothing."""
    requests: list[tuple[str, dict[str, Any]]] = []
    for number in range(int(_STREAMS * settings.scale)):
        name = f"IDLE{number:05}"
        config = {"name": name, "subjects": [f"bench.idle.{number}"], "storage": "file", "num_replicas": SIZE}
        requests.append((f"STREAM.CREATE.{name}", config))
    return _many(cluster, settings, requests)


def many_consumers(cluster: Cluster, settings: Settings) -> dict[str, float]:
    """Ten thousand durable consumers of one stream of three replicas that do nothing."""
    cluster.create_stream(STREAM, "bench.js.>")
    requests: list[tuple[str, dict[str, Any]]] = []
    for number in range(int(_CONSUMERS * settings.scale)):
        name = f"C{number:05}"
        body = {"stream_name": STREAM, "config": {"durable_name": name, "ack_policy": "explicit"}}
        requests.append((f"CONSUMER.DURABLE.CREATE.{STREAM}.{name}", body))
    return _many(cluster, settings, requests)


@dataclass(frozen=True, slots=True)
class Beat:
    """What a paced publisher has achieved: messages acknowledged a second, and the longest pause in seconds."""

    rate: float
    pause: float


def publish_paced(signals: Signals, address: Address, rate: int) -> Beat:
    """Worker: publish so many messages a second, as far as they are acknowledged, until stopped."""
    batch = int(rate * _PACED)
    message = b"PUB %b _INBOX.bench.js.1 128\r\n%b\r\n" % (SUBJECT.encode(), b"x" * 128)
    with Connection(address) as connection:
        connection.send(b"SUB _INBOX.bench.js.* 1\r\n")
        connection.flush()
        signals.ready()
        sock = connection.socket
        sock.settimeout(_PACED / 2)
        began = last = time.perf_counter()
        sent = lines = 0
        pause = 0.0
        while not signals.stopped():
            now = time.perf_counter()
            due = int((now - began) * rate) - sent
            if due >= batch and sent - lines // 2 < rate:
                sock.settimeout(10)
                sock.sendall(message * batch)
                sock.settimeout(_PACED / 2)
                sent += batch
            try:
                data = sock.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise ConnectionError("the server closed the publisher's connection")
            lines += data.count(b"\n")
            pause, last = max(pause, time.perf_counter() - last), time.perf_counter()
        end = time.perf_counter()
        return Beat(lines / 2 / (end - began), max(pause, end - last))


def catch_up(cluster: Cluster, settings: Settings) -> dict[str, float]:
    """Messages a second with which a killed replica makes good what it has missed while publishing goes on.

    `share` is the part of the offered messages that was acknowledged meanwhile, `pause` the longest time without one.
    """
    cluster.create_stream(STREAM, "bench.js.>")
    leader, away = cluster.leader(STREAM), cluster.follower(STREAM)
    missed = int(_AWAY * settings.scale)
    away.kill()
    with Crew() as crew:
        filler = crew.start(publish_windowed, leader.address, Publishing(128, total=missed), settings)
        filler.wait_ready()
        filler.result(180)
        publisher = crew.start(publish_paced, leader.address, _PACE)
        publisher.wait_ready()
        began = time.perf_counter()
        away.start()
        _wait_back(leader, settings)
        seconds = time.perf_counter() - began
        publisher.stop()
        beat = publisher.result(20)
    return {"rate": missed / seconds, "share": beat.rate / _PACE, "pause": beat.pause}


def _wait_back(leader: Server, settings: Settings) -> None:
    """Wait until the leader says that both replicas have everything."""
    deadline = time.perf_counter() + _RETURN
    with leader.connect() as connection:
        while time.perf_counter() < deadline:
            if current(connection.api(f"STREAM.INFO.{STREAM}")["cluster"]) == SIZE - 1:
                return
            time.sleep(_POLL)
    raise ServerError(f"{leader.kind.title}: the replica did not come back")


_REST_METRICS: Final = (
    Metric("rate", "1/s"),
    Metric("idle", "cores", "lower", aims=(Aim(limit=0.05),)),
    Metric("each", "cores", "lower", table=False),
    Metric("bytes", "bytes", "lower"),
    Metric("made", ""),
)

SCENARIOS: Final = (
    Scenario(
        "cluster/idle streams",
        f"{_STREAMS:,} idle R3 streams",
        _REST_METRICS,
        many_streams,
        fresh=True,
        start=Cluster,
        rounds=1,
    ),
    Scenario(
        "cluster/idle consumers",
        f"{_CONSUMERS:,} idle consumers of an R3 stream, or as many as a server takes",
        _REST_METRICS,
        many_consumers,
        fresh=True,
        start=Cluster,
        rounds=1,
    ),
    Scenario(
        "cluster/catch-up",
        f"R3 replica back after {_AWAY:,} messages, {_PACE:,} msg/s going on",
        (Metric("rate", "msg/s"), Metric("share", ""), Metric("pause", "s", "lower")),
        catch_up,
        fresh=True,
        start=Cluster,
        rounds=1,
    ),
)
