"""The garbage collector's pauses beside a million subscriptions: counted inside of a Python server, felt outside.

Subscriptions grow at a pace that a server can follow, so that it is not they that others wait for; then clients come,
publish and go. Of a Python server the collector's own count of its pauses is read as well.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Final

from benchmarks.observer import observing
from benchmarks.scenario import Aim, Metric, Scenario, Settings
from benchmarks.servers import Kind, Server
from benchmarks.wire import Address, Connection
from benchmarks.workers import Crew, Signals

_INSIDE: Final = Path(__file__).parent / "inside"
_LAYOUT: Final = struct.Struct("<Qdd")
_GENERATIONS: Final = 3
_CLIENTS: Final = 20
_EACH: Final = 200
_WORKING: Final = 8.0


class Counted(Server):
    """A server whose collector writes its pauses down."""

    def __init__(self, kind: Kind, base: Path | None = None) -> None:
        self._table = b""
        super().__init__(kind, base)

    def environment(self) -> dict[str, str]:
        """What makes a Python server load the counter."""
        file = self.directory / "collector"
        file.write_bytes(bytes(_GENERATIONS * _LAYOUT.size))
        return {"PYTHONPATH": str(_INSIDE), "BENCHMARKS_COLLECTOR": str(file)}

    def pauses(self) -> dict[str, float]:
        """The longest pause of any collection and of a full one in seconds, and how many full ones there were."""
        if self.kind.source is None:
            return {}
        rows = list(_LAYOUT.iter_unpack((self.directory / "collector").read_bytes()))
        number, total, longest = rows[-1]
        return {"pause": max(row[2] for row in rows), "full": number, "full pause": longest, "full total": total}


def subscribe(signals: Signals, address: Address, count: int) -> None:
    """Worker: a connection that makes so many subscriptions in small steps, and keeps them until stopped."""
    with Connection(address, timeout=60) as connection:
        signals.ready()
        for first in range(0, count, _EACH):
            lines = (f"SUB grow.{n % 1000}.{n} {n}\r\n" for n in range(first, min(first + _EACH, count)))
            connection.send("".join(lines).encode())
            connection.flush()
            time.sleep(0.001)
        signals.ready()
        signals.wait_stopped(600)


def come_and_go(signals: Signals, address: Address) -> int:
    """Worker: clients that connect, subscribe, publish and go until stopped; how many there were."""
    signals.ready()
    number = 0
    while not signals.stopped():
        with Connection(address, timeout=60) as connection:
            lines = b"".join(b"SUB came.%d.%d %d\r\n" % (number, n, n) for n in range(_CLIENTS))
            connection.send(lines + b"PUB came.nobody 5\r\nhello\r\n" * _EACH)
            connection.flush()
        number += 1
        time.sleep(0.002)
    return number


def measure(server: Counted, settings: Settings) -> dict[str, float]:
    """The waits and pauses while subscriptions grow, and beside them."""
    with Crew() as crew:
        with observing([server.address], greetings=False) as observation:
            holder = crew.start(subscribe, server.address, settings.subjects)
            holder.wait_ready()
            holder.wait_ready(600)
            grown = observation.end().values()
        with observing([server.address], greetings=False) as observation:
            worker = crew.start(come_and_go, server.address)
            worker.wait_ready()
            time.sleep(_WORKING * settings.scale)
            beside = observation.end().values()
            worker.stop()
            worker.result(60)
        pauses = server.pauses()
        holder.stop()
    values = {key.replace("wait", "grown"): value for key, value in grown.items()}
    return values | {key.replace("wait", "beside"): value for key, value in beside.items()} | pauses


_AT_MOST: Final = (Aim(limit=0.05),)

SCENARIOS: Final = (
    Scenario(
        "requests/collector",
        "PINGs beside many subscriptions that grow, and that stand",
        (
            Metric("grown", "s", "lower", _AT_MOST, show="wait", title="PING while they grow"),
            Metric("beside", "s", "lower", _AT_MOST, show="wait", title="PING beside them"),
            Metric("pause", "s", "lower", _AT_MOST, show="wait", title="longest collection"),
            Metric("full", "", "lower", show="count", title="full collections"),
            Metric("full pause", "s", "lower", show="wait", title="longest full one"),
            Metric("full total", "s", "lower", table=False),
        ),
        measure,
        fresh=True,
        start=Counted,
        layout="servers",
    ),
)
