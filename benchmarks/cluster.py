"""Rates and latencies of a cluster of three: replicated publishes, and messages that cross from node to node.

The load generators are those of a single server; what differs is which node each of them is connected to. Processor
time counts all three nodes.
"""

from __future__ import annotations

from typing import Final, Literal

from benchmarks import core
from benchmarks.clusters import Cluster
from benchmarks.core import Traffic
from benchmarks.jetstream import (
    STREAM,
    WINDOW,
    Publishing,
    percentiles,
    publish_one_by_one,
    publish_windowed,
)
from benchmarks.scenario import CPU, Aim, Metric, Scenario, Settings
from benchmarks.workers import Crew

_SERVERS: Final = ("go", "nims", "go-sync")
_SUBJECTS: Final = "bench.js.>"
_WHERE: Final = {"leader": "at the leader", "follower": "through another node"}

Where = Literal["leader", "follower"]


def publish_rate(cluster: Cluster, settings: Settings, load: Publishing, where: Where) -> dict[str, float]:
    """Acknowledged publishes a second to a stream of three replicas."""
    cluster.create_stream(STREAM, _SUBJECTS)
    node = cluster.leader(STREAM) if where == "leader" else cluster.follower(STREAM)
    with Crew() as crew:
        worker = crew.start(publish_windowed, node.address, load, settings)
        worker.wait_ready()
        before = cluster.cpu_seconds()
        rate = worker.result(settings.warm + settings.duration + 30)
        spent = cluster.cpu_seconds() - before
    stored = cluster.info(STREAM)["state"]["messages"]
    if stored < rate * settings.duration * 0.9:
        raise ValueError(f"{cluster.kind.name} acknowledged more than the {stored} messages it holds")
    cluster.delete_stream(STREAM)
    return {"rate": rate, "cpu": spent / (settings.warm + settings.duration) / rate}


def publish_latency(cluster: Cluster, settings: Settings, where: Where) -> dict[str, float]:
    """p50 and p99 of a synchronous publish to a stream of three replicas, in seconds."""
    cluster.create_stream(STREAM, _SUBJECTS)
    node = cluster.leader(STREAM) if where == "leader" else cluster.follower(STREAM)
    with Crew() as crew:
        worker = crew.start(publish_one_by_one, node.address, 128, settings)
        worker.wait_ready()
        times = worker.result(settings.warm + settings.duration + 30)
    cluster.delete_stream(STREAM)
    return percentiles(times)


def crossing(cluster: Cluster, settings: Settings, size: int) -> dict[str, float]:
    """Delivered messages a second from a publisher at one node to a subscriber at another."""
    traffic = Traffic((("bench.core.subject", size),))
    with Crew() as crew:
        receiver = crew.start(core.subscribe, cluster.nodes[1].address, [["bench.core.subject"]], settings)
        receiver.wait_ready()
        sender = crew.start(core.publish, cluster.nodes[0].address, traffic)
        sender.wait_ready()
        before = cluster.cpu_seconds()
        sample = receiver.result(settings.warm + settings.duration + 30)
        spent = cluster.cpu_seconds() - before
    rate = sample.bytes / traffic.delivered_bytes() / sample.seconds
    return {"rate": rate, "cpu": spent / (settings.warm + sample.seconds) / rate}


def _publish(size: int, where: Where, *aims: Aim) -> Scenario:
    label = f"{size} B" if size < 1024 else f"{size // 1024} KiB"
    load = Publishing(size)
    return Scenario(
        name=f"cluster/publish {label} {where}",
        title=f"JetStream R3 file publish {_WHERE[where]}, {WINDOW} in flight, {label}",
        metrics=(Metric("rate", "msg/s", aims=aims), CPU),
        measure=lambda cluster, settings: publish_rate(cluster, settings, load, where),
        servers=_SERVERS,
        start=Cluster,
    )


def _latency(where: Where) -> Scenario:
    return Scenario(
        f"cluster/publish sync {where}",
        f"JetStream R3 file publish {_WHERE[where]}, 1 in flight, 128 B: latency",
        (Metric("p50", "s", "lower"), Metric("p99", "s", "lower")),
        lambda cluster, settings: publish_latency(cluster, settings, where),
        servers=_SERVERS,
        start=Cluster,
    )


_AIMS: Final = (Aim("go", 0.8), Aim("go-sync", 10))

SCENARIOS: Final = (
    _publish(128, "leader", *_AIMS),
    _publish(1024, "leader", *_AIMS),
    _publish(128, "follower"),
    _latency("leader"),
    _latency("follower"),
    Scenario(
        "cluster/crossing 128 B",
        "core publish at one node to a subscriber at another, 128 B",
        (Metric("rate", "msg/s"), CPU),
        lambda cluster, settings: crossing(cluster, settings, 128),
        start=Cluster,
    ),
)
