"""Membership, sizes, log lines: a registry in memory, routes on command, time by hand."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from nimsnats.cluster import ClusterManager, ClusterState, cluster_health, registry_health
from nimsnats.registry import NodeInfo
from nimsnats.registry.memory import MemoryHub
from tests.cluster.routes import FakeRoutes
from tests.registry.clock import ManualRuntime, turns


def node(number: int, **more: Any) -> NodeInfo:
    return NodeInfo(f"nimsforest-{number}", f"192.168.1.{9 + number}", 6222, **more)


class World:
    """One node under test in a registry with simulated peers."""

    def __init__(self) -> None:
        self.runtime = ManualRuntime()
        self.hub = MemoryHub(self.runtime)
        self.registry = self.hub.registry()
        self.routes = FakeRoutes()
        self.managers: list[ClusterManager] = []
        self.states: list[ClusterState] = []

    def manager(self, number: int = 1, *, routes: FakeRoutes | str | None = "own", **more: Any) -> ClusterManager:
        chosen = self.routes if isinstance(routes, str) else routes
        made = ClusterManager(node(number), self.registry, self.runtime, routes=chosen, **more)
        made.subscribe(self.states.append)
        self.managers.append(made)
        return made

    async def close(self) -> None:
        for manager in self.managers:
            await manager.stop()
        await self.registry.close()
        await self.hub.close()
        assert not self.runtime.tasks


@pytest.fixture
async def world(caplog: pytest.LogCaptureFixture) -> AsyncIterator[World]:
    caplog.set_level(logging.INFO)
    made = World()
    yield made
    await made.close()


def eager(*numbers: int) -> Mapping[str, str]:
    return {node(number).cluster_addr: node(number).name for number in numbers}


async def test_the_first_node_is_a_cluster_of_one(world: World, caplog: pytest.LogCaptureFixture) -> None:
    manager = world.manager()
    await manager.start()
    manager.jetstream_initialized()
    assert (manager.cluster_size, manager.replication_factor, manager.state.peers) == (1, 1, ())
    assert caplog.messages == [
        "Starting as cluster node nimsforest-1",
        "Registered in registry at memory:",
        "No existing peers found - starting as cluster of 1",
        "JetStream initialized with replication factor 1",
    ]
    assert world.routes.wanted == []
    await manager.stop()
    assert world.hub.directory.services() == {}


async def test_a_second_node_joins(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.hub.announce(node(1))
    manager = world.manager(2, routes=FakeRoutes(eager(1)))
    await manager.start()
    assert caplog.messages == [
        "Starting as cluster node nimsforest-2",
        "Registered in registry at memory:",
        "Discovered peer nimsforest-1 at 192.168.1.10:6222",
        "Discovered peer: nimsforest-1 at 192.168.1.10:6222",
        "Connected to peer nimsforest-1",
        "Cluster size: 2, replication factor: 2",
    ]
    assert world.states == [ClusterState(2, 2, ("nimsforest-1",))]


async def test_a_third_node_joins(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.hub.announce(node(1))
    await world.hub.announce(node(2))
    manager = world.manager(3, routes=FakeRoutes(eager(1, 2)))
    await manager.start()
    assert caplog.messages[-4:] == [
        "Discovered peer nimsforest-2 at 192.168.1.11:6222",
        "Discovered peers: nimsforest-1, nimsforest-2",
        "Connected to 2 peers",
        "Cluster size: 3, replication factor: 3",
    ]


async def test_growth_and_shrinking_seen_by_the_first_node(world: World, caplog: pytest.LogCaptureFixture) -> None:
    manager = world.manager()
    await manager.start()
    caplog.clear()
    for number in (2, 3, 4):
        await world.hub.announce(node(number))
        await turns()
        assert world.routes.wanted[-1] == node(number).cluster_addr
        assert manager.cluster_size == number - 1, "a peer without a route is no member"
        world.routes.up(f"nimsforest-{number}", node(number).cluster_addr)
        assert manager.cluster_size == number
    assert [state.replication_factor for state in world.states] == [2, 3, 3]
    assert [line for line in caplog.messages if "nimsforest-4" in line] == [
        "Discovered peer nimsforest-4 at 192.168.1.13:6222",
        "Peer nimsforest-4 joined cluster (size now 4)",
    ]
    assert caplog.messages.count("Replication factor adjusted to 3") == 1
    caplog.clear()
    for number in (4, 3, 2):
        await world.hub.withdraw(f"nimsforest-{number}")
        await turns()
        assert manager.cluster_size == number, "the registry alone removes no connected member"
        world.routes.down(f"nimsforest-{number}")
        assert manager.cluster_size == number - 1
    assert caplog.messages == [
        "Peer nimsforest-4 left cluster (size now 3)",
        "Cluster size: 3, replication factor: 3",
        "Peer nimsforest-3 left cluster (size now 2)",
        "Replication factor adjusted to 2",
        "Cluster size: 2, replication factor: 2",
        "Peer nimsforest-2 left cluster (size now 1)",
        "Replication factor adjusted to 1",
        "Cluster size: 1, replication factor: 1",
    ]
    assert world.routes.wanted == []


async def test_a_blink_of_a_route_changes_nothing(world: World) -> None:
    await world.hub.announce(node(2))
    manager = world.manager(routes=(routes := FakeRoutes(eager(2))), grace=3)
    await manager.start()
    routes.down("nimsforest-2")
    await world.runtime.advance(2.9)
    assert manager.cluster_size == 2 and not manager.is_connected("nimsforest-2")
    routes.up("nimsforest-2")
    await world.runtime.advance(10)
    assert manager.cluster_size == 2 and len(world.states) == 1


async def test_a_crashed_peer_leaves_after_the_grace_period_and_may_return(world: World) -> None:
    await world.hub.announce(node(2))
    manager = world.manager(routes=(routes := FakeRoutes(eager(2))), grace=3)
    await manager.start()
    routes.down("nimsforest-2")
    await world.runtime.advance(3)
    assert manager.cluster_size == 1
    assert routes.wanted == [node(2).cluster_addr], "still registered: keep trying"
    routes.up("nimsforest-2")
    assert manager.cluster_size == 2


async def test_expiry_during_the_grace_period_ends_it(world: World) -> None:
    await world.hub.announce(node(2))
    manager = world.manager(routes=(routes := FakeRoutes(eager(2))), grace=3)
    await manager.start()
    await turns()
    routes.down("nimsforest-2")
    await world.hub.withdraw("nimsforest-2")
    await turns()
    assert manager.cluster_size == 1
    await world.runtime.advance(5)
    assert [state.size for state in world.states] == [2, 1]


async def test_a_peer_that_leaves_between_the_query_and_the_watch(world: World) -> None:
    await world.hub.announce(node(2))
    manager = world.manager(routes=None)
    await manager.start()  # the watching task has not had a turn yet
    await world.hub.withdraw("nimsforest-2")
    await turns()
    assert manager.known_peers == []


async def test_a_moved_peer_gets_a_new_route(world: World) -> None:
    manager = world.manager()
    await manager.start()
    await world.hub.announce(node(2))
    await turns()
    await world.hub.announce(NodeInfo("nimsforest-2", "10.9.9.9", 7000))
    await turns()
    assert world.routes.wanted == ["10.9.9.9:7000"]
    assert world.routes.removed == ["192.168.1.11:6222"]


async def test_repeated_news_is_no_news(world: World, caplog: pytest.LogCaptureFixture) -> None:
    manager = world.manager()
    await manager.start()
    caplog.clear()
    for _ in range(3):
        manager.on_peer_discovered(node(2))
        manager.on_peer_lost(node(3))
    world.routes.up("nimsforest-2")
    world.routes.up("nimsforest-2")
    assert len(caplog.messages) == 4 and len(world.states) == 1


async def test_ourselves_under_any_name_are_no_peer(world: World, caplog: pytest.LogCaptureFixture) -> None:
    manager = world.manager()
    await world.hub.announce(NodeInfo("old-name", node(1).address, node(1).port))
    await manager.start()
    manager.on_peer_discovered(node(1))
    manager.on_peer_discovered(NodeInfo("old-name", node(1).address, node(1).port))
    world.routes.up("nimsforest-1")
    assert world.routes.wanted == [] and manager.cluster_size == 1
    assert sum("registered at our own address" in line for line in caplog.messages) == 1
    assert "No existing peers found - starting as cluster of 1" in caplog.messages


async def test_peers_that_do_not_answer_delay_the_start_only_so_long(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.hub.announce(node(1))
    await world.hub.announce(node(2))
    manager = world.manager(3, routes=FakeRoutes(eager(2)), settle=0.05)
    await manager.start()
    assert "No route yet to nimsforest-1, still trying" in caplog.messages
    assert caplog.messages[-2:] == ["Connected to peer nimsforest-2", "Cluster size: 2, replication factor: 2"]


async def test_an_inbound_route_counts_before_the_registry_tells(world: World) -> None:
    manager = world.manager()
    world.routes.up("nimsforest-9", "10.0.0.9:6222")
    await manager.start()
    assert manager.state == ClusterState(2, 2, ("nimsforest-9",))
    world.routes.down("nimsforest-9")
    assert manager.cluster_size == 1


async def test_without_routes_a_peer_is_seen_and_the_node_stays_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.hub.announce(node(1))
    manager = world.manager(2, routes=None)
    await manager.start()
    await world.hub.announce(node(3))
    await turns()
    assert manager.cluster_size == 1 and [peer.name for peer in manager.known_peers] == ["nimsforest-1", "nimsforest-3"]
    assert "Discovered peer nimsforest-1 at 192.168.1.10:6222" in caplog.messages
    assert "Discovered peer nimsforest-3 at 192.168.1.12:6222" in caplog.messages
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["Clustering between nodes is not available in this version yet: this node stays a cluster of 1"]
    await world.hub.withdraw("nimsforest-3")
    await turns()
    assert "Peer nimsforest-3 is no longer registered" in caplog.messages
    assert cluster_health(manager)["status"] == "degraded"


async def test_a_registry_that_is_down_at_start(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.hub.fail()
    manager = world.manager()
    await manager.start()
    assert "Registry not available yet - starting as cluster of 1" in caplog.messages
    assert registry_health(world.registry)["status"] == "unhealthy"
    world.hub.heal()
    await world.hub.announce(node(2))
    await world.runtime.advance(10)
    assert "Registered in registry at memory:" in caplog.messages
    assert world.routes.wanted == [node(2).cluster_addr]
    assert registry_health(world.registry)["status"] == "healthy"


async def test_an_outage_leaves_the_cluster_as_it_is(world: World) -> None:
    await world.hub.announce(node(2))
    manager = world.manager(routes=FakeRoutes(eager(2)))
    await manager.start()
    world.hub.fail()
    await world.runtime.advance(3600)
    assert manager.cluster_size == 2 and registry_health(world.registry)["status"] == "unhealthy"
    assert cluster_health(manager)["status"] == "healthy"
    world.hub.heal()
    await world.runtime.advance(20)
    assert manager.cluster_size == 2 and world.registry.status.registered
    assert world.registry.lease.lapses == 1, "an hour without heartbeats was an expiry"


async def test_a_registry_that_cannot_be_told_goodbye(world: World, caplog: pytest.LogCaptureFixture) -> None:
    manager = world.manager()
    await manager.start()
    world.hub.fail()
    await manager.stop()
    assert any("Could not deregister" in line for line in caplog.messages)
    assert world.routes.watchers == 0
    await manager.stop()


@pytest.mark.errors_inside
async def test_a_watch_that_breaks_is_begun_again(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = world.registry.watch_peers
    calls: list[int] = []

    def broken(known: list[NodeInfo]) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        return real(known)

    monkeypatch.setattr(world.registry, "watch_peers", broken)
    manager = world.manager()
    await manager.start()
    await world.hub.announce(node(2))
    await world.runtime.advance(5)
    assert world.routes.wanted == [node(2).cluster_addr]
    assert "Watching the registry failed; beginning again" in caplog.messages


async def test_listeners_can_leave(world: World) -> None:
    manager = world.manager()
    seen: list[ClusterState] = []
    unsubscribe = manager.subscribe(seen.append)
    world.states.clear()
    await manager.start()
    world.routes.up("a")
    unsubscribe()
    unsubscribe()
    world.routes.up("b")
    assert len(seen) == 1 and len(world.states) == 2


async def test_health_pages(world: World) -> None:
    await world.hub.announce(node(2))
    await world.hub.announce(node(3))
    manager = world.manager(routes=FakeRoutes(eager(2)), settle=0.01)
    await manager.start()
    await turns()
    assert cluster_health(manager) == {
        "status": "degraded",
        "node": "nimsforest-1",
        "cluster": {
            "size": 2,
            "peers": ["nimsforest-2"],
            "replication_factor": 2,
            "address": "192.168.1.10:6222",
            "nodes": [
                {
                    "name": "nimsforest-2",
                    "address": "192.168.1.11:6222",
                    "member": True,
                    "connected": True,
                    "registered": True,
                },
                {
                    "name": "nimsforest-3",
                    "address": "192.168.1.12:6222",
                    "member": False,
                    "connected": False,
                    "registered": True,
                },
            ],
        },
    }
    assert registry_health(world.registry) == {
        "status": "healthy",
        "registry": {
            "connected": True,
            "url": "memory:",
            "registered": True,
            "watch": "local",
            "last_success": "2023-11-14T22:13:20Z",
            "last_error": "",
            "failures": 0,
            "lapses": 0,
        },
    }
