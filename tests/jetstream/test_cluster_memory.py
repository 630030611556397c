"""Memory streams with replicas: they outlive any one process, and end when no process remembers them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.broker.peer import until
from tests.jetstream.trio import Trio, TrioNode, trio

pytestmark = pytest.mark.extended


async def again(cluster: Trio, name: str) -> TrioNode:
    """Start a killed node anew on what its disk holds."""
    node = TrioNode(cluster.directory, name, cluster.hub)
    cluster.nodes[cluster.nodes.index(cluster[name])] = node
    await node.start()
    return node


async def test_a_memory_stream_outlives_each_of_its_members(tmp_path: Path) -> None:
    async with trio(tmp_path) as cluster:
        body = {"name": "M", "subjects": ["m"], "num_replicas": 3, "storage": "memory"}
        created = await cluster.ask(1, "STREAM.CREATE.M", body)
        assert len(created["cluster"]["replicas"]) == 2
        for number in range(20):
            await cluster.clients[1].request("m", b"%d" % number, timeout=5)
        for name in ("n1", "n3"):
            await cluster[name].kill()
            await cluster.led("M")
            node = await again(cluster, name)
            await until(lambda node=node: (s := node.app.streams.get("M")) and s.stream.store.messages == 20)
            group = node.engine.host.group(node.app.stream("M").group.name)
            await until(lambda group=group: group is not None and not group.impaired)
        await cluster.led("M")
        info = await cluster.ask(1, "STREAM.INFO.M")
        assert info["state"]["messages"] == 20 and len(info["cluster"]["replicas"]) == 2
        for name in ("n1", "n3"):
            await cluster[name].stop()


async def test_a_memory_stream_that_no_process_remembers_has_ended(tmp_path: Path) -> None:
    async with trio(tmp_path) as cluster:
        body = {"name": "M", "subjects": ["m"], "num_replicas": 3, "storage": "memory"}
        await cluster.ask(0, "STREAM.CREATE.M", body)
        for number, node in enumerate(cluster.nodes):
            await cluster.ask(number, f"STREAM.CREATE.{node.name}", {"name": node.name, "storage": "memory"})
        await cluster.ask(0, "STREAM.CREATE.F", {"name": "F", "subjects": ["f"], "num_replicas": 3})
        for node in list(cluster.nodes):
            await node.kill()
        nodes = [TrioNode(tmp_path, node.name, cluster.hub) for node in cluster.nodes]
        await asyncio.gather(*(node.start() for node in nodes))
        for node in nodes:
            await until(lambda node=node: [*node.engine.meta.streams] == [("APP", "F")])
        for node in nodes:
            await node.stop()
