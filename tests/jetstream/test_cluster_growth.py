"""A cluster that grows and shrinks with its nodes, and who joins whom."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nimsnats.jetstream.errors import CLUSTER_NOT_LEADER
from nimsnats.raft.transport import node_of
from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.jetstream.nodes import HubNode
from tests.jetstream.test_cluster import publish


def members(node: HubNode) -> list[str]:
    """Names of the nodes that this one takes for its cluster."""
    return sorted(map(node_of, node.engine.meta.group.members))


def replicas(node: HubNode, stream: str) -> list[str]:
    """Names of the nodes that hold a stream."""
    served = node.served(stream)
    return sorted(map(node_of, served.stream.group.members)) if served else []


async def test_streams_follow_the_cluster_to_five_nodes_back_to_one_and_up_again(tmp_path: Path) -> None:
    hub = MemoryHub(Runtime.real())
    names = [f"n{number}" for number in range(1, 6)]
    async with HubNode(tmp_path, "n1", hub) as first:
        client = await first.connect()
        js = client.jetstream()
        await js.add_stream(name="S", subjects=["s"], num_replicas=3)
        sent = 0
        stopping = asyncio.Event()

        async def load() -> None:
            nonlocal sent
            while not stopping.is_set():
                assert (await js.publish("s", b"%d" % sent)).seq == sent + 1
                sent += 1

        publishing = asyncio.create_task(load())
        others: list[HubNode] = []

        async def grow(count: int) -> None:
            for name in names[len(others) + 1 : count]:
                others.append(HubNode(tmp_path, name, hub))
                await others[-1].start()
                await until(lambda name=name: publishing.done() or name in members(first))
                await until(lambda: publishing.done() or len(replicas(first, "S")) == min(len(others) + 1, 3))

        await grow(5)
        held = [node for node in others if node.served("S")]
        assert len(held) == 2
        for node in held:
            await until(lambda node=node: (found := node.served("S")) and found.stream.store.messages >= sent > 0)
        await others.pop().stop()
        assert members(first) == names  # four can do without it, and without another one
        while others:
            await others.pop().stop()
            left = names[: len(others) + 1]
            assert members(first) == left == replicas(first, "S")
        await grow(3)
        stopping.set()
        await publishing
        for node in others:
            await until(lambda node=node: (found := node.served("S")) and found.stream.store.messages == sent)
            await node.stop()
        assert (await js.stream_info("S")).state.messages == sent
        await client.close()


async def test_the_leader_of_everything_leaves(tmp_path: Path) -> None:
    hub = MemoryHub(Runtime.real())
    async with AsyncExitStack() as stack:
        first = HubNode(tmp_path, "n1", hub)
        await first.start()
        others = [await stack.enter_async_context(HubNode(tmp_path, name, hub)) for name in ("n2", "n3")]
        client = await others[0].connect()
        js = client.jetstream()
        await js.add_stream(name="S", subjects=["s"], num_replicas=2)
        await js.publish("s", b"x")
        assert first.leads("S") and first.engine.meta.group.leading
        await first.stop()
        await until(lambda: all(members(node) == replicas(node, "S") == ["n2", "n3"] for node in others))
        assert (await js.publish("s", b"y")).seq == 2
        await client.close()


async def test_nodes_that_start_in_the_same_moment_end_as_one_cluster(tmp_path: Path) -> None:
    hub = MemoryHub(Runtime.real())
    nodes = [HubNode(tmp_path, f"n{number}", hub) for number in range(1, 4)]
    await asyncio.gather(*(node.start() for node in nodes))
    await until(lambda: all(members(node) == ["n1", "n2", "n3"] for node in nodes))
    await asyncio.gather(*(node.stop() for node in nodes))


async def test_two_clusters_that_hold_data_stay_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("n1", "n2"):
        async with HubNode(tmp_path, name, MemoryHub(Runtime.real())) as alone:
            client = await alone.connect()
            await client.jetstream().add_stream(name="S", subjects=["s"])
            await client.jetstream().publish("s", name.encode())
            await client.close()
    hub = MemoryHub(Runtime.real())
    async with HubNode(tmp_path, "n1", hub) as first, HubNode(tmp_path, "n2", hub) as second:
        one, two = first.engine.cluster, second.engine.cluster
        assert one is not None and two is not None
        await until(lambda: "n2" in one.conflicts and "n1" in two.conflicts)
        assert (members(first), members(second)) == (["n1"], ["n2"])
        assert first.server.view is not None and first.server.view.cluster_page is not None
        assert first.server.view.cluster_page()["cluster"]["conflicts"] == ["n2"]
        for node in (first, second):
            held = node.served("S")
            assert held is not None and held.stream.store.messages == 1
        await _conflict_stays_through_silence(second, first, caplog)
        client = await second.connect()
        await client.jetstream().delete_stream("S")
        await until(lambda: members(first) == members(second) == ["n1", "n2"])
        await until(lambda: not one.conflicts and not two.conflicts)
        await client.close()


async def _conflict_stays_through_silence(silent: HubNode, other: HubNode, caplog: pytest.LogCaptureFixture) -> None:
    """While a node of another cluster does not say what it belongs to, it is what it was."""
    mail, cluster, asked = silent.engine.mail, silent.engine.cluster, 0
    assert mail is not None and cluster is not None and other.engine.cluster is not None

    def refuse(sender: str, body: object) -> None:
        nonlocal asked
        asked += 1
        raise CLUSTER_NOT_LEADER()

    mail.listen("hello", refuse)
    await until(lambda: asked > 2)
    assert other.engine.cluster.conflicts and caplog.text.count(f"Node {silent.settings.node_name} belongs to") == 1
    mail.listen("hello", cluster._on_hello)


async def test_a_node_with_an_empty_disk_takes_the_place_of_its_former_self(tmp_path: Path) -> None:
    hub = MemoryHub(Runtime.real())
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(HubNode(tmp_path, f"n{number}", hub)) for number in (1, 2)]
        lost = HubNode(tmp_path, "n3", hub)
        await lost.start()
        client = await nodes[0].connect()
        js = client.jetstream()
        await js.add_stream(name="S", subjects=["s"], num_replicas=3)
        await js.publish("s", b"x")
        await lost.kill()
        fresh = await stack.enter_async_context(HubNode(tmp_path / "new", "n3", hub))
        await until(lambda: (held := fresh.served("S")) and held.stream.store.messages == 1)
        await until(lambda: members(nodes[0]) == replicas(nodes[0], "S") == ["n1", "n2", "n3"])
        await client.close()


async def test_a_node_that_has_left_finds_its_place_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hub = MemoryHub(Runtime.real())
    names = ["n1", "n2", "n3"]
    async with AsyncExitStack() as stack:
        nodes = {name: HubNode(tmp_path, name, hub) for name in names}
        for node in nodes.values():
            await node.start()
        client = await nodes["n3"].connect()
        await client.jetstream().add_stream(name="S", subjects=["s"], num_replicas=3)
        await client.jetstream().publish("s", b"x")
        await client.close()
        for name in names:  # a rolling restart
            await nodes[name].stop()
            caplog.clear()
            nodes[name] = HubNode(tmp_path, name, hub)
            await nodes[name].start()
            await until(lambda: all(members(node) == replicas(node, "S") == names for node in nodes.values()))
            assert "Restored 1 messages for stream '$G > S'" in caplog.text, "what it held when it left is still there"
        for node in nodes.values():
            stack.push_async_callback(node.stop)
            held = node.served("S")
            assert held is not None
            await until(lambda held=held: held.stream.store.messages == 1)


async def test_nodes_that_leave_one_right_after_the_other_leave_a_cluster_that_works(tmp_path: Path) -> None:
    """Of five only two are there in the end; those who went first went while enough were left, and stayed counted."""
    hub = MemoryHub(Runtime.real())
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(HubNode(tmp_path, f"n{number}", hub)) for number in range(1, 6)]
        client = await nodes[4].connect()
        stack.push_async_callback(client.close)
        js = client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"], num_replicas=3)
        for number in range(50):
            await publish(js, "s.x", b"%d" % number)
        for node in nodes[:3]:
            await node.stop()
        assert await publish(js, "s.x", b"after") >= 51
        info = await js.stream_info("S")
        assert info.state.messages >= 51
