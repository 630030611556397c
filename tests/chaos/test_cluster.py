"""Three real nodes and a registry on loopback: any one of them, or all, die under load; nothing acknowledged is lost.

The same without namespaces and with the forest's charges; what else can happen to a cluster is in `campaign`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chaos.process import NodeProcess
from tests.chaos.registry import RegistryProcess
from tests.chaos.workload import (
    STREAM,
    Ledger,
    check_charges,
    check_stream,
    connect,
    make_order_stream,
    publish_charges,
    publish_orders,
    settle_orders,
)

pytestmark = pytest.mark.extended


@pytest_asyncio.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[NodeProcess]]:
    """Three nodes that know nothing but the registry's URL, one cluster by the time the test begins."""
    async with RegistryProcess(ttl="3s") as registry:
        arguments = ("--registry-url", registry.url, "--heartbeat-interval", "1s")
        started = [NodeProcess(tmp_path / name, *arguments, "--node-name", name) for name in ("n1", "n2", "n3")]
        try:
            for node in started:
                await node.start()
            yield started
        finally:
            await asyncio.gather(*(node.kill() for node in started))


async def live_through_kills(nodes: list[NodeProcess], rounds: int, seed: int) -> Ledger:
    """Load the cluster, kill and restart one node after the other, and check the promises."""
    chance = random.Random(seed)
    ledger = Ledger()
    stop = asyncio.Event()
    client = await connect(*(node.url for node in nodes))
    js = client.jetstream()
    await make_order_stream(js, replicas=3)
    work = [asyncio.create_task(publish_orders(js, ledger, worker, stop)) for worker in range(2)]
    work.append(asyncio.create_task(settle_orders(js, ledger, stop)))
    work.append(asyncio.create_task(publish_charges(js, ledger, stop)))
    try:
        for _ in range(rounds):
            await ledger.published_more(chance.randrange(50, 500))
            victim = chance.choice(nodes)
            await victim.kill()
            await ledger.published_more(50)  # the other two go on
            await victim.start()
        await ledger.published_more(50)
        stop.set()
        await asyncio.gather(*work)
        await check_stream(js, ledger)
        await check_charges(js, ledger)
    finally:
        stop.set()
        for task in work:
            task.cancel()
        await client.close()
    return ledger


@pytest.mark.timeout(120)
async def test_any_node_of_three_may_die(nodes: list[NodeProcess]) -> None:
    health = await nodes[2].get("/health/cluster")
    assert (health["cluster"]["size"], health["cluster"]["replication_factor"]) == (3, 3)
    ledger = await live_through_kills(nodes, rounds=2, seed=1)
    assert ledger.published and ledger.settled and ledger.charges


@pytest.mark.timeout(120)
async def test_a_power_cut_of_all_nodes(nodes: list[NodeProcess]) -> None:
    ledger, stop = Ledger(), asyncio.Event()
    client = await connect(*(node.url for node in nodes))
    js = client.jetstream()
    await make_order_stream(js, replicas=3)
    work = [asyncio.create_task(publish_orders(js, ledger, worker, stop)) for worker in range(2)]
    try:
        await ledger.published_more(500)
        await asyncio.gather(*(node.kill() for node in nodes))
        await asyncio.gather(*(node.start() for node in nodes))
        await ledger.published_more(500)
        stop.set()
        await asyncio.gather(*work)
        await check_stream(js, ledger)
        info = await js.stream_info(STREAM)
        assert info.cluster is not None and len(info.cluster.replicas or ()) == 2
    finally:
        stop.set()
        for task in work:
            task.cancel()
        await client.close()


@pytest.mark.timeout(900)
async def test_nodes_die_for_minutes(nodes: list[NodeProcess]) -> None:
    ledger = await live_through_kills(nodes, rounds=20, seed=2)
    print(
        f"\n20 kills in a cluster of three: {len(ledger.published)} acknowledged publishes, {len(ledger.settled)} "
        f"confirmed acks, {len(ledger.charges)} charges: nothing lost, nothing doubled"
    )
