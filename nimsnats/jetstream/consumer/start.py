"""Where a new consumer begins: deliver policies, applied to the stream as it is in that log position."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from nimsnats.jetstream.clock import parse_time
from nimsnats.jetstream.consumer.config import ConsumerConfig
from nimsnats.jetstream.consumer.state import ConsumerState
from nimsnats.jetstream.source import Filters, MessageSource
from nimsnats.protocol.subject import has_wildcard
from nimsnats.raft.machine import BadEntry


@dataclass(frozen=True, slots=True)
class Beginning:
    """The times in a new consumer's configuration, nanoseconds since the epoch: of its first message where that is
    chosen by time, and until when it is paused (0: it is not)."""

    start_time: int
    paused_until: int

    @classmethod
    def of(cls, config: ConsumerConfig) -> Beginning:
        """Out of a configuration. Raises BadEntry when a time that matters is none."""
        timed = config.deliver_policy == "by_start_time"
        return cls(
            _time("opt_start_time", config.opt_start_time) if timed else 0,
            _time("pause_until", config.pause_until) if config.pauses else 0,
        )


def _time(name: str, text: str) -> int:
    try:
        return parse_time(text)
    except ValueError:
        raise BadEntry(f"{name} {text[:64]!a} is not a time") from None


def place(
    config: ConsumerConfig, filters: Filters, source: MessageSource, begin: Beginning
) -> Generator[None, None, ConsumerState]:
    """The state of a consumer that has delivered nothing yet, found in steps. Deterministic."""
    policy = config.deliver_policy
    if policy == "last_per_subject" or (policy == "last" and any(map(has_wildcard, filters))):
        yield from source.sorting()
    if policy != "last_per_subject":
        return ConsumerState(_first(config, filters, source, begin))
    initial: list[int] = []
    for found in source.last_per_subject(filters):
        if found is None:
            yield
        else:
            initial = found
    state = ConsumerState(initial[0] if initial else max(source.last_seq, 1))
    state.initial = initial
    state.resume = source.last_seq
    return state


def _first(config: ConsumerConfig, filters: Filters, source: MessageSource, begin: Beginning) -> int:
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
            return max(source.seq_at_time(begin.start_time), first)
        case _:
            return first
