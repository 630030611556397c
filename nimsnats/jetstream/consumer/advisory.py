"""Advisories and metrics about consumers, published only when somebody listens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nimsnats.identity import nuid
from nimsnats.jetstream.api.decode import encode
from nimsnats.jetstream.clock import format_time

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer

ADVISORY: Final = "io.nats.jetstream.advisory.v1."
METRIC: Final = "io.nats.jetstream.metric.v1."


def advise(consumer: Consumer, kind: str, type: str, fields: dict[str, Any]) -> None:
    """`$JS.EVENT.ADVISORY.CONSUMER.<kind>.<stream>.<consumer>` with an event of this type."""
    _publish(consumer, f"$JS.EVENT.ADVISORY.CONSUMER.{kind}", ADVISORY + type, fields)


def ack_sample(consumer: Consumer, seq: int, number: int, ack_time: int, deliveries: int) -> None:
    """The metric of one sampled acknowledgement; `ack_time` in nanoseconds."""
    fields = {"consumer_seq": number, "stream_seq": seq, "ack_time": ack_time, "deliveries": deliveries}
    _publish(consumer, "$JS.EVENT.METRIC.CONSUMER.ACK", METRIC + "consumer_ack", {**consumer.names(), **fields})


def _publish(consumer: Consumer, prefix: str, type: str, fields: dict[str, Any]) -> None:
    subject = f"{prefix}.{consumer.stream}.{consumer.name}".encode()
    if not consumer.account.has_interest(subject):
        return
    runtime = consumer.runtime
    event: dict[str, Any] = {
        "type": type,
        "id": nuid(runtime.random),
        "timestamp": format_time(runtime.time_ns()),
        **fields,
    }
    if consumer.owner.domain:
        event["domain"] = consumer.owner.domain
    consumer.account.publish(subject, encode(event))
