"""Two real nodes with a registry as witness: killed, cut off from each other, and with a registry that forgets.

Figures are printed in units of the registry's TTL.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.client import Client

from tests.chaos.cut import Cut
from tests.chaos.process import NodeProcess
from tests.chaos.registry import RegistryProcess
from tests.chaos.workload import STREAM, Ledger, check_stream, connect, make_order_stream, publish_orders, read_stream
from tests.ports import free_port

pytestmark = pytest.mark.extended

TTL = 3.0


@dataclass
class Two:
    """Two nodes, the ways between them and to the registry, and the load on them."""

    registry: RegistryProcess
    nodes: list[NodeProcess]
    routes: list[Cut]
    """The way to each node's cluster port."""
    witness: list[Cut]
    """The way from each node to the registry."""
    ledger: Ledger = field(default_factory=Ledger)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    work: list[asyncio.Task[None]] = field(default_factory=list)

    def load(self, client: Client, worker: int) -> None:
        """Publish through this client until the end."""
        work = publish_orders(client.jetstream(), self.ledger, worker, self.stop, pause=0.05)
        self.work.append(asyncio.create_task(work))

    def part(self) -> None:
        for way in self.routes:
            way.cut()

    def meet(self) -> None:
        for way in self.routes:
            way.heal()

    async def waiting(self, node: NodeProcess) -> dict[str, Any]:
        """Why a node does not go on alone, as its health page has it."""
        return (await node.get("/health/cluster"))["cluster"].get("waiting", {})

    async def becomes(self, what: str, condition: Any, seconds: float = 30.0) -> float:
        """Seconds until an awaitable condition holds."""
        begun = monotonic()
        while not await condition():
            assert monotonic() - begun < seconds, what
            await asyncio.sleep(0.05)
        return monotonic() - begun

    async def leads(self, node: NodeProcess, client: Client) -> bool:
        """Whether a node leads the stream, as its own client is told."""
        info = await client.jetstream().stream_info(STREAM)
        return (
            info.cluster is not None and info.cluster.leader == node.arguments[node.arguments.index("--node-name") + 1]
        )

    async def ready(self) -> None:
        """Wait until the stream is on both nodes, and both could go on without the other."""
        client = await connect(*(node.url for node in self.nodes))

        async def both() -> bool:
            try:
                info = await client.jetstream().stream_info(STREAM)
            except Exception:
                return False
            return info.cluster is not None and [each.current for each in info.cluster.replicas or ()] == [True]

        await self.becomes("the stream is not on both nodes", both)
        await client.close()
        await asyncio.sleep(2.5)  # they ask each other every second

    async def silent(self, seconds: float) -> None:
        """Let time pass in which nothing is acknowledged."""
        before = len(self.ledger.published)
        await asyncio.sleep(seconds)
        assert len(self.ledger.published) == before, "a write was acknowledged by one of two"

    async def same(self) -> dict[int, bytes]:
        """End the load. What the stream holds, asked through either node, which must be one and the same."""
        self.stop.set()
        await asyncio.gather(*self.work)
        held: list[dict[int, bytes]] = []
        for node in self.nodes:
            client = await connect(node.url)
            held.append(await read_stream(client.jetstream(), STREAM))
            await check_stream(client.jetstream(), self.ledger)
            await client.close()
        assert held[0] == held[1]
        return held[0]


@pytest_asyncio.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    """Two nodes whose routes and whose ways to the registry can be cut, with a stream of two replicas."""
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(RegistryProcess(ttl=f"{TTL:g}s"))
        nodes: list[NodeProcess] = []
        routes: list[Cut] = []
        witness: list[Cut] = []
        for name in ("n1", "n2"):
            port = free_port()
            route = await stack.enter_async_context(Cut(port))
            way = await stack.enter_async_context(Cut(int(registry.url.rpartition(":")[2])))
            where = ("--cluster-port", str(port), "--advertise", f"127.0.0.1:{route.port}")
            which = ("--registry-url", f"http://127.0.0.1:{way.port}", "--heartbeat-interval", "1s")
            node = NodeProcess(tmp_path / name, *where, *which, "--node-name", name)
            stack.push_async_callback(node.kill)
            await node.start()
            nodes.append(node)
            routes.append(route)
            witness.append(way)
        pair = Two(registry, nodes, routes, witness)
        client = await connect(nodes[0].url)
        await make_order_stream(client.jetstream(), replicas=2)
        await client.close()
        clients: list[Client] = []
        for worker, node in enumerate(nodes):
            clients.append(await connect(node.url))
            pair.load(clients[-1], worker)
        await pair.ledger.published_more(200)
        await pair.ready()
        try:
            yield pair
        finally:
            pair.stop.set()
            for task in pair.work:
                task.cancel()
            await asyncio.gather(*pair.work, return_exceptions=True)
            for client in clients:
                await client.close()


@pytest.mark.timeout(240)
async def test_either_node_is_killed_under_load(two: Two) -> None:
    pauses: list[float] = []
    for victim in (0, 1, 0, 1):
        dead, survivor = two.nodes[victim], two.nodes[1 - victim]
        begun = monotonic()
        await dead.kill()
        await two.ledger.published_more(1)
        pauses.append(monotonic() - begun)
        await two.ledger.published_more(200)
        assert not await two.waiting(survivor)
        await dead.start()
        await two.ready()
        await two.ledger.published_more(200)
    held = await two.same()
    shown = ", ".join(f"{pause / TTL:.2f}" for pause in pauses)
    print(f"\n4 kills of one of two: {len(held)} stored, pauses {shown} TTL of {TTL:g} s")
    assert max(pauses) < TTL + 5


@pytest.mark.timeout(240)
async def test_two_that_are_both_registered_wait_for_each_other(two: Two) -> None:
    two.part()
    await asyncio.sleep(2)
    await two.silent(3 * TTL)
    for node, other in zip(two.nodes, ("n2", "n1"), strict=True):
        assert await two.waiting(node) == {other: [f"the registry still lists {other}"]}
    begun = monotonic()
    two.meet()
    await two.ledger.published_more(1)
    pause = monotonic() - begun
    await two.ready()
    await two.ledger.published_more(200)
    held = await two.same()
    print(f"\ncut off from each other for {2 + 3 * TTL:g} s: {len(held)} stored, resumed {pause / TTL:.2f} TTL after")


@pytest.mark.timeout(240)
async def test_a_registry_that_forgets_makes_nobody_go_alone(two: Two) -> None:
    two.part()
    await asyncio.sleep(2)
    await two.registry.restart()
    await two.silent(3 * TTL)
    for node, other in zip(two.nodes, ("n2", "n1"), strict=True):
        assert f"not in sync with {other} since the latest registry lapse" in (await two.waiting(node))[other]
    two.witness[1].cut()  # now the registry shows n1 alone; but n1 was forgotten, too, and cannot know what it missed
    await two.silent(3 * TTL)
    two.witness[1].heal()
    two.meet()
    await two.ready()
    await two.ledger.published_more(200)
    print(f"\ncut off from each other, the registry forgets: {len(await two.same())} stored")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", [0, 1])
async def test_who_is_cut_off_from_all_waits_while_the_other_goes_on(two: Two, victim: int) -> None:
    lost, stays = two.nodes[victim], two.nodes[1 - victim]
    begun = monotonic()
    two.part()
    two.witness[victim].cut()
    await two.ledger.published_more(1)
    pause = monotonic() - begun
    apart = Two(two.registry, two.nodes, two.routes, two.witness)
    client = await connect(lost.url)
    apart.load(client, 7)
    await two.ledger.published_more(500)
    two.witness[victim].heal()  # registered again, it is told nothing: its own group still needs the other
    await asyncio.sleep(2 * TTL)
    assert not apart.ledger.published, "both sides accept writes"
    assert not await two.waiting(stays) and await two.waiting(lost)
    two.meet()
    await two.ready()
    await apart.ledger.published_more(100)
    apart.stop.set()
    await asyncio.gather(*apart.work)
    await client.close()
    two.ledger.published.update(apart.ledger.published)
    held = await two.same()
    print(f"\none of two cut off from all: the other went on after {pause / TTL:.2f} TTL, {len(held)} stored")
    assert pause < TTL + 5
