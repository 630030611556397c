"""The JetStream part of `/metrics`: totals, and one line for each stream and consumer while there are not too many.

A node may hold many thousands of streams and consumers. Beyond `MOST_LINES` of a kind that kind has no lines of its own
unless a scrape asks for them (`/metrics?streams=1`), and a gauge says how many are left out; totals are always there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from nimsnats.jetstream.account import JetStreamAccount
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.jetstream.stream import Stream

MOST_LINES: Final = 1000
_BUNCH: Final = 50
_STREAM: Final = ("account", "stream")
_CONSUMER: Final = ("account", "stream", "consumer")

_STREAM_GAUGES: Final[tuple[tuple[str, str, Callable[[Stream], float]], ...]] = (
    ("stream_messages", "Messages stored.", lambda stream: stream.store.messages),
    ("stream_size_bytes", "Size of the messages stored.", lambda stream: stream.store.bytes),
    ("stream_first_sequence", "Sequence of the oldest message.", lambda stream: stream.store.first_seq),
    ("stream_last_sequence", "Sequence of the newest message.", lambda stream: stream.store.last_seq),
    ("stream_consumers", "Consumers of the stream.", lambda stream: len(stream.consumers)),
    ("stream_lost_messages", "Messages whose stored bytes were damaged.", lambda stream: len(stream.store.lost)),
    ("stream_leader", "1 when this node leads the stream.", lambda stream: stream.group.leading),
)
_CONSUMER_GAUGES: Final = (
    ("consumer_pending_messages", "Messages not delivered yet.", "num_pending"),
    ("consumer_ack_pending_messages", "Messages delivered and not acknowledged yet.", "num_ack_pending"),
    ("consumer_redelivered_messages", "Unacknowledged messages delivered more than once.", "num_redelivered"),
    ("consumer_waiting_requests", "Pull requests waiting for messages.", "num_waiting"),
)


async def jetstream_metrics(jetstream: JetStream, *, each: bool | None = None) -> list[Metric]:
    """All families; `each` has streams and consumers listed one by one, None up to `MOST_LINES` of a kind. Other work
    gets its turn between bunches of consumers."""
    accounts = list(jetstream.accounts.values())
    streams = sum(len(account.streams) for account in accounts)
    consumers = sum(len(stream.consumers) for account in accounts for stream in account)
    unlisted = GaugeMetricFamily(
        "nimsnats_jetstream_unlisted", "Streams and consumers without lines of their own here.", labels=["kind"]
    )
    listed: list[list[JetStreamAccount]] = []
    for kind, count in (("stream", streams), ("consumer", consumers)):
        shown = count <= MOST_LINES if each is None else each
        unlisted.add_metric([kind], 0 if shown else count)
        listed.append(accounts if shown else [])
    return [*_accounts(jetstream, accounts), unlisted, *_streams(listed[0]), *await _consumers(listed[1])]


def _accounts(jetstream: JetStream, accounts: list[JetStreamAccount]) -> Iterator[Metric]:
    streams = GaugeMetricFamily("nimsnats_jetstream_streams", "Streams of the account.", labels=["account"])
    consumers = GaugeMetricFamily("nimsnats_jetstream_consumers", "Consumers of the account.", labels=["account"])
    messages = GaugeMetricFamily("nimsnats_jetstream_messages", "Messages stored here.", labels=["account"])
    size = GaugeMetricFamily("nimsnats_jetstream_size_bytes", "Size of the messages stored here.", labels=["account"])
    lost = GaugeMetricFamily(
        "nimsnats_jetstream_lost_messages", "Messages whose stored bytes here were damaged.", labels=["account"]
    )
    requests = CounterMetricFamily(
        "nimsnats_jetstream_api_requests_total", "JetStream API requests answered.", labels=["account"]
    )
    failures = CounterMetricFamily(
        "nimsnats_jetstream_api_errors_total", "JetStream API requests answered with an error.", labels=["account"]
    )
    for account in accounts:
        streams.add_metric([account.name], len(account.streams))
        consumers.add_metric([account.name], sum(len(stream.consumers) for stream in account))
        messages.add_metric([account.name], sum(stream.store.messages for stream in account))
        size.add_metric([account.name], sum(account.usage()))
        lost.add_metric([account.name], sum(len(stream.store.lost) for stream in account))
        answered, failed = jetstream.api_requests(account.name)
        requests.add_metric([account.name], answered)
        failures.add_metric([account.name], failed)
    yield from (streams, consumers, messages, size, lost, requests, failures)


def _streams(accounts: list[JetStreamAccount]) -> Iterator[Metric]:
    for name, text, read in _STREAM_GAUGES:
        family = GaugeMetricFamily("nimsnats_" + name, text, labels=_STREAM)
        for account in accounts:
            for stream in account:
                family.add_metric([account.name, stream.name], read(stream))
        yield family


async def _consumers(accounts: list[JetStreamAccount]) -> list[Metric]:
    families = {
        field: GaugeMetricFamily("nimsnats_" + name, text, labels=_CONSUMER) for name, text, field in _CONSUMER_GAUGES
    }
    read = 0
    for account in accounts:
        for stream in list(account):
            for name in stream.consumers.names():
                consumer = stream.consumers.get(name)
                if consumer is None:
                    continue  # deleted during a pause
                info = consumer.info(listed=True)
                for field, family in families.items():
                    family.add_metric([account.name, stream.name, name], info[field])
                read += 1
                if read % _BUNCH == 0:
                    await asyncio.sleep(0)
    return list(families.values())
