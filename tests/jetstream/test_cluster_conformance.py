"""A cluster of ours and one of three Go servers get the same requests, and give the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import nats
import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client

from benchmarks.go_cluster import SYSTEM_USER, GoCluster
from tests.conformance.oracle import binary
from tests.jetstream.conformance import comparable
from tests.jetstream.trio import TAGS, Trio, ask, trio

pytestmark = [pytest.mark.extended, pytest.mark.asyncio(loop_scope="module")]

Step = tuple[Any, ...]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoCluster]:
    """Three Go servers."""
    binary()
    with GoCluster(tmp_path_factory.mktemp("go"), tags=TAGS) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ours(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trio]:
    """Three nodes of ours."""
    async with trio(tmp_path_factory.mktemp("ours")) as cluster:
        yield cluster


class Side:
    """One of the clusters, seen by a client of the application and one of the system account on n2."""

    def __init__(self, app: Client, system: Client) -> None:
        self.app = app
        self.system = system

    async def play(self, steps: list[Step]) -> list[Any]:
        """The answers to all steps."""
        return [await self._step(*step) for step in steps]

    async def _step(self, subject: str, body: Any = None, *, system: bool = False) -> Any:
        if subject == "LED":
            return await self._led(*body)
        if subject.startswith("LEAD "):
            await ask(self.app, f"STREAM.LEADER.STEPDOWN.{subject[5:]}", preferred(body))
            return await self._led(f"STREAM.INFO.{subject[5:]}", body)
        return comparable(await ask(self.system if system else self.app, subject, body))

    async def _led(self, subject: str, leader: str = "") -> None:
        """Wait until a stream or consumer has a leader, all replicas are current and nothing is on its way."""
        async with asyncio.timeout(10):
            while True:
                cluster: dict[str, Any] = {}
                with suppress(nats.errors.TimeoutError):  # a Go server says nothing while nobody leads
                    cluster = (await ask(self.app, subject, timeout=0.3)).get("cluster", {})
                current = all(replica["current"] for replica in cluster.get("replicas") or ())
                if current and cluster.get("leader") and "desired" not in cluster and leader in ("", cluster["leader"]):
                    return
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture(loop_scope="module")
async def sides(theirs: GoCluster, ours: Trio) -> AsyncIterator[tuple[Side, Side]]:
    """Both, the Go servers first."""
    user, password = SYSTEM_USER
    clients: list[Client] = []
    for url in (theirs["n2"].url, ours["n2"].url):
        clients.append(await nats.connect(url, allow_reconnect=False))
        clients.append(await nats.connect(url, user=user, password=password, allow_reconnect=False))
    yield Side(*clients[:2]), Side(*clients[2:])
    for client in clients:
        await client.close()


def stream(name: str, replicas: int = 1, **more: Any) -> Step:
    """A step that creates a stream."""
    return f"STREAM.CREATE.{name}", {"name": name, "subjects": [name.lower()], "num_replicas": replicas, **more}


def update(name: str, replicas: int = 1, **more: Any) -> Step:
    """A step that changes a stream."""
    return f"STREAM.UPDATE.{name}", {"name": name, "subjects": [name.lower()], "num_replicas": replicas, **more}


def durable(stream: str, name: str) -> Step:
    """A step that creates a pull consumer."""
    config = {"durable_name": name, "name": name, "ack_policy": "explicit"}
    return f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config}


def preferred(name: str) -> dict[str, Any]:
    """The body of a step-down in favour of a server."""
    return {"placement": {"preferred": name}}


STEP_DOWN: list[Step] = [
    stream("S", 3),
    durable("S", "C"),
    stream("ONE"),
    ("LED", ("STREAM.INFO.S",)),
    ("STREAM.LEADER.STEPDOWN.NOPE",),
    ("STREAM.LEADER.STEPDOWN.ONE",),
    ("STREAM.LEADER.STEPDOWN.ONE", preferred("n9")),
    ("STREAM.LEADER.STEPDOWN.ONE", {"placement": {"tags": ["ssd"]}}),
    ("STREAM.LEADER.STEPDOWN.S", preferred("n9")),
    ("STREAM.LEADER.STEPDOWN.S", '{"bad'),
    ("STREAM.LEADER.STEPDOWN.S", {"placement": {"cluster": "X"}}),
    ("STREAM.LEADER.STEPDOWN.S", {"placement": {"tags": ["none"]}}),
    ("LEAD S", "n1"),
    ("STREAM.LEADER.STEPDOWN.S", {"placement": {"tags": ["hdd"]}}),
    ("LED", ("STREAM.INFO.S", "n3")),
    ("STREAM.LEADER.STEPDOWN.S", preferred("n1")),
    ("LED", ("STREAM.INFO.S", "n1")),
    ("STREAM.LEADER.STEPDOWN.S", preferred("n1")),
    ("STREAM.LEADER.STEPDOWN.S", "garbage"),
    ("LED", ("STREAM.INFO.S",)),
    ("CONSUMER.LEADER.STEPDOWN.NOPE.C",),
    ("CONSUMER.LEADER.STEPDOWN.S.NOPE",),
    ("CONSUMER.LEADER.STEPDOWN.S.C", preferred("n9")),
    ("CONSUMER.LEADER.STEPDOWN.S.C",),
    ("LED", ("CONSUMER.INFO.S.C",)),
]
PEERS: list[Step] = [
    stream("P", 3),
    durable("P", "C"),
    stream("LONE"),
    ("LED", ("STREAM.INFO.P",)),
    ("LED", ("CONSUMER.INFO.P.C",)),
    ("STREAM.PEER.REMOVE.NOPE", {"peer": "n1"}),
    ("STREAM.PEER.REMOVE.P",),
    ("STREAM.PEER.REMOVE.P", {"peer": ""}),
    ("STREAM.PEER.REMOVE.P", '{"bad'),
    ("STREAM.PEER.REMOVE.P", {"peer": "n9"}),
    ("STREAM.PEER.REMOVE.P", {"peer": "n1"}),
    ("STREAM.PEER.EVACUATE.P", {"peer": "n9"}),
    ("STREAM.PEER.EVACUATE.P", {"peer": "n1"}),
    ("CONSUMER.PEER.REMOVE.P.C", {"peer": "n1"}),
    ("CONSUMER.PEER.EVACUATE.P.C", {"peer": "n1"}),
    ("CONSUMER.PEER.REMOVE.P.C", {"peer": "n9"}),
    ("CONSUMER.PEER.REMOVE.P.C",),
    ("CONSUMER.PEER.REMOVE.P.NOPE", {"peer": "n1"}),
    ("STREAM.CANCEL_MOVE.P",),
    ("STREAM.CANCEL_MOVE.NOPE",),
]
PLACEMENT: list[Step] = [
    stream("T1", placement={"tags": ["ssd"]}),
    stream("T2", 2, placement={"tags": ["hdd"]}),
    stream("T3", placement={"tags": ["none", "az:a"]}),
    stream("T4", placement={"cluster": "other"}),
    stream("T5", 2, placement={"tags": ["!hdd"]}),
    stream("T6", placement={"tags": ["SSD", "az:b"]}),
    stream("T7", placement={"preferred": "n1"}),
    stream("T8", 6),
    update("T6", placement={"tags": ["none"]}),
    update("T6", placement={"cluster": "other"}),
    update("T6", 2, placement={"tags": ["az:b"]}),
    update("T1", placement={"tags": ["hdd"]}),
    ("LED", ("STREAM.INFO.T1", "n3")),
    ("STREAM.INFO.T1",),
    update("T1", 3),
    ("LED", ("STREAM.INFO.T1",)),
    ("STREAM.INFO.T1",),
    update("T1", 1, placement={"tags": ["az:b"]}),
    update("T1", 1),
    ("LED", ("STREAM.INFO.T1",)),
    ("STREAM.INFO.T1",),
]


@pytest.mark.parametrize("steps", [STEP_DOWN, PEERS, PLACEMENT], ids=["step-down", "peers", "placement"])
async def test_the_application_gets_the_same_answers(steps: list[Step], sides: tuple[Side, Side]) -> None:
    expected, answers = [await side.play(steps) for side in sides]
    for step, theirs, ours in zip(steps, expected, answers, strict=True):
        assert ours == theirs, step


SYSTEM: list[Step] = [
    ("META.LEADER.STEPDOWN", preferred("n9")),
    ("META.LEADER.STEPDOWN", {"placement": {"cluster": "X"}}),
    ("META.LEADER.STEPDOWN", {"placement": {"tags": ["none"]}}),
    ("META.LEADER.STEPDOWN", '{"bad'),
    ("SERVER.REMOVE",),
    ("SERVER.REMOVE", {"peer": "n9"}),
    ("SERVER.REMOVE", {"peer_id": "nope"}),
    ("SERVER.REMOVE", '{"bad'),
    ("ACCOUNT.STREAM.MOVE.APP.NOPE", {"server": "n1"}),
    ("ACCOUNT.STREAM.MOVE.NOPE.M", {"server": "n1"}),
    ("ACCOUNT.STREAM.MOVE.APP.M", {"server": "n9"}),
]


async def test_the_system_account_gets_the_same_answers(sides: tuple[Side, Side]) -> None:
    expected: list[Any] = []
    for side in sides:
        await side.play([stream("M")])
        expected.append([await side._step(*step, system=True) for step in SYSTEM])
    for step, theirs, ours in zip(SYSTEM, *expected, strict=True):
        assert ours == theirs, step
