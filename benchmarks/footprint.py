"""What a server costs before it does anything: memory of an idle connection, time from start to ready."""

from __future__ import annotations

import resource
from typing import Final

from benchmarks.scenario import Aim, Metric, Scenario, Settings
from benchmarks.servers import Server
from benchmarks.wire import Address, Connection
from benchmarks.workers import Crew, Signals

_CONNECTIONS: Final = 10_000
_SPARE_DESCRIPTORS: Final = 200


def raise_descriptor_limit() -> int:
    """Lift the soft limit of open files to the hard one, for this process and what it starts; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def hold(signals: Signals, address: Address, count: int) -> None:
    """Worker: connect `count` clients, then keep them until stopped."""
    connections: list[Connection] = []
    for _ in range(count):
        connections.append(Connection(address, timeout=20))
    signals.ready()
    signals.wait_stopped(120)
    for connection in connections:
        connection.close()


def idle_memory(server: Server, settings: Settings) -> dict[str, float]:
    """Resident bytes for each of up to 10,000 connected clients that do nothing."""
    wanted = int(_CONNECTIONS * settings.scale)
    count = min(wanted, raise_descriptor_limit() - _SPARE_DESCRIPTORS)
    with Crew() as crew:
        warm = crew.start(hold, server.address, 50)  # what a first client makes the server load is no connection's cost
        warm.wait_ready()
        before = server.resident_bytes()
        holder = crew.start(hold, server.address, count)
        holder.wait_ready(90)
        after = server.resident_bytes()
        return {"bytes": (after - before) / count}


def start_time(server: Server, settings: Settings) -> dict[str, float]:
    """From starting the program, with an empty data directory, to a client's first PONG."""
    return {"seconds": server.start_seconds, "bytes": server.resident_bytes()}


SCENARIOS: Final = (
    Scenario(
        "footprint/idle connection",
        "resident memory of an idle connection",
        (Metric("bytes", "bytes", "lower", aims=(Aim(limit=20 * 1024),)),),
        idle_memory,
        fresh=True,
    ),
    Scenario(
        "footprint/start",
        "start to ready with an empty data directory",
        (
            Metric("seconds", "s", "lower", aims=(Aim(limit=1.0),)),
            Metric("bytes", "bytes", "lower"),
        ),
        start_time,
        fresh=True,
    ),
)
