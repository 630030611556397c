"""Floods: what publishers that wait for nobody do to a server, and to everybody else.

Each flood gets servers of its own. Beside the rate stands what was stored, how long another client on every node waited
for a PONG and a new connection for its greeting, how long the flooder waited for its own PONG, memory, processor time,
and elections that the cluster held meanwhile.
"""

from __future__ import annotations

import time
from typing import Any, Final, Literal

from benchmarks.clusters import SIZE, Cluster
from benchmarks.flooding import Flooded, Plan, flood, listen
from benchmarks.observer import observing
from benchmarks.outcome import OPEN
from benchmarks.scenario import Aim, Metric, Scenario, Settings
from benchmarks.servers import Server
from benchmarks.shapes import CORE, SHAPES, STREAM, SUBJECTS, Shape
from benchmarks.wire import Address, Connection, WireError
from benchmarks.workers import Crew, Worker

Where = Literal["one", "leader", "follower", "routes"]
_WHERE: Final[dict[Where, str]] = {
    "one": "one node",
    "leader": "three nodes, at the leader",
    "follower": "three nodes, through a follower",
    "routes": "three nodes, over a route",
}
_POLL: Final = 0.025
_STILL: Final = 0.5
"""Seconds without a change after which what is stored is what will be stored."""


def measure(server: Server | Cluster, settings: Settings, shape: Shape, where: Where) -> dict[str, float]:
    """Put a server that was just started through one flood."""
    near, far = _prepare(server, shape, where)
    terms = server.terms()
    plan = Plan(shape.build, int(shape.count * settings.scale), shape.connections, shape.prelude, shape.unread)
    with Crew() as crew, observing([node.address for node in server.nodes]) as observation:
        listener = None
        if shape.listener:
            listener = crew.start(listen, far.address, CORE, shape.listener == "slow")
            listener.wait_ready()
        worker = crew.start(flood, near.address, plan, settings.patience)
        worker.wait_ready(60)
        spent, began = server.cpu_seconds(), time.perf_counter()
        flooded: Flooded = worker.wait_ready(settings.patience + 30)
        values = flooded.own.values("own") if not shape.unread else {}
        seconds = flooded.seconds
        if shape.stream is not None:
            stored, at = _settle(far.address, plan.count, began, settings.patience)
            if stored is not None:
                values["stored"] = stored / plan.count
            seconds = max(seconds, at)
        values["cpu"] = (server.cpu_seconds() - spent) / max(1, flooded.sent)
        values["peak"] = server.peak_bytes()
        values["left"] = float(flooded.left)
        values |= observation.end().values()
        worker.stop()
        if listener is not None:
            values |= _heard(listener, shape, plan.count)
        values |= _elections(server, terms)
    values["rate"] = flooded.sent / seconds
    return values | ({"rate" + OPEN: 1.0} if flooded.own.open else {})


def _prepare(server: Server | Cluster, shape: Shape, where: Where) -> tuple[Server, Server]:
    """Make the stream; the node that the flood goes to, and the one that holds the stream or the listener."""
    nodes = server.nodes
    if shape.stream is None:
        return nodes[0], nodes[-1]
    config: dict[str, Any] = {"name": STREAM, "subjects": [SUBJECTS], "storage": "file", **shape.stream}
    config["num_replicas"] = SIZE if where in ("leader", "follower") else 1
    with nodes[0].connect() as connection:
        connection.api(f"STREAM.CREATE.{STREAM}", config)
    if not isinstance(server, Cluster):
        return nodes[0], nodes[0]
    if where != "routes":
        server.wait_current(STREAM)
    leader = server.leader(STREAM)
    if where == "leader":
        return leader, leader
    return next(node for node in nodes if node is not leader), leader


def _settle(address: Address, count: int, began: float, patience: float) -> tuple[int | None, float]:
    """How many messages a stream has stored once it stores no more, and seconds from `began` to the last of them.

    None when the server does not answer within `patience` seconds.
    """
    deadline = time.perf_counter() + patience
    stored, changed = -1, 0.0
    try:
        with Connection(address, timeout=patience) as connection:
            while stored < count and time.perf_counter() < deadline:
                last: int = connection.api(f"STREAM.INFO.{STREAM}")["state"]["last_seq"]
                now = time.perf_counter()
                if last != stored:
                    stored, changed = last, now
                elif now - changed > _STILL:
                    break
                time.sleep(_POLL)
    except (OSError, WireError):
        return None, time.perf_counter() - began
    return stored, changed - began


def _heard(listener: Worker[int], shape: Shape, count: int) -> dict[str, float]:
    listener.stop()
    data, number = shape.build(0, 2)[0]
    received = listener.result(20)
    if shape.listener == "slow":
        return {}
    size = len(data) / number - len("PUB ") + len("MSG  1")
    return {"stored": received / size / count}


def _elections(server: Server | Cluster, before: dict[str, int]) -> dict[str, float]:
    """How many terms the groups have gone on since `before`; nothing when a node is too busy to tell."""
    try:
        after = server.terms()
    except OSError:
        return {}
    return {"elections": float(sum(after.get(group, term) - term for group, term in before.items()))}


_AT_MOST: Final = (Aim(limit=0.05),)
_METRICS: Final = (
    Metric("rate", "msg/s"),
    Metric("stored", "", show="share"),
    Metric("wait", "s", "lower", _AT_MOST, show="wait", title="others' PING"),
    Metric("greeting", "s", "lower", _AT_MOST, show="wait"),
    Metric("own", "s", "lower", show="wait", title="own PING"),
    Metric("peak", "bytes", "lower", title="memory"),
    Metric("cpu", "s", "lower", title="processor"),
    Metric("elections", "", "lower", show="count"),
    Metric("samples", "", table=False),
    Metric("left", "", "lower", table=False),
)


def _flood(shape: Shape, where: Where) -> Scenario:
    return Scenario(
        f"floods/{where}/{shape.name}",
        f"{shape.title}; {_WHERE[where]}",
        _METRICS,
        lambda server, settings: measure(server, settings, shape, where),
        fresh=True,
        start=Server if where == "one" else Cluster,
        layout="servers",
    )


SCENARIOS: Final = tuple(
    _flood(shape, where)
    for where in _WHERE
    for shape in SHAPES
    if shape.stream is not None or where in ("one", "routes")
)
