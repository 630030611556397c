"""Consumers with many filters beside a stock of many subjects: what it costs to make them, to pull, and to publish.

The stock stands from scenario to scenario. Making the consumers is cut off after a while, as other set-ups are: figures
are then those of as many as there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.asking import ask
from benchmarks.heavy import ASKED
from benchmarks.observer import observing
from benchmarks.scale import create_many
from benchmarks.scenario import Aim, Metric, Scenario, Settings
from benchmarks.servers import Server
from benchmarks.stock import STREAM, Stocked, calm, fill, subject
from benchmarks.wire import Connection
from benchmarks.workers import Crew

_CONSUMERS: Final = 1000
_PULLS: Final = 200
_PUBLISHES: Final = 20_000
_WATCHES: Final = 5
_LONG: Final = 120.0


@dataclass(frozen=True, slots=True)
class Filters:
    """What each consumer filters: `each` subjects, `wild` ones with a wildcard in place of the group."""

    each: int
    wild: bool

    def of(self, consumer: int, subjects: int) -> list[str]:
        """The filters of one consumer; no two consumers share one where there are subjects enough."""
        numbers = [(consumer * self.each + n) % subjects for n in range(self.each)]
        return [f"stock.*.{n}" if self.wild else subject(n) for n in numbers]


def measure(server: Stocked, settings: Settings, filters: Filters) -> dict[str, float]:
    """Seconds of one creation, one pull of all that matches, and one publish; the longest wait of another client."""
    server.stock(settings)
    calm(server, settings.patience)
    with observing([server.address]) as observation:
        with Connection(server.address, timeout=_LONG) as connection:
            made, seconds = create_many(connection, _consumers(filters, settings))
            pulled = _pull_all(connection, filters, min(made, _PULLS))
        published = _publish(server, settings)
        seen = observation.end()
    values = {"create": seconds / max(1, made), "pull": pulled, "publish": published, "made": float(made)}
    _delete(server, made)
    return values | seen.values()


def watch(server: Stocked, settings: Settings) -> dict[str, float]:
    """Seconds until a watch of 1,000 of 100,000 keys has delivered the last of them, as a mean of some."""
    server.stock(settings)
    calm(server, settings.patience)
    request = next(request for request in ASKED if request.name == "watch")
    data, before, expected = request.data(settings), request.setup.before(settings), request.replies(settings)
    seconds = 0.0
    with observing([server.address]) as observation:
        for _ in range(_WATCHES):
            with Crew() as crew:
                worker = crew.start(ask, server.address, data, expected, settings.patience, request.mark, before)
                worker.wait_ready()
                answered = worker.result(settings.patience + 30)
            if answered.replies < expected:
                raise ValueError(f"a watch has got {answered.replies} of {expected} keys: {answered.sample!r}")
            seconds += answered.wait.seconds / _WATCHES
            with server.connect() as connection:
                for gone in request.setup.after:
                    connection.api(gone)
        return {"watch": seconds} | observation.end().values()


def _consumers(filters: Filters, settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    requests: list[tuple[str, dict[str, Any]]] = []
    for n in range(int(_CONSUMERS * settings.scale)):
        config = {"durable_name": f"F{n}", "ack_policy": "none", "filter_subjects": filters.of(n, settings.subjects)}
        body = {"stream_name": STREAM, "config": config}
        requests.append((f"CONSUMER.DURABLE.CREATE.{STREAM}.F{n}", body))
    return requests


def _pull_all(connection: Connection, filters: Filters, count: int) -> float:
    """Seconds of a pull of everything that one consumer's filters match."""
    body = json.dumps({"batch": filters.each, "expires": int(_LONG * 1e9)}).encode()
    connection.send(b"SUB _INBOX.pulled 9\r\n")
    began = time.perf_counter()
    for n in range(count):
        head = f"PUB $JS.API.CONSUMER.MSG.NEXT.{STREAM}.F{n} _INBOX.pulled {len(body)}\r\n".encode()
        connection.send(head + body + b"\r\n")
        for _ in range(filters.each):
            connection.next_message()
    return (time.perf_counter() - began) / max(1, count)


def _publish(server: Server, settings: Settings) -> float:
    """Seconds of one acknowledged publish of many in flight, to subjects that some consumers filter."""
    count = max(_PUBLISHES // 4, int(_PUBLISHES * settings.scale))
    with Crew() as crew:
        filler = crew.start(fill, server.address, subject, count)
        filler.wait_ready()
        began = time.perf_counter()
        filler.result(_LONG)
    return (time.perf_counter() - began) / count


def _delete(server: Server, made: int) -> None:
    with Connection(server.address, timeout=_LONG) as connection:
        create_many(connection, [(f"CONSUMER.DELETE.{STREAM}.F{n}", {}) for n in range(made)])


_WAIT: Final = Metric("wait", "s", "lower", (Aim(limit=0.05),), show="wait", title="others' PING")
_METRICS: Final = (
    Metric("create", "s", "lower"),
    Metric("pull", "s", "lower"),
    Metric("publish", "s", "lower"),
    _WAIT,
    Metric("made", "", show="count", title="consumers"),
)


def _scenario(
    name: str, title: str, metrics: tuple[Metric, ...], run: Callable[[Any, Settings], dict[str, float]]
) -> Scenario:
    return Scenario(f"filters/{name}", title, metrics, run, start=Stocked, layout="servers")


def _filters(each: int, wild: bool) -> Scenario:
    filters = Filters(each, wild)
    kind = "wildcard" if wild else "literal"
    title = f"consumers with {each} {kind} filter{'s' if each > 1 else ''} each"
    return _scenario(f"{kind} {each}", title, _METRICS, lambda server, settings: measure(server, settings, filters))


SCENARIOS: Final = (
    *(_filters(each, wild) for wild in (False, True) for each in (1, 10, 100)),
    _scenario("watch", "watch of 1,000 of 100,000 keys", (Metric("watch", "s", "lower"), _WAIT), watch),
)
