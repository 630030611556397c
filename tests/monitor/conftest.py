"""A broker of ours with its monitor beside the oracle with its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.server import Broker
from nimsnats.monitor.server import MonitorServer
from nimsnats.monitor.system import SystemServices
from nimsnats.monitor.view import NodeView
from nimsnats.runtime import Runtime
from tests.conformance.oracle import Oracle
from tests.monitor.sides import Side


def monitored(oracle: Oracle) -> Side:
    """An oracle that was started with `-m -1`."""
    (ports,) = oracle.directory.glob("nats-server_*.ports")
    monitoring = json.loads(ports.read_text())["monitoring"][0]
    return Side("theirs", oracle.port, int(monitoring.rpartition(":")[2]))


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """The Go server without JetStream."""
    server = Oracle(tmp_path_factory.mktemp("monitored"))
    yield monitored(server.start("", "-m", "-1"))
    server.stop()


@pytest_asyncio.fixture
async def view() -> AsyncIterator[NodeView]:
    """The view on a running broker of ours, without JetStream."""
    broker = Broker(BrokerOptions(host="127.0.0.1", port=-1), Runtime.real())
    await broker.start()
    view = NodeView(broker)
    view.start()
    yield view
    view.stop()
    await broker.stop()


@pytest_asyncio.fixture
async def http(view: NodeView) -> AsyncIterator[MonitorServer]:
    """Its HTTP server and its answers on `$SYS`."""
    server = MonitorServer(view, "127.0.0.1", -1)
    await server.start()
    system = SystemServices(view)
    system.start()
    yield server
    system.stop()
    await server.stop()


@pytest.fixture
def ours(view: NodeView, http: MonitorServer) -> Side:
    """Our server, as the outside sees it."""
    return Side("ours", view.broker.port, http.port)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory for a server's streams."""
    return tmp_path / "store"
