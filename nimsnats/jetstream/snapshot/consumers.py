"""A consumer as it travels in an archive: nats-server's JSON, and beside it what only this server keeps.

Owns both directions and the checks of what comes from outside. nats-server counts redeliveries, we count deliveries;
the first attempt of a last-per-subject consumer, messages given up, and times are ours alone.
"""

from __future__ import annotations

import json
from typing import Any, Final, cast

from nimsnats.jetstream.api.decode import JsonObject, decode
from nimsnats.jetstream.clock import parse_time
from nimsnats.jetstream.consumer.config import CONFIG, ConsumerConfig
from nimsnats.jetstream.consumer.consumer import Consumer
from nimsnats.jetstream.consumer.rules import ServerLimits, StreamTraits, check, with_defaults
from nimsnats.jetstream.consumer.state import ConsumerState, runs_of
from nimsnats.jetstream.errors import ApiError
from nimsnats.protocol.archive import ArchivedConsumer

OURS: Final = "nimsnats"
"""Key of what nats-server does not know."""
_PARTS: Final = 6
_MOST: Final = 1 << 64


class BadConsumer(ValueError):
    """A consumer of an archive that cannot be one; the text says why."""


def document(consumer: Consumer) -> JsonObject:
    """A consumer's configuration and its state as of the last applied entry."""
    state = consumer.state
    shown: JsonObject = {
        "delivered": {"consumer_seq": state.delivered_number, "stream_seq": state.delivered_seq},
        "ack_floor": {"consumer_seq": state.floor_number, "stream_seq": state.floor_seq},
    }
    if state.pending:
        shown["pending"] = {
            str(seq): {"Sequence": number, "Timestamp": time} for seq, (number, time) in state.pending.items()
        }
    if state.redelivered:
        shown["redelivered"] = {str(seq): count - 1 for seq, count in state.redelivered.items()}
    ours = {"created": consumer.created, "generated": consumer.generated, "state": state.snapshot()}
    return {"config": {**consumer.config.to_json(), "name": consumer.name}, "state": shown, OURS: ours}


def record(item: ArchivedConsumer, traits: StreamTraits, limits: ServerLimits, now: int) -> JsonObject:
    """The body of a CONSUMER_RESTORED entry. `now` is when it is created. Raises BadConsumer."""
    try:
        return _record(item, traits, limits, now)
    except (ApiError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise BadConsumer(f"consumer {item.name!r}: {error}") from error


def _record(item: ArchivedConsumer, traits: StreamTraits, limits: ServerLimits, now: int) -> JsonObject:
    body = decode(json.dumps(item.fields["config"]).encode(), CONFIG, False)
    config = with_defaults(ConsumerConfig.from_json(body), traits, limits, False)
    check(config, traits, limits)
    name = config.durable_name or config.name
    if name != item.name:
        raise ValueError(f"its configuration is that of {name!r}")
    ours = item.fields.get(OURS)
    if ours is None:
        state = _state(cast("dict[str, Any]", item.fields["state"]))
        if config.pauses:
            state[1][2] = max(parse_time(config.pause_until), 0)
        generated = False
    else:
        state, generated = _checked(ours["state"]), bool(ours["generated"])
    return {"name": name, "config": config.to_json(), "created": now, "generated": generated, "state": state}


def _state(fields: dict[str, Any]) -> list[Any]:
    """What `ConsumerState.snapshot` would be, out of nats-server's form."""
    shown = cast("dict[str, dict[str, int]]", fields.get("pending") or {})
    counts = cast("dict[str, int]", fields.get("redelivered") or {})
    pending = {int(seq): one for seq, one in shown.items()}
    again = {int(seq): count + 1 for seq, count in counts.items()}
    delivered, floor = fields["delivered"], fields["ack_floor"]
    flat: list[int] = []
    for seq, one in sorted(pending.items()):
        flat += (seq, one["Sequence"], one["Timestamp"])
    redelivered = [part for pair in sorted(again.items()) if pair[0] in pending for part in pair]
    positions = [delivered["consumer_seq"], delivered["stream_seq"], floor["consumer_seq"], floor["stream_seq"]]
    return _checked([positions, [0, 0, 0, 0], flat, redelivered, [], []])


def _checked(snapshot: Any) -> list[Any]:
    """A consumer's state of which everything else may rely on. Raises ValueError."""
    parts = cast("list[list[int]]", snapshot)
    if type(parts) is not list or len(parts) != _PARTS or any(type(part) is not list for part in parts):
        raise ValueError("its state has another form")
    if any(type(number) is not int or not 0 <= number < _MOST for part in parts for number in part):
        raise ValueError("its state holds nonsense")
    positions, marks, pending, again, exhausted, initial = parts
    if len(positions) != 4 or len(marks) != 4 or len(pending) % 3 or len(again) % 2 or len(initial) % 2:
        raise ValueError("its state has another form")
    seqs = pending[::3]
    number, seq, floor_number, floor_seq = positions
    if seqs != sorted(set(seqs)) or (seqs and seqs[-1] > seq) or floor_number > number or floor_seq > seq:
        raise ValueError("its positions contradict each other")
    if max(pending[1::3], default=0) > number or not set(seqs).issuperset({*again[::2], *exhausted}):
        raise ValueError("its unacknowledged messages contradict each other")
    if sum(initial[1::2]) > 1 << 24:
        raise ValueError("its state is too large")
    ConsumerState.restored(parts)
    return parts


def beyond(body: JsonObject, last: int) -> JsonObject:
    """The same with positions that a stream ending at sequence `last` can have: what lies beyond was never stored."""
    positions, marks, pending, again, exhausted, initial = body["state"]
    kept = [part for at in range(0, len(pending), 3) if pending[at] <= last for part in pending[at : at + 3]]
    alive = set(kept[::3])
    positions = [positions[0], min(positions[1], last), positions[2], min(positions[3], last)]
    counts = [part for at in range(0, len(again), 2) if again[at] in alive for part in again[at : at + 2]]
    left = runs_of(seq for at in range(0, len(initial), 2) for seq in range(initial[at], sum(initial[at : at + 2])))
    return {**body, "state": [positions, marks, kept, counts, [seq for seq in exhausted if seq in alive], left]}
