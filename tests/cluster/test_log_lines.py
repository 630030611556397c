"""The log lines by which operators follow a cluster: on the node that starts, and on those that are there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.jetstream.nodes import HubNode


async def test_nodes_tell_of_their_cluster(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hub = MemoryHub(Runtime.real())
    nodes = [HubNode(tmp_path, f"nimsforest-{number}", hub) for number in (1, 2, 3)]

    def told(*lines: str) -> bool:
        """Whether these lines were logged, in this order."""
        messages = iter(caplog.messages)
        return all(line in messages for line in lines)

    def address(at: int) -> str:
        assert nodes[at].cluster is not None
        return nodes[at].cluster.info.cluster_addr

    await nodes[0].start()
    assert told(
        "Starting nimsforest...",
        "Starting embedded NATS cluster node: nimsforest-1",
        "Starting as cluster node nimsforest-1",
        "Registered in registry at memory:",
        "No existing peers found - starting as cluster of 1",
        "JetStream initialized with replication factor 1",
        "nimsforest is ready",
    )

    caplog.clear()
    await nodes[1].start()
    assert told(
        "Starting nimsforest...",
        "Starting embedded NATS cluster node: nimsforest-2",
        "Registered in registry at memory:",
        f"Discovered peer nimsforest-1 at {address(0)}",
        f"Discovered peer: nimsforest-1 at {address(0)}",
        "Connected to peer nimsforest-1",
        "Cluster size: 2, replication factor: 2",
        "JetStream initialized with replication factor 2",
        "nimsforest is ready",
    )
    assert told(
        f"Discovered peer nimsforest-2 at {address(1)}",
        "Peer nimsforest-2 joined cluster (size now 2)",
        "Replication factor adjusted to 2",
    )

    caplog.clear()
    await nodes[2].start()
    assert told(
        "Starting nimsforest...",
        "Discovered peers: nimsforest-1, nimsforest-2",
        "Connected to 2 peers",
        "Cluster size: 3, replication factor: 3",
        "nimsforest is ready",
    )
    await until(lambda: caplog.messages.count("Cluster size: 3, replication factor: 3") == 3)  # on all nodes
    assert caplog.messages.count("Peer nimsforest-3 joined cluster (size now 3)") == 2
    assert caplog.messages.count("Replication factor adjusted to 3") == 2

    caplog.clear()
    await nodes[2].stop()
    await until(lambda: caplog.messages.count("Peer nimsforest-3 left cluster (size now 2)") == 2)
    assert caplog.messages.count("Replication factor adjusted to 2") == 2
    for node in nodes[:2]:
        await node.stop()
