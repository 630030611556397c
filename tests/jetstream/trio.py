"""Three nodes of ours, n1 to n3, that are one JetStream, set up as the Go cluster of `benchmarks.go_cluster`.

Clients without credentials belong to the account APP; `SYSTEM_USER` is of the system account.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import nats
from nats.aio.client import Client
from nats.js import JetStreamContext

from benchmarks.go_cluster import SYSTEM_USER
from nimsnats.broker.options import User
from nimsnats.config.settings import AccountSettings
from nimsnats.jetstream.account import JetStreamAccount
from nimsnats.jetstream.serving import ServedStream
from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.jetstream.nodes import HubNode

APP = "APP"
TAGS = {"n1": ["az:a", "ssd"], "n2": ["az:b", "ssd"], "n3": ["az:c", "hdd"]}


class TrioNode(HubNode):
    """A node with a system user, an application's account, tags and an HTTP port."""

    def __init__(self, directory: Path, name: str, hub: MemoryHub, tags: Sequence[str] = ()) -> None:
        super().__init__(directory, name, hub)
        settings, (user, password) = self.settings, SYSTEM_USER
        settings.monitor.port = -1
        settings.broker.tags = list(tags)
        settings.broker.users = [User(user, password, "SYS"), User("app", "app", APP)]
        settings.broker.no_auth_user = "app"
        settings.broker.system_account = "SYS"
        settings.accounts = [AccountSettings("SYS"), AccountSettings(APP, jetstream=True)]

    @property
    def name(self) -> str:
        """The node's name."""
        return self.settings.node_name

    @property
    def app(self) -> JetStreamAccount:
        """The application's streams on this node."""
        return self.engine.accounts[APP]

    def served(self, stream: str) -> ServedStream | None:
        """The node's replica of a stream of the application."""
        return self.app.streams.get(stream)

    @property
    def http(self) -> str:
        """The base of the monitoring port's URLs."""
        assert self.server.monitor is not None
        return f"http://127.0.0.1:{self.server.monitor.port}"

    async def get(self, path: str) -> Any:
        """The JSON at a path of the monitoring port."""
        async with aiohttp.ClientSession() as session, session.get(self.http + path) as answer:
            return await answer.json(content_type=None)


class Trio:
    """The running nodes, with a client of the application on each."""

    def __init__(self, directory: Path, tags: Mapping[str, Sequence[str]]) -> None:
        self.directory = directory
        self.hub = MemoryHub(Runtime.real())
        self.nodes = [TrioNode(directory, name, self.hub, tags.get(name, ())) for name in ("n1", "n2", "n3")]
        self.clients: list[Client] = []

    def __getitem__(self, name: str) -> TrioNode:
        return next(node for node in self.nodes if node.name == name)

    @property
    def contexts(self) -> list[JetStreamContext]:
        """The JetStream of each client."""
        return [client.jetstream() for client in self.clients]

    @property
    def running(self) -> list[TrioNode]:
        """Nodes that have not been killed."""
        return [node for node in self.nodes if node.cluster is not None]

    def leader(self, stream: str) -> str:
        """Who leads a stream; empty for nobody."""
        return next((node.name for node in self.running if node.leads(stream)), "")

    def meta_leader(self) -> TrioNode | None:
        """Who leads the catalogue."""
        return next((node for node in self.running if node.engine.meta.group.leading), None)

    async def led(self, stream: str) -> str:
        """Wait until somebody leads a stream; who it is."""
        await until(lambda: bool(self.leader(stream)))
        return self.leader(stream)

    async def system(self, at: int = 0) -> Client:
        """A client of the system account."""
        user, password = SYSTEM_USER
        return await nats.connect(self.nodes[at].url, user=user, password=password, allow_reconnect=False)

    async def ask(self, at: int, subject: str, body: object = None) -> dict[str, Any]:
        """A request of the JetStream API through one of the clients; a body that is no text is sent as JSON."""
        return await ask(self.clients[at], subject, body)


async def ask(client: Client, subject: str, body: object = None, timeout: float = 6) -> dict[str, Any]:
    """The JSON answer to a request below `$JS.API`; a body that is no text is sent as JSON."""
    data = body if isinstance(body, str) else "" if body is None else json.dumps(body)
    answer = await client.request(f"$JS.API.{subject}", data.encode(), timeout=timeout)
    found: dict[str, Any] = json.loads(answer.data)
    return found


@asynccontextmanager
async def trio(directory: Path, tags: Mapping[str, Sequence[str]] = TAGS) -> AsyncIterator[Trio]:
    """Start three nodes, one after the other, with a client on each."""
    cluster = Trio(directory, tags)
    async with AsyncExitStack() as stack:
        for node in cluster.nodes:
            await stack.enter_async_context(node)
        for node in cluster.nodes:
            client = await nats.connect(node.url, allow_reconnect=False)
            stack.push_async_callback(client.close)
            cluster.clients.append(client)
        yield cluster
