"""Pytest fixtures with a real NATS server, JetStream included, in the test's own event loop.

    async def test_order(nats_client, jetstream): ...

Each test gets a fresh server on an ephemeral loopback port with its store in a temporary folder. The fixtures are
asynchronous and need pytest-asyncio (or anyio's pytest plugin); without one pytest itself says so at their use.
The heavy imports wait until a fixture is used, so that the plugin costs other test suites nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

try:
    from pytest_asyncio import fixture as async_fixture
except ImportError:  # another asyncio plugin of the user's choice runs plain pytest fixtures
    from pytest import fixture as async_fixture

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js.client import JetStreamContext

    from nimsnats import Server


@async_fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[Server]:
    """A running `nimsnats.Server`: `server.url` for clients, `server.client()` for one without a socket."""
    from nimsnats import Server

    async with Server(store_dir=tmp_path / "nimsnats") as server:
        yield server


@async_fixture
async def nats_client(nats_server: Server) -> AsyncIterator[Client]:
    """A nats-py client connected to `nats_server` through memory."""
    client = await nats_server.client()
    yield client
    await client.close()


@pytest.fixture
def jetstream(nats_client: Client) -> JetStreamContext:
    """The JetStream context of `nats_client`."""
    return nats_client.jetstream()  # pyright: ignore[reportUnknownMemberType] - nats-py leaves its options untyped
