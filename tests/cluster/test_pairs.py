"""Two whole nodes and a registry: either may die, and the other goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nats.errors
import pytest
from nats.js import JetStreamContext
from nats.js.errors import APIError

from nimsnats.node import Node
from nimsnats.raft.transport import node_of
from nimsnats.registry import NodeInfo, Registry
from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.jetstream.nodes import HubNode

TTL = 1.0


class Embedding(HubNode):
    """A node that uses its own registry, or the one at `url`."""

    def __init__(self, directory: Path, name: str, url: str = "") -> None:
        super().__init__(directory, name, MemoryHub(Runtime.real()))
        self.settings.registry.url = url
        self.settings.registry.ttl = TTL
        self.settings.registry.heartbeat_interval = TTL / 4
        self.settings.monitor.port = -1

    async def _open_registry(self, info: NodeInfo) -> Registry:
        return await Node._open_registry(self, info)


def replicas(node: HubNode, stream: str) -> list[str]:
    """Names of the nodes that hold a stream."""
    served = node.served(stream)
    return sorted(map(node_of, served.stream.group.members)) if served else []


def ready(node: HubNode, other: HubNode) -> bool:
    """Whether a node could go on with everything if the other one vanished now."""
    if node.pairs is None:
        return False
    peer = node.pairs._peers.get(other.engine.host.member)
    groups = [group for group in node.engine.host.groups() if group.partner()]
    return len(groups) >= 2 and peer is not None and peer.sync.keys() == set(groups)


async def publish(js: JetStreamContext, data: bytes) -> None:
    """Publish until it is acknowledged."""
    while True:
        try:
            await js.publish("s", data, headers={"Nats-Msg-Id": data.decode()}, timeout=0.5)
            return
        except (nats.errors.Error, APIError):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("dies", ["leader", "follower"])
async def test_either_of_two_may_die(tmp_path: Path, dies: str, caplog: pytest.LogCaptureFixture) -> None:
    hub = MemoryHub(Runtime.real(), ttl=TTL)
    one, two = HubNode(tmp_path, "n1", hub), HubNode(tmp_path, "n2", hub)
    await one.start()
    await two.start()
    client = await one.connect()
    await client.jetstream().add_stream(name="S", subjects=["s"], num_replicas=2)
    await client.jetstream().publish("s", b"0")
    await client.close()
    await until(lambda: ready(one, two) and ready(two, one))
    leader, follower = (one, two) if one.leads("S") else (two, one)
    victim, survivor = (leader, follower) if dies == "leader" else (follower, leader)
    await victim.kill()
    client = await survivor.connect()
    js = client.jetstream()
    await publish(js, b"1")
    assert survivor.engine.meta.group.members == (survivor.engine.host.member,)
    await until(lambda: replicas(survivor, "S") == [survivor.settings.node_name])
    assert survivor.cluster is not None and survivor.cluster.replication_factor == 1
    assert survivor.pairs is not None and not survivor.pairs.waiting
    assert "goes on alone" in caplog.text and "the registry still lists" in caplog.text
    again = HubNode(tmp_path, victim.settings.node_name, hub)
    await again.start()
    await publish(js, b"2")
    await until(lambda: replicas(survivor, "S") == replicas(again, "S") == ["n1", "n2"])
    await until(lambda: (held := again.served("S")) and held.stream.store.messages == 3)
    await until(lambda: ready(again, survivor) and ready(survivor, again))
    await survivor.kill()
    late = await again.connect()
    await publish(late.jetstream(), b"3")
    info = await late.jetstream().stream_info("S")
    assert (info.state.messages, info.state.last_seq) == (4, 4)
    await late.close()
    await again.stop()
    await hub.close()


@pytest.mark.extended
async def test_a_registry_in_one_of_two_is_witness_for_the_loss_of_the_other(tmp_path: Path) -> None:
    one = Embedding(tmp_path, "n1")
    await one.start()
    assert one.server.monitor is not None
    port = one.settings.monitor.port = one.server.monitor.port
    two = Embedding(tmp_path, "n2", f"http://127.0.0.1:{port}")
    await two.start()
    client = await one.connect()
    await client.jetstream().add_stream(name="S", subjects=["s"], num_replicas=2)
    await publish(client.jetstream(), b"1")
    await until(lambda: ready(one, two) and ready(two, one))
    await two.kill()
    await publish(client.jetstream(), b"2")
    assert replicas(one, "S") == ["n1"]
    two = Embedding(tmp_path, "n2", f"http://127.0.0.1:{port}")
    await two.start()
    await until(lambda: replicas(two, "S") == ["n1", "n2"] and ready(two, one))
    await client.close()
    await one.kill()
    assert two.pairs is not None
    await asyncio.sleep(3 * TTL)
    assert two.pairs.waiting["n1"][0] == "the registry may have let this node expire"
    assert replicas(two, "S") == ["n1", "n2"]
    one = Embedding(tmp_path, "n1")
    one.settings.monitor.port = port
    await one.start()
    client = await two.connect()
    await publish(client.jetstream(), b"3")
    assert (await client.jetstream().stream_info("S")).state.messages == 3
    await client.close()
    await two.stop()
    await one.stop()


@pytest.mark.extended
async def test_three_become_two_and_then_one(tmp_path: Path) -> None:
    hub = MemoryHub(Runtime.real(), ttl=TTL)
    nodes = [HubNode(tmp_path, name, hub) for name in ("n1", "n2", "n3")]
    for node in nodes:
        await node.start()
    client = await nodes[0].connect()
    await client.jetstream().add_stream(name="S", subjects=["s"], num_replicas=3)
    await publish(client.jetstream(), b"1")
    await client.close()
    one, two, three = nodes
    await three.kill()
    await until(lambda: replicas(one, "S") == replicas(two, "S") == ["n1", "n2"])
    await until(lambda: ready(one, two) and ready(two, one))
    victim, survivor = (one, two) if one.engine.meta.group.leading else (two, one)
    await victim.kill()
    client = await survivor.connect()
    await publish(client.jetstream(), b"2")
    assert survivor.engine.meta.group.members == (survivor.engine.host.member,)
    assert (await client.jetstream().stream_info("S")).state.messages == 2
    await client.close()
    await survivor.stop()
    await hub.close()


@pytest.mark.extended
@pytest.mark.parametrize("dies", ["leader", "follower"])
async def test_a_stream_of_two_in_a_cluster_of_three(tmp_path: Path, dies: str) -> None:
    hub = MemoryHub(Runtime.real(), ttl=TTL)
    nodes = [HubNode(tmp_path, name, hub) for name in ("n1", "n2", "n3")]
    for node in nodes:
        await node.start()
    client = await nodes[0].connect()
    await client.jetstream().add_stream(name="S", subjects=["s"], num_replicas=2)
    await publish(client.jetstream(), b"1")
    await client.close()
    holders = [node for node in nodes if node.served("S")]
    leader = next(node for node in holders if node.leads("S"))
    follower = next(node for node in holders if node is not leader)
    victim, survivor = (leader, follower) if dies == "leader" else (follower, leader)
    third = next(node for node in nodes if node not in holders)

    def could_go_on() -> bool:
        peer = survivor.pairs._peers.get(victim.engine.host.member) if survivor.pairs is not None else None
        return peer is not None and len(peer.sync) == 1

    await until(could_go_on)
    await victim.kill()
    client = await third.connect()
    await publish(client.jetstream(), b"2")
    names = sorted(node.settings.node_name for node in (survivor, third))
    await until(lambda: replicas(survivor, "S") == replicas(third, "S") == names)
    assert (await client.jetstream().stream_info("S")).state.messages == 2
    await client.close()
    for node in (survivor, third):
        await node.stop()
    await hub.close()
