"""Where a new consumer begins: deliver policies, applied to the stream as it is in that log position."""

from __future__ import annotations

from nimsnats.jetstream.clock import parse_time
from nimsnats.jetstream.consumer.config import ConsumerConfig
from nimsnats.jetstream.consumer.state import ConsumerState
from nimsnats.jetstream.source import Filters, MessageSource


def place(config: ConsumerConfig, filters: Filters, source: MessageSource) -> ConsumerState:
    """The state of a consumer that has delivered nothing yet. Deterministic."""
    if config.deliver_policy != "last_per_subject":
        return ConsumerState(_first(config, filters, source))
    initial = source.last_per_subject(filters)
    state = ConsumerState(initial[0] if initial else max(source.last_seq, 1))
    state.initial = initial
    state.resume = source.last_seq
    return state


def _first(config: ConsumerConfig, filters: Filters, source: MessageSource) -> int:
    """The first stream sequence to deliver."""
    first = max(source.first_seq, 1)
    match config.deliver_policy:
        case "last":
            return max(source.last_match(filters), first)
        case "new":
            return source.last_seq + 1
        case "by_start_sequence":
            return max(config.opt_start_seq, first)
        case "by_start_time":
            return max(source.seq_at_time(parse_time(config.opt_start_time)), first)
        case _:
            return first
