"""Which messages a stream may drop because its consumers need them no more (interest and work-queue retention).

Called while entries are applied, so everything here is deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nimsnats.jetstream.consumer.state import ConsumerState
from nimsnats.jetstream.source import Filters, MessageSource

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer


class Retention:
    """Decides for all consumers of one stream."""

    def __init__(self, source: MessageSource, consumers: Mapping[str, Consumer]) -> None:
        self._source = source
        self._consumers = consumers

    def settle(self, consumer: Consumer, seqs: list[int]) -> None:
        """A consumer has finished with these messages."""
        retention = self._source.retention
        if not seqs or retention == "limits":
            return
        if retention == "interest":
            others = [other for other in self._consumers.values() if other is not consumer]
            if others:
                seqs = [seq for seq in seqs if not any(self._needs(other, seq) for other in others)]
        if seqs:
            self._source.settled(seqs)

    def unneeded(self, filters: Filters, state: ConsumerState) -> None:
        """A consumer with these filters is gone (or has changed them): drop what nobody else needs."""
        source = self._source
        if source.retention != "interest":
            return
        unneeded: list[int] = []
        seq = source.next_match(filters, max(state.floor_seq + 1, 1))
        while seq:
            if not state.done(seq) and not any(self._needs(other, seq) for other in self._consumers.values()):
                unneeded.append(seq)
            seq = source.next_match(filters, seq + 1)
        if unneeded:
            source.settled(unneeded)

    def _needs(self, consumer: Consumer, seq: int) -> bool:
        if consumer.state.done(seq):
            return False
        return not consumer.filters or self._source.next_match(consumer.filters, seq) == seq
