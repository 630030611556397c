"""ConsumerInfo: how a consumer describes itself in answers of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nimsnats.jetstream.clock import format_time
from nimsnats.jetstream.consumer.pull import PullSide
from nimsnats.jetstream.consumer.push import PushSide

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer


def consumer_info(consumer: Consumer, *, listed: bool = False) -> dict[str, Any]:
    """Everything but `type`. In lists the configuration lacks the version keys."""
    delivery, side, now = consumer.delivery, consumer.side, consumer.runtime.time_ns()
    again = delivery.attempts if delivery is not None else consumer.state.redelivered
    pending = delivery.outstanding if delivery is not None else len(consumer.state.pending)
    body: dict[str, Any] = {
        "stream_name": consumer.stream,
        "name": consumer.name,
        "created": format_time(consumer.created),
        "config": consumer.config.echo(generated_name=consumer.generated, dynamic=not listed),
        "delivered": _delivered(consumer),
        "ack_floor": _floor(consumer),
        "num_ack_pending": pending,
        "num_redelivered": 0 if consumer.config.max_deliver == 1 else len(again),
        "num_waiting": side.count() if isinstance(side, PullSide) else 0,
        "num_pending": consumer.num_pending(),
    }
    if (cluster := consumer.owner.cluster()) is not None:
        body["cluster"] = cluster
    if isinstance(side, PushSide) and side.bound:
        body["push_bound"] = True
    if consumer.paused:
        body["paused"] = True
        body["pause_remaining"] = consumer.state.paused_until - now
    body["ts"] = format_time(now)
    if isinstance(side, PullSide) and (groups := side.groups.info()):
        body["priority_groups"] = groups
    return body


def _delivered(consumer: Consumer) -> dict[str, Any]:
    number, seq = consumer.position()
    delivery = consumer.delivery
    return _sequences(number, seq, consumer.state.last_delivered if delivery is None else delivery.last_sent_at)


def _floor(consumer: Consumer) -> dict[str, Any]:
    state, delivery = consumer.state, consumer.delivery
    if consumer.unacknowledged:
        return _sequences(*consumer.position(), 0)
    last_acked = state.last_acked if delivery is None else delivery.last_acked_at
    if consumer.acked or consumer.acked_to:
        last_acked = consumer.owner.now()
    if not state.pending and (delivery is None or delivery.outstanding == 0):
        return _sequences(*consumer.position(), last_acked)
    front = delivery.front() if delivery is not None and not state.pending else None
    if front is not None and front[1] - 1 > state.floor_number:
        return _sequences(front[1] - 1, front[0] - 1, last_acked)
    return _sequences(state.floor_number, state.floor_seq, last_acked)


def _sequences(number: int, seq: int, last_active: int) -> dict[str, Any]:
    body: dict[str, Any] = {"consumer_seq": number, "stream_seq": seq}
    if last_active:
        body["last_active"] = format_time(last_active)
    return body
