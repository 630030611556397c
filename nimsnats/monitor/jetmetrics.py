"""The JetStream part of `/metrics`: totals, and one line for each stream and consumer."""

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


async def jetstream_metrics(jetstream: JetStream) -> list[Metric]:
    """All families; other work gets its turn between bunches of consumers."""
    accounts = list(jetstream.accounts.values())
    return [*_accounts(jetstream, accounts), *_streams(accounts), *await _consumers(accounts)]


def _accounts(jetstream: JetStream, accounts: list[JetStreamAccount]) -> Iterator[Metric]:
    streams = GaugeMetricFamily("nimsnats_jetstream_streams", "Streams of the account.", labels=["account"])
    consumers = GaugeMetricFamily("nimsnats_jetstream_consumers", "Consumers of the account.", labels=["account"])
    requests = CounterMetricFamily(
        "nimsnats_jetstream_api_requests_total", "JetStream API requests answered.", labels=["account"]
    )
    failures = CounterMetricFamily(
        "nimsnats_jetstream_api_errors_total", "JetStream API requests answered with an error.", labels=["account"]
    )
    for account in accounts:
        streams.add_metric([account.name], len(account.streams))
        consumers.add_metric([account.name], sum(len(stream.consumers) for stream in account))
        answered, failed = jetstream.api_requests(account.name)
        requests.add_metric([account.name], answered)
        failures.add_metric([account.name], failed)
    yield from (streams, consumers, requests, failures)


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
