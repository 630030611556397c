"""A broker of ours beside the oracle, each on its own loopback port."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.server import Broker
from nimsnats.runtime import Runtime


@pytest_asyncio.fixture
async def broker() -> AsyncIterator[Broker]:
    """A running broker with default settings."""
    server = Broker(BrokerOptions(host="127.0.0.1", port=-1), Runtime.real())
    await server.start()
    yield server
    await server.stop()
