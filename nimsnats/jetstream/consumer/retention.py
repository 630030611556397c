"""Which messages a stream may drop because its consumers need them no more (interest and work-queue retention).

Called while entries are applied, so everything here is deterministic.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final

from nimsnats.jetstream.consumer.audience import Audience
from nimsnats.jetstream.consumer.backlog import LOOKS, Backlog
from nimsnats.jetstream.consumer.state import ConsumerState
from nimsnats.jetstream.source import Filters, MessageSource

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer

_STEP: Final = 512
"""Messages that are looked at in one step."""


class Retention:
    """Decides for all consumers of one stream."""

    def __init__(self, source: MessageSource, audience: Audience) -> None:
        self._source = source
        self._audience = audience

    def settle(self, consumer: Consumer, seqs: list[int]) -> None:
        """A consumer has finished with these messages."""
        retention = self._source.retention
        if not seqs or retention == "limits":
            return
        if retention == "interest":
            seqs = [seq for seq in seqs if not self._needed(seq, consumer)]
        if seqs:
            self._source.settled(seqs)

    def unneeded(self, filters: Filters, state: ConsumerState) -> Generator[None, None, None]:
        """A consumer with these filters is gone (or has changed them): drop what nobody else needs, in steps."""
        source = self._source
        if source.retention != "interest":
            return
        unneeded: list[int] = []
        looked = 0
        backlog, start = Backlog(source, filters), max(state.floor_seq + 1, 1)
        while seq := backlog.find(start, LOOKS):
            start = seq + 1 if seq > 0 else backlog.reached
            if seq > 0 and not state.done(seq) and not self._needed(seq):
                unneeded.append(seq)
            looked += 1
            if seq < 0 or looked % _STEP == 0:
                source.settled(unneeded)
                unneeded = []
                yield
        source.settled(unneeded)

    def _needed(self, seq: int, besides: Consumer | None = None) -> bool:
        subject = self._source.subject(seq)
        return subject is not None and self._audience.needed(subject, seq, besides)
