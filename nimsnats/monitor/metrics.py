"""`/metrics`: everything a node counts, in Prometheus's and OpenMetrics' text formats.

Owns names, help texts and labels. Values are read from the parts of the node when Prometheus asks, so that counting
costs the hot paths nothing beyond what they count anyway. Each exposition has a registry of its own: several nodes in
one process (tests, embedding) do not meet.

Names: `nimsnats_` + what + unit (`_seconds`, `_bytes`), counters end in `_total`. `process_…` are the client library's,
`forest_…` the application's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nimsnats.monitor.health import overall
from nimsnats.monitor.histogram import Histogram
from nimsnats.monitor.jetmetrics import jetstream_metrics
from nimsnats.monitor.raftmetrics import raft_metrics
from nimsnats.monitor.view import NodeView
from nimsnats.storage.space import space_of
from nimsnats.version import NATS_VERSION, __version__

if TYPE_CHECKING:
    from nimsnats.storage.scrub import Scrub

_PREFIX = "nimsnats_"


async def expose(view: NodeView, accept: str, *, raft: bool = False, streams: bool | None = None) -> tuple[bytes, str]:
    """The page and its content type, in the format that the Accept header asks for; `raft` adds a line for each group,
    `streams` says whether streams and consumers are listed one by one (None: unless there are too many).

    Reads the node on its loop, with a pause after each bunch of consumers, and writes the text on another thread: a
    scrape of thousands of consumers must not hold up messages.
    """
    families = list(_families(view))
    if view.storage is not None:
        families += await asyncio.to_thread(_space, view.storage.path)
    if view.jetstream is not None:
        families += await jetstream_metrics(view.jetstream, each=streams)
        families += await raft_metrics(view.jetstream, each=raft)
    encode, content_type = choose_encoder(accept)
    return await asyncio.to_thread(_encoded, encode, families), content_type


def _encoded(encode: Callable[[CollectorRegistry], bytes], families: list[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families))
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return encode(registry)


class _Collected(Collector):
    """Families that have been read already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _families(view: NodeView) -> Iterator[Metric]:
    yield from _server(view)
    yield from _loop(view)
    yield from _storage(view)
    yield from _registry(view)
    yield from _cluster(view)
    yield from _health(view)
    yield from _application(view)


def gauge(name: str, text: str, value: float) -> Metric:
    """A gauge without labels."""
    return GaugeMetricFamily(_PREFIX + name, text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    """A counter without labels; `name` ends in `_total`."""
    return CounterMetricFamily(_PREFIX + name, text, value=value)


def histogram(name: str, text: str, values: Histogram) -> Metric:
    """A histogram without labels."""
    return HistogramMetricFamily(_PREFIX + name, text, buckets=values.cumulative(), sum_value=values.sum)


def _server(view: NodeView) -> Iterator[Metric]:
    broker, stats = view.broker, view.broker.stats
    names = {
        "version": __version__,
        "nats_version": NATS_VERSION,
        "server_id": broker.server_id,
        "node": broker.server_name,
    }
    yield InfoMetricFamily("nimsnats", "What this node is.", value=names)
    yield gauge("start_time_seconds", "When the server started, seconds since the epoch.", view.started_ns / 1e9)
    yield gauge("connections", "Client connections open now.", len(broker.clients))
    yield counter("connections_opened_total", "Client connections accepted.", stats.total_connections)
    yield gauge("subscriptions", "Subscriptions in all accounts, internal ones included.", view.subscriptions())
    yield counter("received_messages_total", "Messages received from clients.", stats.in_msgs)
    yield counter("received_bytes_total", "Payload bytes received from clients.", stats.in_bytes)
    yield counter("sent_messages_total", "Messages sent to clients.", stats.out_msgs)
    yield counter("sent_bytes_total", "Payload bytes sent to clients.", stats.out_bytes)
    yield counter("slow_consumers_total", "Clients cut off because they read too slowly.", stats.slow_consumers)
    yield gauge("publishers_slowed_now", "Clients not read from now because they fill a queue.", stats.slowed)
    yield counter("publishers_slowed_total", "Times that this has begun.", stats.slowed_total)
    yield counter("publishers_slowed_seconds_total", "Seconds that these took.", stats.slowed_seconds)
    yield counter(
        "stale_connections_total", "Clients closed because they did not answer pings.", stats.stale_connections
    )
    yield counter(
        "logins_refused_unseen_total",
        "Logins refused because too many waited for the check of a hashed password.",
        broker.passwords.refused,
    )
    refused = CounterMetricFamily(
        _PREFIX + "peer_refused_total", "What other servers sent that was not accepted.", labels=["kind"]
    )
    for kind, count in _refused(view).items():
        refused.add_metric([kind], count)
    yield refused
    errors = CounterMetricFamily(
        _PREFIX + "internal_errors_total",
        "Errors of this program, logged once with their stack, that have ended one item only.",
        labels=["place"],
    )
    for place, count in sorted(broker.runtime.fence.counts.items()):
        errors.add_metric([place], count)
    yield errors
    requests = CounterMetricFamily(_PREFIX + "http_requests_total", "Requests to the HTTP port.", labels=["path"])
    for path, count in sorted(view.http_requests.items()):
        requests.add_metric([path], count)
    yield requests


def _refused(view: NodeView) -> dict[str, int]:
    counts: dict[str, int] = {}
    if view.broker.routes is not None:
        counts["route"] = view.broker.routes.refused
    if view.jetstream is not None and view.jetstream.mail is not None:
        counts["raft"] = sum(view.jetstream.host.peers.refused.values())
        counts["question"] = view.jetstream.mail.refused
    return counts


def _loop(view: NodeView) -> Iterator[Metric]:
    yield histogram("event_loop_lag_seconds", "How late timers fire, sampled twice a second.", view.lag.seconds)
    if view.stalls is not None:
        yield counter(
            "event_loop_stalls_total", "Times that one callback held the loop for over a second.", view.stalls.count
        )
        yield counter("event_loop_stalled_seconds_total", "Seconds that these took.", view.stalls.seconds)
    if view.collector is not None:
        found = view.collector
        yield counter("collector_pauses_total", "Collections of Python's garbage collector.", found.pauses)
        yield counter("collector_paused_seconds_total", "Seconds that these took.", found.paused)
        yield gauge("collector_longest_pause_seconds", "Seconds of the longest of them.", found.longest)


def _storage(view: NodeView) -> Iterator[Metric]:
    if view.storage is None:
        return
    commits = view.commits
    yield histogram("storage_commit_seconds", "Duration of a commit with its fsync.", commits.seconds)
    yield histogram("storage_commit_messages", "Messages made durable by one fsync.", commits.messages)
    yield histogram("storage_commit_entries", "Log entries (rows) made durable by one fsync.", commits.entries)
    yield histogram("storage_commit_bytes", "Bytes of log entries made durable by one fsync.", commits.size)
    yield gauge(
        "storage_failed",
        "1 when a write or fsync failed and nothing is acknowledged any more.",
        view.storage.failure is not None,
    )
    yield counter("storage_damaged_reads_total", "Reads that found damaged bytes or none.", view.storage.damaged_reads)
    yield gauge("storage_damage_reports", "Places where stored data was found damaged.", len(view.damage()))
    yield gauge("storage_full", "1 when the latest write was refused for want of space.", view.storage.full)
    yield from _scrub(view.storage.scrub)


def _scrub(scrub: Scrub | None) -> Iterator[Metric]:
    if scrub is None:
        return
    yield counter("storage_scrub_passes_total", "Passes over all stored entries that were finished.", scrub.passes)
    yield counter("storage_scrub_entries_total", "Stored entries whose checksums were checked.", scrub.rows)
    yield gauge("storage_scrub_pass_bytes", "Bytes that the current or latest pass has checked.", scrub.pass_size)
    yield gauge("storage_scrub_damaged_entries", "Damaged entries that the scrub has found.", len(scrub.damaged))
    finished = scrub.finished_ns / 1e9
    yield gauge(
        "storage_scrub_finished_time_seconds", "When the latest pass ended, since the epoch; 0: none.", finished
    )


def _space(path: Path) -> list[Metric]:
    """Sizes; none of a disk that is gone, whose other metrics are then all the more wanted."""
    try:
        space = space_of(path)
    except OSError:
        return []
    return [
        gauge("storage_database_bytes", "Size of the database file, free pages included.", space.database),
        gauge("storage_wal_bytes", "Size of the write-ahead log's file.", space.wal),
        gauge("storage_free_bytes", "Space left in the data directory's file system.", space.free),
        gauge("storage_filesystem_bytes", "Size of the data directory's file system.", space.total),
    ]


def _registry(view: NodeView) -> Iterator[Metric]:
    status = view.registry()
    if status is None:
        return
    connected = GaugeMetricFamily(
        _PREFIX + "registry_connected", "1 when the latest request to the registry was answered.", labels=["url"]
    )
    connected.add_metric([status.url], status.connected)
    yield connected
    yield gauge("registry_registered", "1 when the registry lists this node.", status.registered)
    yield gauge("registry_failures", "Failed requests since the registry's latest answer.", status.failures)
    answered = status.last_success.timestamp() if status.last_success is not None else 0
    yield gauge(
        "registry_answered_time_seconds", "When the registry last answered, since the epoch; 0: never.", answered
    )


def _cluster(view: NodeView) -> Iterator[Metric]:
    seen = view.cluster()
    yield gauge("cluster_size", "Nodes in the cluster, this one included.", seen.size)
    yield gauge("cluster_replication_factor", "Replicas that streams of the forest have.", seen.replication_factor)
    yield gauge("cluster_problems", "Reasons why the cluster cannot work as it should.", len(seen.problems))
    yield gauge("cluster_listed_peers", "Other nodes that the registry lists.", seen.listed)
    yield gauge("cluster_connected_peers", "Other nodes of the cluster that a route leads to.", seen.connected)
    yield gauge(
        "cluster_waiting_peers", "Nodes that are away and without which groups of two do not go on.", seen.waiting
    )


def _health(view: NodeView) -> Iterator[Metric]:
    """What `/health` says, so that no alert needs a second probe."""
    page = overall(view)
    yield gauge("healthy", "1 unless /health says that this node cannot do its work.", page["status"] != "unhealthy")
    yield gauge(
        "health_problems",
        "Problems that /health names, those that it can live with included.",
        len(page.get("problems", ())),
    )


def _application(view: NodeView) -> Iterator[Metric]:
    if view.application is None:
        return
    families: dict[str, CounterMetricFamily] = {}
    for name, labels, value in _grouped(view.application.samples()):
        family = families.get(name)
        if family is None:
            help_text = view.application.help.get(name, name)
            family = families[name] = CounterMetricFamily(name, help_text, labels=list(labels))
        family.add_metric(list(labels.values()), value)
    yield from families.values()


def _grouped(
    samples: Iterable[tuple[str, dict[str, str], float]],
) -> Iterator[tuple[str, dict[str, str], float]]:
    """Samples whose labels come in the same order within a name, missing ones empty."""
    listed = list(samples)
    labels: dict[str, dict[str, str]] = {}
    for name, given, _ in listed:
        labels.setdefault(name, {}).update(dict.fromkeys(given, ""))
    for name, given, value in listed:
        yield name, {**labels[name], **given}, value
