"""`/metrics`: the values, and a lint of the page by Prometheus's rules for names, types and units."""

from __future__ import annotations

import asyncio
import re
import shutil
from asyncio.subprocess import PIPE

import nats
from prometheus_client.parser import text_string_to_metric_families

from nimsnats.monitor.histogram import Histogram
from nimsnats.monitor.view import Application
from nimsnats.registry import RegistryStatus
from nimsnats.server import Server
from tests.monitor.sides import Side, traffic

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_NOT_BASE_UNITS = ("_ms", "_milliseconds", "_minutes", "_hours", "_kib", "_mib", "_kilobytes", "_megabytes", "_percent")
_UNIT = re.compile(r"_(milliseconds|microseconds|nanoseconds|kilobytes|megabytes|percent|minutes|hours|days)(_|$)")


def lint(page: str) -> list[str]:
    """What `promtool check metrics` would complain about."""
    complaints: list[str] = []
    seen: set[str] = set()
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            if name in seen:
                complaints.append(f"{name}: declared twice")
            seen.add(name)
            if line.endswith(" counter") and not name.endswith("_total"):
                complaints.append(f"{name}: a counter must end in _total")
    described = set(re.findall(r"^# HELP (\S+) \S", page, re.MULTILINE))
    complaints += [f"{name}: no help text" for name in sorted(seen - described)]
    for family in text_string_to_metric_families(page):
        name = family.name
        if family.type == "unknown":
            complaints.append(f"{name}: no type")
        if not _NAME.fullmatch(name):
            complaints.append(f"{name}: not snake case")
        if _UNIT.search(name) or name.endswith(_NOT_BASE_UNITS):
            complaints.append(f"{name}: not a base unit")
        if name.endswith(("_count", "_sum", "_bucket")):
            complaints.append(f"{name}: reserved suffix")
        if family.type != "counter" and name.endswith("_total"):
            complaints.append(f"{name}: only counters end in _total")
        for word in ("counter", "gauge", "histogram", "summary"):
            if word in name:
                complaints.append(f"{name}: type in the name")
        labels = {label for sample in family.samples for label in sample.labels}
        complaints += [f"{name}: label {label}" for label in sorted(labels) if not _NAME.fullmatch(label)]
    return complaints


def values(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def test_the_lint_finds_what_is_wrong() -> None:
    page = "# HELP a_ms x\n# TYPE a_ms gauge\na_ms 1\n# TYPE bCounter counter\nbCounter 1\n"
    assert lint(page) == [
        "bCounter: a counter must end in _total",
        "bCounter: no help text",
        "a_ms: not a base unit",
        "bCounter: not snake case",
    ]


async def test_a_node_with_streams_passes_the_lint_and_counts() -> None:
    async with Server(monitor_port=-1, name="node-1") as server:
        assert server.monitor is not None and server.view is not None
        server.view.registry = lambda: RegistryStatus("http://registry:8500", connected=True, registered=True)
        server.view.application = Application(
            lambda: [("forest_items_total", {"worker": "tree"}, 3), ("forest_items_total", {}, 1)],
            {"forest_items_total": "Items."},
        )
        client = await nats.connect(server.url)
        stream = client.jetstream()
        await stream.add_stream(name="ORDERS", subjects=["orders.*"])
        for number in range(3):
            await stream.publish("orders.new", b"x" * 10, headers={"n": str(number)})
        pull = await stream.pull_subscribe("orders.*", durable="worker")
        (message,) = await pull.fetch(1)
        side = Side("ours", server.port, server.monitor.port)
        answer = await side.ask("/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert lint(answer.text) == []
        if shutil.which("promtool"):
            check = await asyncio.create_subprocess_exec("promtool", "check", "metrics", stdin=PIPE, stderr=PIPE)
            assert await check.communicate(answer.text.encode()) == (None, b"") and check.returncode == 0
        got = values(answer.text)
        labels = (("account", "$G"), ("stream", "ORDERS"))
        consumer = (("account", "$G"), ("consumer", "worker"), ("stream", "ORDERS"))
        assert got["nimsnats_connections", ()] == 1
        assert got["nimsnats_stream_messages", labels] == 3
        assert got["nimsnats_consumer_pending_messages", consumer] == 2
        assert got["nimsnats_consumer_ack_pending_messages", consumer] == 1
        assert got["nimsnats_jetstream_api_requests_total", (("account", "$G"),)] >= 2
        assert got["nimsnats_storage_commit_seconds_count", ()] >= 3
        assert got["nimsnats_storage_commit_messages_sum", ()] == 3
        assert got["nimsnats_registry_connected", (("url", "http://registry:8500"),)] == 1
        assert got["nimsnats_cluster_size", ()] == got["nimsnats_healthy", ()] == 1
        assert 0 < got["nimsnats_storage_free_bytes", ()] < got["nimsnats_storage_filesystem_bytes", ()]
        assert got["nimsnats_storage_wal_bytes", ()] > 0 and got["nimsnats_storage_database_bytes", ()] > 0
        assert got["nimsnats_jetstream_messages", (("account", "$G"),)] == 3
        assert got["forest_items_total", (("worker", "tree"),)] == 3
        assert got["process_resident_memory_bytes", ()] > 0
        await message.ack()
        await client.close()


async def test_openmetrics_on_request(ours: Side) -> None:
    answer = await ours.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_traffic_counters_are_varz_counters(ours: Side) -> None:
    client = await traffic(ours)
    got, varz = values((await ours.ask("/metrics")).text), await ours.get("/varz")
    for metric, field in (
        ("nimsnats_received_messages_total", "in_msgs"),
        ("nimsnats_received_bytes_total", "in_bytes"),
        ("nimsnats_sent_messages_total", "out_msgs"),
        ("nimsnats_sent_bytes_total", "out_bytes"),
        ("nimsnats_connections_opened_total", "total_connections"),
        ("nimsnats_subscriptions", "subscriptions"),
    ):
        assert got[metric, ()] == varz[field], metric
    await client.close()


def test_a_histogram_counts_up_to_and_including_its_bounds() -> None:
    histogram = Histogram((1, 10))
    for value in (0.5, 1, 2, 10, 11):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2.0), ("10.0", 4.0), ("+Inf", 5.0)]
    assert (histogram.count, histogram.sum) == (5, 24.5)
