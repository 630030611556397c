"""Two whole nodes and a registry: either may die, and the other goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nats.errors
import pytest
from nats.js import JetStreamContext
from nats.js.errors import APIError

from nimsnats.raft.transport import node_of
from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.jetstream.nodes import HubNode

TTL = 1.0


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
