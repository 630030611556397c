"""Seventeen operations beside eleven crowds: what each costs, as a multiple of what it costs alone.

A crowd only stands by: consumers whose filters match nothing, streams and subjects that nobody uses, clients that say
nothing. Each crowd gets servers of its own; its operations are measured before it comes and beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.clusters import SIZE, Cluster
from benchmarks.footprint import hold
from benchmarks.operations import OPERATIONS, STREAM, operate
from benchmarks.scale import create_many
from benchmarks.scenario import Aim, Metric, Scenario, Settings
from benchmarks.servers import Server
from benchmarks.stock import fill
from benchmarks.wire import Address, Connection
from benchmarks.workers import Crew, Signals

_PATIENCE: Final = 300.0
_BATCH: Final = 200
_CALM: Final = 2.0
"""Seconds for a server to come to rest when a crowd has come."""
_EXPIRES: Final = 600
_PER_CLIENT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Crowd:
    """A row of the matrix: `raise_` makes so many of something and leaves them to the crew."""

    name: str
    title: str
    count: int
    raise_: Callable[[Crew, Server | Cluster, int, int], None]


def measure(server: Server | Cluster, settings: Settings, crowd: Crowd) -> dict[str, float]:
    """Ratios of each operation's cost beside the crowd to its cost alone; medians of the round trips likewise."""
    replicas = SIZE if isinstance(server, Cluster) else 1
    pids = [node.pid for node in server.nodes]
    with Crew() as crew:
        worker = crew.start(operate, server.nodes[0].address, replicas, pids, settings.duration / 4)
        alone = worker.wait_ready(_PATIENCE)
        crowd.raise_(crew, server, max(1, int(crowd.count * settings.scale)), replicas)
        time.sleep(_CALM)
        worker.stop()
        beside = worker.result(_PATIENCE)
    values: dict[str, float] = {}
    for operation in OPERATIONS:
        name = operation.name
        values[name] = beside[name].cpu / alone[name].cpu
        values[f"{name}: round trip"] = beside[name].median / alone[name].median
        values[f"{name}: seconds"] = alone[name].cpu
    return values


def talk(signals: Signals, address: Address, plans: Sequence[Sequence[bytes]]) -> None:
    """Worker: a connection for each plan sends its lines in small steps and stays until stopped."""
    connections = [Connection(address, timeout=60) for _ in plans]
    for connection, lines in zip(connections, plans, strict=True):
        for first in range(0, len(lines), _BATCH):
            connection.send(b"".join(lines[first : first + _BATCH]) + b"PING\r\n")
            _skip_to_pong(connection)
    signals.ready()
    signals.wait_stopped(_EXPIRES)
    for connection in connections:
        connection.close()


def _skip_to_pong(connection: Connection) -> None:
    """Read until the PONG; what else comes is nobody's business here."""
    seen = b""
    while b"PONG\r\n" not in seen:
        data = connection.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed a connection of the crowd")
        seen = seen[-8:] + data


def close_many(signals: Signals, address: Address, count: int) -> None:
    """Worker: clients that connect, subscribe and go."""
    signals.ready()
    for number in range(count):
        with Connection(address, timeout=60) as connection:
            connection.send(b"SUB gone.%d 1\r\n" % number)
            connection.flush()


def _request(server: Server | Cluster, requests: list[tuple[str, dict[str, Any]]]) -> None:
    with server.nodes[0].connect() as connection:
        connection.socket.settimeout(60)
        create_many(connection, requests)


def _subscribe(lines: Callable[[int], bytes]) -> Callable[[Crew, Server | Cluster, int, int], None]:
    """Subscriptions on connections of each node in turn."""

    def raise_(crew: Crew, server: Server | Cluster, count: int, _: int) -> None:
        all_lines = [lines(n) for n in range(count)]
        plans = [all_lines[first : first + _PER_CLIENT] for first in range(0, count, _PER_CLIENT)]
        for at, node in enumerate(server.nodes):
            worker = crew.start(talk, node.address, plans[at :: len(server.nodes)])
            worker.wait_ready(_PATIENCE)

    return raise_


def _streams(_: Crew, server: Server | Cluster, count: int, replicas: int) -> None:
    requests: list[tuple[str, dict[str, Any]]] = []
    for n in range(count):
        config = {"name": f"CROWD{n}", "subjects": [f"crowd.{n}"], "storage": "file", "num_replicas": replicas}
        requests.append((f"STREAM.CREATE.CROWD{n}", config))
    _request(server, requests)


def _consumers(server: Server | Cluster, count: int, **extra: Callable[[int], str]) -> None:
    requests: list[tuple[str, dict[str, Any]]] = []
    for n in range(count):
        config = {"durable_name": f"CROWD{n}", "ack_policy": "explicit", "filter_subject": f"op.js.crowd.{n}"}
        config |= {key: value(n) for key, value in extra.items()}
        body = {"stream_name": STREAM, "config": config}
        requests.append((f"CONSUMER.DURABLE.CREATE.{STREAM}.CROWD{n}", body))
    _request(server, requests)


def _push(crew: Crew, server: Server | Cluster, count: int, _: int) -> None:
    crew.start(
        talk, server.nodes[-1].address, [[b"SUB crowd.push.%d %d\r\n" % (n, n) for n in range(count)]]
    ).wait_ready(_PATIENCE)
    _consumers(server, count, deliver_subject=lambda n: f"crowd.push.{n}")


def _pull(_: Crew, server: Server | Cluster, count: int, __: int) -> None:
    _consumers(server, count)


def _waiting(crew: Crew, server: Server | Cluster, count: int, _: int) -> None:
    _consumers(server, count)
    body = b'{"batch":1,"expires":%d}' % (_EXPIRES * 1_000_000_000)
    lines = [b"SUB _INBOX.crowd.* 1\r\n"]
    for n in range(count):
        subject = b"$JS.API.CONSUMER.MSG.NEXT.%b.CROWD%d" % (STREAM.encode(), n)
        lines.append(b"PUB %b _INBOX.crowd.%d %d\r\n%b\r\n" % (subject, n, len(body), body))
    crew.start(talk, server.nodes[-1].address, [lines]).wait_ready(_PATIENCE)


def _connections(crew: Crew, server: Server | Cluster, count: int, _: int) -> None:
    for node in server.nodes:
        crew.start(hold, node.address, count // len(server.nodes)).wait_ready(_PATIENCE)


def _subjects(crew: Crew, server: Server | Cluster, count: int, _: int) -> None:
    worker = crew.start(fill, server.nodes[0].address, _stored, count)
    worker.wait_ready()
    worker.result(_PATIENCE)


def _stored(n: int) -> str:
    return f"op.js.crowd.{n % 500}.{n}"


def _closed(crew: Crew, server: Server | Cluster, count: int, _: int) -> None:
    for node in server.nodes:
        worker = crew.start(close_many, node.address, count // len(server.nodes))
        worker.wait_ready()
        worker.result(_PATIENCE)


def _deleted(_: Crew, server: Server | Cluster, count: int, __: int) -> None:
    _consumers(server, count)
    with server.nodes[0].connect() as connection:
        connection.socket.settimeout(60)
        create_many(connection, [(f"CONSUMER.DELETE.{STREAM}.CROWD{n}", {}) for n in range(count)])


CROWDS: Final = (
    Crowd("streams", "1,000 streams", 1_000, _streams),
    Crowd("push consumers", "2,000 push consumers", 2_000, _push),
    Crowd("pull consumers", "3,000 pull consumers", 3_000, _pull),
    Crowd("waiting pulls", "3,000 pull consumers, a pull waiting at each", 3_000, _waiting),
    Crowd("connections", "2,000 connections", 2_000, _connections),
    Crowd(
        "subscriptions",
        "100,000 subscriptions",
        100_000,
        _subscribe(lambda n: b"SUB crowd.%d.%d %d\r\n" % (n % 100, n, n)),
    ),
    Crowd(
        "wildcards", "20,000 wildcard subscriptions", 20_000, _subscribe(lambda n: b"SUB crowd.*.%d.> %d\r\n" % (n, n))
    ),
    Crowd(
        "queue members", "5,000 members of a queue group", 5_000, _subscribe(lambda n: b"SUB crowd.queue g %d\r\n" % n)
    ),
    Crowd("subjects", "300,000 subjects", 300_000, _subjects),
    Crowd("closed clients", "6,000 closed clients", 6_000, _closed),
    Crowd("deleted consumers", "3,000 deleted consumers", 3_000, _deleted),
)

_METRICS: Final = tuple(
    Metric(operation.name, "", "lower", (Aim(limit=1.5),), show="times") for operation in OPERATIONS
)


def _scenario(crowd: Crowd, where: str, start: Any) -> Scenario:
    nodes = "one node" if where == "one" else "three nodes"
    return Scenario(
        f"crowds/{where}/{crowd.name}",
        f"{crowd.title}; {nodes}",
        _METRICS,
        lambda server, settings: measure(server, settings, crowd),
        fresh=True,
        start=start,
        layout="servers",
    )


SCENARIOS: Final = tuple(
    _scenario(crowd, where, start) for where, start in (("one", Server), ("three", Cluster)) for crowd in CROWDS
)
