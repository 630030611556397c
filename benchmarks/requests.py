"""Heavy requests beside a stock of many subjects: how long each takes, and what another client waits meanwhile.

The stock stands from request to request; a server that does not come to rest again is started anew with its store.
"""

from __future__ import annotations

import time
from typing import Final

from benchmarks.asking import ask
from benchmarks.heavy import ASKED, FULL, OWN, Request, own
from benchmarks.observer import observing
from benchmarks.scenario import Aim, Metric, Scenario, Settings
from benchmarks.servers import Server
from benchmarks.stock import Stocked, calm, stored
from benchmarks.wire import Connection, WireError
from benchmarks.workers import Crew

_AFTERWARDS: Final = 0.3
"""Seconds that the observer goes on after the last answer."""


def measure(server: Stocked, settings: Settings, request: Request) -> dict[str, float]:
    """Prepare, send one request or pipeline, and clean up."""
    server.stock(settings)
    calm(server, settings.patience)
    _prepare(server, settings, request)
    try:
        return _ask(server, settings, request)
    finally:
        calm(server, settings.patience)
        _clean(server, request)


def _ask(server: Server, settings: Settings, request: Request) -> dict[str, float]:
    expected = request.replies(settings)
    data, before = request.data(settings), request.setup.before(settings)
    with Crew() as crew, observing([server.address]) as observation:
        worker = crew.start(ask, server.address, data, expected, settings.patience, request.mark, before)
        worker.wait_ready(settings.patience + 60)
        answered = worker.result(settings.patience + 30)
        time.sleep(_AFTERWARDS)
        seen = observation.end()
    values = seen.values() | answered.wait.values("answered")
    return values | ({"replies": answered.replies / expected} if expected else {})


def _prepare(server: Server, settings: Settings, request: Request) -> None:
    setup = request.setup
    if setup.config:
        stored(server.address, setup.config, own, setup.messages * settings.subjects // FULL)
    with server.connect() as connection:
        connection.socket.settimeout(60)
        for subject, body in setup.requests:
            connection.api(subject, body)


def _clean(server: Server, request: Request) -> None:
    setup = request.setup
    gone = [f"STREAM.DELETE.{OWN}"] if setup.config else []
    with Connection(server.address, timeout=60) as connection:
        for subject in (*setup.after, *gone):
            try:
                connection.api(subject)
            except WireError as error:
                if "not found" not in str(error):
                    raise


_AT_MOST: Final = (Aim(limit=0.05),)
_METRICS: Final = (
    Metric("wait", "s", "lower", _AT_MOST, show="wait", title="others' PING"),
    Metric("greeting", "s", "lower", _AT_MOST, show="wait"),
    Metric("answered", "s", "lower", show="wait", title="the request itself"),
    Metric("replies", "", show="share", title="answers"),
    Metric("samples", "", table=False),
)

SCENARIOS: Final = tuple(
    Scenario(
        f"requests/{request.name}",
        request.title,
        _METRICS,
        lambda server, settings, request=request: measure(server, settings, request),
        start=Stocked,
        layout="servers",
    )
    for request in ASKED
)
