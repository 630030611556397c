"""Recovery after whole clusters have died: what one of two or three is left with, and lost nodes that come back."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.backup.test_commands import Run, run
from tests.backup.test_recover import SENT, cluster, goes_on_alone, publish, recovered
from tests.broker.peer import until
from tests.chaos.process import READY, SERVER_READY, NodeProcess
from tests.chaos.registry import RegistryProcess
from tests.chaos.workload import Ledger, check_stream, connect, make_order_stream, publish_orders
from tests.jetstream.archives import ask, snapshot
from tests.jetstream.nodes import HubNode

__all__ = ["run"]
pytestmark = [pytest.mark.extended, pytest.mark.timeout(240)]


def conflicts(node: HubNode) -> set[str]:
    assert node.engine.cluster is not None
    return set(node.engine.cluster.conflicts)


async def test_a_lost_node_that_comes_back_with_its_data_is_refused(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    hub = MemoryHub(Runtime.real())
    async with AsyncExitStack() as stack:
        for node in await cluster(stack, tmp_path, hub, "n1", "n2"):
            await node.kill()
    await recovered(run, tmp_path / "n1")
    async with HubNode(tmp_path, "n1", hub) as alone:
        await goes_on_alone(alone, 20, SENT)
        async with HubNode(tmp_path, "n2", hub) as back:
            await until(lambda: conflicts(back) == {"n1"} and conflicts(alone) == {"n2"})
            assert "Node n1 was a member of this cluster and has gone on without it" in caplog.text
            await publish(alone, b"more")
            await asyncio.sleep(2)  # several elections long
            served = back.served("S")
            assert served is None or (not served.stream.leading and served.stream.store.last_seq <= 20)
            assert not back.engine.meta.group.leader
            client = await alone.connect()
            assert [one.payload for one in (await snapshot(client, "S")).messages] == [*SENT, b"after", b"more"]
            await client.close()
        shutil.rmtree(tmp_path / "n2")
        async with HubNode(tmp_path, "n2", hub) as new:
            await until(lambda: (served := new.served("S")) and served.stream.store.last_seq == 22)
            assert not conflicts(new)
            await until(lambda: not conflicts(alone))


async def test_one_of_three_goes_on_with_what_it_has(tmp_path: Path, run: Run) -> None:
    """It was behind, and of other streams it has nothing: both is told, and nothing begins again unnoticed."""
    hub = MemoryHub(Runtime.real())
    async with AsyncExitStack() as stack:
        nodes = await cluster(stack, tmp_path, hub, "n1", "n2", "n3")
        client = await nodes[0].connect()
        for name, more in (("A", {}), ("M", {"storage": "memory", "num_replicas": 3})):
            for n in range(3 if name == "A" else 1):
                config = {"name": f"{name}{n}", "subjects": [f"{name}{n}"], **more}
                assert "error" not in await ask(client, f"STREAM.CREATE.{name}{n}", config)
                await client.jetstream().publish(f"{name}{n}", b"x")
        where = {name: [node for node in nodes if node.leads(name)] for name in ("A0", "A1", "A2")}
        last = nodes[2]
        await client.close()
        await until(lambda: last.served("M0") is not None)
        await last.kill()
        await publish(nodes[0], b"only", b"there")
        for node in nodes[:2]:
            await node.kill()
    here = {name for name, (node,) in where.items() if node is last}
    assert len(here) == 1
    told = await recovered(run, tmp_path / "n3")
    assert "The sequences of such messages are given out again" in told and "shared with n1, n2" in told
    for name in where.keys() - here:
        assert f"stream {name}: not here, only on n" in told
    assert "stream M0: in memory" in told
    async with HubNode(tmp_path, "n3", hub) as alone:
        await goes_on_alone(alone, 20, SENT)
        client = await alone.connect()
        names = (await ask(client, "STREAM.NAMES"))["streams"]
        assert sorted(names) == sorted([*here, "S"])
        for name in here:
            assert (await ask(client, f"STREAM.INFO.{name}"))["state"]["messages"] == 1
        await client.close()


async def test_real_nodes_killed_under_load(tmp_path: Path, run: Run) -> None:
    """kill -9 of both in the same moment, under load; what both had acknowledged is there."""
    ledger, stop = Ledger(), asyncio.Event()
    async with RegistryProcess(ttl="3s") as registry:
        where = ("--registry-url", registry.url, "--heartbeat-interval", "1s")
        nodes = [NodeProcess(tmp_path / name, *where, "--node-name", name) for name in ("n1", "n2")]
        try:
            for node in nodes:
                await node.start()
            client = await connect(*(node.url for node in nodes))
            js = client.jetstream()
            await make_order_stream(js, replicas=2)
            work = [asyncio.create_task(publish_orders(js, ledger, worker, stop)) for worker in range(2)]
            await ledger.published_more(500)
            await asyncio.gather(*(node.kill() for node in nodes))
            stop.set()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await client.close()
            await recovered(run, tmp_path / "n2")
            await nodes[1].start()
            client = await connect(nodes[1].url)
            await check_stream(client.jetstream(), ledger)
            nodes[0].ready = SERVER_READY  # its forest waits for streams that nobody leads
            await nodes[0].start()
            await until_it(lambda: in_conflict(nodes[0]))
            await until_it(lambda: in_conflict(nodes[1]))
            await asyncio.sleep(2)
            lines = [line for line in nodes[0].log if "has gone on without it" in line]
            assert len(lines) == 1, len(lines)
            await check_stream(client.jetstream(), ledger)
            await nodes[0].kill()
            shutil.rmtree(tmp_path / "n1")
            nodes[0].ready = READY
            await nodes[0].start()

            async def both() -> bool:
                info = await client.jetstream().stream_info("ORDERS")
                return info.cluster is not None and [one.current for one in info.cluster.replicas or ()] == [True]

            await until_it(both)
            await check_stream(client.jetstream(), ledger)
            await client.close()
            print(f"\n{len(ledger.published)} acknowledged by both before the kill: all there")
        finally:
            await asyncio.gather(*(node.kill() for node in nodes))


async def until_it(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until what is asked over the network is so."""
    for _ in range(300):
        if await condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not become so")


async def in_conflict(node: NodeProcess) -> bool:
    """Whether a node says that another one holds other data."""

    def fetch() -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{node.monitor_port}/health/cluster") as answer:
                return json.load(answer)
        except urllib.error.HTTPError as answer:
            return json.load(answer)

    return bool((await asyncio.to_thread(fetch))["cluster"].get("conflicts"))
