"""What the consumers of a stream do in one tick, served and written down together.

Owns the marks (who has to be looked at), the one flush a tick, the batches on their way through the log and the
answers that wait for them. At most one entry for deliveries and one for acknowledgements a tick, for all consumers.
Deliveries alone can wait a little: the acknowledgement that mostly follows soon then shares their commit; not those
that are not made before (`outbox.py`). Lives on the leader only; what entries mean when they are applied is `set.py`'s
business.

A batch that is dropped (the disk is full) is proposed again until it is stored, and nothing new is written before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from nimsnats.jetstream.consumer.entries import UNWRITABLE, Acks, Deliveries, drop_unwritable
from nimsnats.jetstream.kinds import CONSUMER_ACKS, CONSUMER_DELIVERED
from nimsnats.raft.machine import NotLeader

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer
    from nimsnats.jetstream.consumer.set import ConsumerSet

DEFERRED: Final = 0.005
"""Seconds that deliveries may wait for acknowledgements before they are written down on their own."""
TURN: Final = 1024
"""Consumers and messages that are seen to, about, before others than this stream's consumers have their turn."""
PAUSE: Final = 0.02
"""Seconds until the next look while the stream takes no proposals."""
RETRY: Final = 0.25
"""Seconds until an entry that was dropped is proposed again."""


class Journal:
    """See the module. Nothing happens unless the owner leads."""

    def __init__(self, owner: ConsumerSet, log: logging.Logger) -> None:
        self._owner = owner
        self._log = log
        self.marked: dict[int, Consumer] = {}
        self._hungry: dict[int, Consumer] = {}
        self._owing: dict[int, Consumer] = {}
        """Consumers that may have deliveries to be written down."""
        self._deferred: asyncio.TimerHandle | None = None
        self._handle: asyncio.Handle | None = None
        self._refused: list[Deliveries | Acks] = []
        self._retry: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._replies: list[bytes] = []
        self._flying: list[Acks] = []

    def mark(self, consumer: Consumer) -> None:
        """Serve this consumer, and write down what it did, in the next tick."""
        self.marked[consumer.id] = consumer
        self._schedule()

    def hunger(self, consumer: Consumer) -> None:
        """Mark this consumer when messages are stored: it could deliver them."""
        self._hungry[consumer.id] = consumer

    def feed(self) -> None:
        """Messages were stored."""
        if self._hungry:
            hungry, self._hungry = self._hungry, {}
            for consumer in hungry.values():
                self.mark(consumer)

    def forget(self, consumer: Consumer) -> None:
        """A consumer is gone."""
        self.marked.pop(consumer.id, None)
        self._hungry.pop(consumer.id, None)
        self._owing.pop(consumer.id, None)

    def stop(self) -> None:
        """Forget everything: this node does not lead any more."""
        for handle in (self._handle, self._retry, self._deferred, self._pause):
            if handle is not None:
                handle.cancel()
        self._handle = self._retry = self._deferred = self._pause = None
        for kept in (self.marked, self._owing, self._hungry, self._refused, self._replies, self._flying):
            kept.clear()

    # --- the tick

    def _schedule(self) -> None:
        if self._handle is None and self._owner.leading:
            self._handle = self._owner.runtime.call_soon(self._flush)

    def _flush(self) -> None:
        self._handle = None
        if not self._owner.source.accepting:
            # while leadership is handed over nobody could write down what is delivered; a change tells when it is done
            if self._pause is None:
                self._pause = self._owner.runtime.call_later(PAUSE, self._resume)
            return
        now = self._owner.now()
        marked, self.marked = self.marked, {}
        more: list[Consumer] = []
        work = 0
        for count, consumer in enumerate(marked.values(), 1):
            before = consumer.worked
            if self._serve(consumer, now):
                more.append(consumer)
            work += 1 + consumer.worked - before
            if work >= TURN and count < len(marked):
                rest = list(marked.values())[count:]
                more = rest + more
                for each in rest:
                    del marked[each.id]
                break
        marked.update(self.marked)
        self.marked.clear()
        if self._refused:
            self.marked = marked | {consumer.id: consumer for consumer in more}
            return
        self._write(marked.values(), now)
        for consumer in more:
            self.mark(consumer)

    def _serve(self, consumer: Consumer, now: int) -> bool:
        """Whether the consumer wants to be served again. One that makes an error waits for its next event."""
        try:
            return consumer.serve(now)
        except Exception as error:
            self._owner.runtime.fence.caught(consumer.serve, error)
            return False

    def go_on(self) -> None:
        """The stream may take proposals again."""
        if self._pause is not None:
            self._pause.cancel()
            self._resume()

    def _resume(self) -> None:
        self._pause = None
        self._schedule()

    def write_all(self, consumers: Iterable[Consumer]) -> None:
        """Write down everything now, also what could have waited."""
        self.marked.clear()
        self._write(consumers, self._owner.now(), everything=True)

    def _write(self, marked: Iterable[Consumer], now: int, *, everything: bool = False) -> None:
        """Propose what was acknowledged to these consumers, and before it whatever has been delivered."""
        acks, urgent = Acks(), everything
        for consumer in marked:
            self._owing[consumer.id] = consumer
            urgent = urgent or (consumer.outbox is not None and consumer.outbox.due)
            try:
                if (item := consumer.take_acks(now)) is not None:
                    acks.items.append(item)
            except Exception as error:
                self._owner.runtime.fence.caught(consumer.take_acks, error)
                self._replies.clear()  # whose acknowledgement is not written down nobody can tell: none is confirmed
        if acks.items or urgent:
            self._write_deliveries(everything=everything)
        elif self._deferred is None and self._owing:
            self._deferred = self._owner.runtime.call_later(DEFERRED, self._write_deliveries)
        acks.replies, self._replies = self._replies, []
        if acks.items:
            self._flying.append(acks)
            self._propose(acks)
        elif self._flying:
            self._flying[-1].replies += acks.replies
        else:
            self._answer(acks.replies)

    def _write_deliveries(self, *, everything: bool = False) -> None:
        if self._deferred is not None:
            self._deferred.cancel()
            self._deferred = None
        if self._refused and not everything:
            return
        now = self._owner.now()
        deliveries = Deliveries()
        for consumer in self._owing.values():
            try:
                if (item := consumer.take_delivered(now, everything)) is not None:
                    deliveries.items.append(item)
                    if (outbox := consumer.outbox) is not None:
                        deliveries.held.append((consumer, outbox, outbox.seal()))
            except Exception as error:
                self._owner.runtime.fence.caught(consumer.take_delivered, error)
        self._owing.clear()
        if deliveries.items:
            self._propose(deliveries)

    def _propose(self, batch: Deliveries | Acks) -> None:
        kind = CONSUMER_DELIVERED if isinstance(batch, Deliveries) else CONSUMER_ACKS
        try:
            self._owner.source.propose(kind, self._encoded(batch), batch)
        except NotLeader as error:
            # either somebody else leads from now on, and `stop` follows; or nobody took over, and it is proposed again
            self.refused(batch, error)

    def _encoded(self, batch: Deliveries | Acks) -> bytes:
        """A batch as bytes. What cannot be written must not take the others along: it is left out, and nothing is sent
        or confirmed that rests on it."""
        try:
            return batch.encode()
        except UNWRITABLE as error:
            self._owner.runtime.fence.caught(batch.encode, error)
            dropped = drop_unwritable(batch)
            if isinstance(batch, Deliveries):
                batch.held = [held for held in batch.held if held[0].id not in dropped]
            else:
                batch.replies.clear()
            self._begin_anew(dropped)
            return batch.encode()

    # --- what became of it

    def refused(self, batch: Deliveries | Acks, error: Exception) -> None:
        """A batch was dropped and has changed nothing."""
        if isinstance(batch, Deliveries):
            batch.repeated = True
        self._refused.append(batch)
        if self._retry is None:
            level = logging.DEBUG if isinstance(error, NotLeader) else logging.WARNING
            self._log.log(level, "Stream %s: consumer state is not stored yet: %s", self._owner.source.name, error)
            self._retry = self._owner.runtime.call_later(RETRY, self._propose_refused)

    def _propose_refused(self) -> None:
        self._retry = None
        refused, self._refused = self._refused, []
        for batch in refused:
            self._propose(batch)
        self._schedule()

    def given_up(self, batch: Deliveries | Acks, ids: Iterable[int]) -> None:
        """A batch will never be written: whoever waits for it hears nothing, and its consumers begin anew."""
        if isinstance(batch, Acks) and batch in self._flying:
            self._flying.remove(batch)
        self._begin_anew(ids)

    def _begin_anew(self, ids: Iterable[int]) -> None:
        """Have these consumers (by id) go on with what is written down: what is not, is delivered again."""
        for id in ids:
            self._owner.begin_anew(id)

    def applied(self, acks: Acks) -> None:
        """A batch of acknowledgements was applied: whoever waited for it is answered."""
        if acks in self._flying:
            self._flying.remove(acks)
        self._answer(acks.replies)

    def answer(self, consumer: Consumer, reply: bytes) -> None:
        """Answer an acknowledgement once everything acknowledged so far is durable."""
        self._replies.append(reply)
        self.mark(consumer)

    def _answer(self, replies: Iterable[bytes]) -> None:
        for reply in replies:
            self._owner.account.publish(reply)
