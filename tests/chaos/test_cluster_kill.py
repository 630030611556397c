"""Three processes that know a registry and nothing else: kill -9 of any of them loses nothing acknowledged."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from time import monotonic

import nats
import pytest
from nats.js.api import ConsumerConfig, StreamConfig

from tests.chaos.process import NodeProcess
from tests.chaos.workload import CONSUMER, STREAM, Ledger, check_stream, publish_orders, quiet, settle_orders


class RegistryProcess(NodeProcess):
    """`python -m nimsnats registry` on a fixed port."""

    def _command_line(self) -> list[str]:
        where = ["--listen", f"127.0.0.1:{self.monitor_port}", "--ttl", "5s"]
        return [*super()._command_line()[:3], "registry", *where]


async def health(node: NodeProcess) -> tuple[int, int]:
    """Size and factor of the cluster as a node shows them."""
    cluster = (await node.get("/health/cluster"))["cluster"]
    return cluster["size"], cluster["replication_factor"]


async def live_through(directory: Path, rounds: int, seed: int) -> tuple[Ledger, list[float]]:
    """Load three nodes, kill one of them `rounds` times, and check what they promised; the pauses in seconds."""
    chance = random.Random(seed)
    registry = RegistryProcess(directory / "registry", ready="listening")
    await registry.start()
    url = f"http://127.0.0.1:{registry.monitor_port}"
    nodes = [
        NodeProcess(directory / name, "--registry-url", url, "--node-name", name, "--heartbeat-interval", "1s")
        for name in ("n1", "n2", "n3")
    ]
    ledger, stop, pauses = Ledger(), asyncio.Event(), list[float]()
    work: list[asyncio.Task[None]] = []
    try:
        for node in nodes:
            await node.start()
        assert [await health(node) for node in nodes] == [(3, 3)] * 3
        client = await nats.connect(
            [node.url for node in nodes], error_cb=quiet, reconnect_time_wait=0.05, max_reconnect_attempts=-1
        )
        js = client.jetstream()
        await js.add_stream(StreamConfig(name=STREAM, subjects=["orders.>"], num_replicas=3))
        await js.add_consumer(STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy="explicit", ack_wait=2))
        work += [asyncio.create_task(publish_orders(js, ledger, worker, stop)) for worker in range(2)]
        work.append(asyncio.create_task(settle_orders(js, ledger, stop)))
        for _ in range(rounds):
            await ledger.published_more(chance.randrange(200, 800))
            victim = chance.choice(nodes)
            started = monotonic()
            await victim.kill()
            await ledger.published_more(64)
            pauses.append(monotonic() - started)
            await victim.start()
        stop.set()
        await asyncio.gather(*work)
        await check_stream(js, ledger)
        await client.close()
    finally:
        stop.set()
        for task in work:
            task.cancel()
        for node in (*nodes, registry):
            await node.kill()
    return ledger, pauses


@pytest.mark.extended
async def test_kills_of_any_node_lose_nothing(tmp_path: Path) -> None:
    ledger, pauses = await live_through(tmp_path, rounds=6, seed=3)
    assert ledger.published and ledger.settled
    print(f"{len(ledger.published)} published, {len(ledger.settled)} settled, pauses {[round(p, 2) for p in pauses]}")


@pytest.mark.extended
async def test_a_power_cut_of_all_nodes_and_a_rolling_restart_lose_nothing(tmp_path: Path) -> None:
    registry = RegistryProcess(tmp_path / "registry", ready="listening")
    await registry.start()
    url = f"http://127.0.0.1:{registry.monitor_port}"
    nodes = [
        NodeProcess(tmp_path / name, "--registry-url", url, "--node-name", name, "--heartbeat-interval", "1s")
        for name in ("n1", "n2", "n3")
    ]
    ledger, stop = Ledger(), asyncio.Event()
    work: list[asyncio.Task[None]] = []
    try:
        for node in nodes:
            await node.start()
        client = await nats.connect(
            [node.url for node in nodes], error_cb=quiet, reconnect_time_wait=0.05, max_reconnect_attempts=-1
        )
        js = client.jetstream()
        await js.add_stream(StreamConfig(name=STREAM, subjects=["orders.>"], num_replicas=3))
        work += [asyncio.create_task(publish_orders(js, ledger, worker, stop)) for worker in range(2)]
        await ledger.published_more(500)
        await asyncio.gather(*(node.kill() for node in nodes))
        await asyncio.gather(*(node.start() for node in nodes))
        await ledger.published_more(500)
        for node in nodes:
            started = monotonic()
            assert await node.terminate() == 0
            stopped = monotonic()
            await node.start()
            again = monotonic()
            await ledger.published_more(200)
            print(
                f"stop {stopped - started:.2f} s, start {again - stopped:.2f} s, 200 more {monotonic() - again:.2f} s"
            )
        stop.set()
        await asyncio.gather(*work)
        await check_stream(js, ledger)
        info = await js.stream_info(STREAM)
        assert info.cluster is not None and len(info.cluster.replicas or ()) == 2
        await client.close()
    finally:
        stop.set()
        for task in work:
            task.cancel()
        for node in (*nodes, registry):
            await node.kill()
