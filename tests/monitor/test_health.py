"""`/health`, `/health/cluster`, `/health/registry`: shapes, and what makes them say no."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from nimsnats.monitor.server import MonitorError, MonitorServer
from nimsnats.monitor.view import ClusterView, NodeView
from nimsnats.registry import RegistryStatus
from nimsnats.storage import StorageFailed
from tests.monitor.sides import Side


async def test_a_lone_node_is_healthy_in_the_agreed_shape(ours: Side, view: NodeView) -> None:
    view.registry = lambda: RegistryStatus("http://registry:8500", connected=True, registered=True)
    answer = await ours.ask("/health")
    assert answer.status == 200
    assert answer.json == {
        "status": "healthy",
        "node": view.broker.server_name,
        "cluster": {"size": 1, "peers": [], "replication_factor": 1},
        "registry": {"connected": True, "url": "http://registry:8500"},
        "jetstream": {"streams": [], "kv_buckets": []},
    }


async def test_a_registry_that_is_away_degrades_the_node_and_fails_its_own_page(ours: Side, view: NodeView) -> None:
    view.registry = lambda: RegistryStatus("http://registry:8500", last_error="connection refused")
    answer = await ours.ask("/health")
    assert (answer.status, answer.json["status"]) == (200, "degraded")
    assert answer.json["problems"] == ["registry: connection refused"]
    page = await ours.ask("/health/registry")
    assert (page.status, page.json["status"]) == (503, "unhealthy")


async def test_a_cluster_in_trouble_is_unhealthy(ours: Side, view: NodeView) -> None:
    view.cluster = lambda: ClusterView(3, ("b", "c"), 3, ["no leader of the meta group"])
    for path in ("/health", "/health/cluster"):
        answer = await ours.ask(path)
        assert (answer.status, answer.json["status"]) == (503, "unhealthy")
        assert answer.json["problems"] == ["no leader of the meta group"]
        assert answer.json["cluster"] == {"size": 3, "peers": ["b", "c"], "replication_factor": 3}


async def test_pages_of_other_rooms_are_served_with_the_status_they_ask_for(ours: Side, view: NodeView) -> None:
    view.cluster_page = lambda: {"status": "degraded", "cluster": {"nodes": []}}
    view.registry_page = lambda: {"status": "unhealthy", "registry": {}}
    cluster, registry = await ours.ask("/health/cluster"), await ours.ask("/health/registry")
    assert (cluster.status, cluster.json) == (200, {"status": "degraded", "cluster": {"nodes": []}})
    assert registry.status == 503


async def test_what_the_node_reports_makes_it_unhealthy(ours: Side, view: NodeView) -> None:
    view.problems = lambda: ["forest: River is not reachable"]
    answer = await ours.ask("/health")
    assert (answer.status, answer.json["problems"]) == (503, ["forest: River is not reachable"])


async def test_a_taken_port_is_one_clear_line(view: NodeView, http: MonitorServer) -> None:
    second = MonitorServer(view, "127.0.0.1", http.port)
    with pytest.raises(MonitorError, match=r"listen tcp 127\.0\.0\.1:\d+: bind: address already in use"):
        await second.start()
    await second.stop()


async def test_a_base_path_prefixes_everything(view: NodeView) -> None:
    server = MonitorServer(view, "127.0.0.1", -1, base_path="/nats")
    await server.start()
    side = Side("prefixed", 0, server.port)
    assert (await side.ask("/nats/healthz")).status == 200
    assert (await side.ask("/nats/metrics")).status == 200
    assert (await side.ask("/healthz")).status == 404
    assert (await side.get("/nats/varz"))["http_base_path"] == "/nats"
    await server.stop()


async def test_a_slot_answers_503_until_its_handler_is_there(view: NodeView) -> None:
    from aiohttp import web

    server = MonitorServer(view, "127.0.0.1", -1)
    slot = server.slot("POST", "/webhooks/{name}")
    await server.start()
    side = Side("slotted", 0, server.port)
    early = await side.ask("/webhooks/stripe", "POST")
    assert (early.status, early.headers["Retry-After"]) == (503, "1")

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(text=request.match_info["name"])

    slot.handler = handle
    assert (await side.ask("/webhooks/stripe", "POST")).text == "stripe"
    await server.stop()


class _Storage:
    """A database with a history."""

    def __init__(
        self,
        failure: StorageFailed | None = None,
        damage: Sequence[str] = (),
        damaged_reads: int = 0,
        *,
        full: bool = False,
    ) -> None:
        self.failure = failure
        self.full = full
        self.damage = damage
        self.damaged_reads = damaged_reads
        self.observers: list[object] = []
        self.path = Path("/a disk that is gone")
        self.scrub = None


async def test_failed_storage_makes_every_probe_say_no(ours: Side, view: NodeView) -> None:
    view.storage = _Storage(StorageFailed("write failed: I/O error"))  # type: ignore[assignment]
    answer = await ours.ask("/health")
    assert (answer.status, answer.json["problems"]) == (503, ["storage: write failed: I/O error"])
    metrics = (await ours.ask("/metrics")).text
    assert "nimsnats_storage_failed 1.0" in metrics


async def test_a_full_disk_makes_the_node_unhealthy(ours: Side, view: NodeView) -> None:
    view.storage = _Storage(full=True)  # type: ignore[assignment]
    answer = await ours.ask("/health")
    assert (answer.status, answer.json["problems"]) == (503, ["storage: no space left, writes are refused"])


async def test_damage_that_was_found_degrades_the_node(ours: Side, view: NodeView) -> None:
    view.storage = _Storage(damage=["group 3: both copies of the snapshot are damaged"], damaged_reads=2)  # type: ignore[assignment]
    answer = await ours.ask("/health")
    assert (answer.status, answer.json["status"]) == (200, "degraded")
    assert answer.json["problems"] == [
        "damage: group 3: both copies of the snapshot are damaged",
        "damage: 2 reads found stored bytes that do not match their checksum",
    ]
    assert "nimsnats_storage_damaged_reads_total 2.0" in (await ours.ask("/metrics")).text
