"""The leader's volatile view of one consumer: which message comes next, what is outstanding, when to try again.

Owns the order of delivery (redeliveries, then the last_per_subject list, then new messages), the acknowledgement
waits and what has happened since the last entry was proposed. Sans-IO: it is told `now` (nanoseconds), it reads the
stream through `MessageSource`, and whoever sends the messages tells it what was sent. It never sends, proposes or sets
a timer.

The replicated state lags behind by the entries that are not applied yet. So a message is outstanding when it is in the
state's `pending`, in an entry on its way (`flying`) or delivered in this tick (`fresh`), unless its acknowledgement is
on its way (`acking`).

Waits: first deliveries expire in the order of delivery, so looking at the front of those maps is enough. Everything
else has an explicit time in `redelivery.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, repeat

from nimsnats.jetstream.clock import FARTHEST
from nimsnats.jetstream.consumer.backlog import LOOKS, Backlog
from nimsnats.jetstream.consumer.config import ConsumerConfig
from nimsnats.jetstream.consumer.redelivery import Redeliveries
from nimsnats.jetstream.consumer.state import ConsumerState, Delivered
from nimsnats.jetstream.message import StoredMessage
from nimsnats.jetstream.source import Filters, MessageSource

NEVER = FARTHEST
"""A time that does not come."""
SHORTEST_WAIT = 10_000_000
"""Nanoseconds that a delivery waits for its acknowledgement, at least."""

ACKNOWLEDGED = ("explicit", "all")
CHUNK = 256
CHUNK_LEAST = 16
CHUNK_BYTES = 512 * 1024


class Delivery:
    """See the module. `wanted` is a sequence that must be loaded before `pick` can go on (0: none)."""

    __slots__ = (
        "_initial",
        "_initial_at",
        "_loaded",
        "_replay",
        "_replay_to",
        "_source",
        "_typical",
        "acking",
        "again",
        "attempts",
        "backlog",
        "config",
        "exhausted",
        "flying",
        "fresh",
        "last_acked_at",
        "last_sent",
        "last_sent_at",
        "moved",
        "next_number",
        "next_seq",
        "noted",
        "outstanding",
        "picked_again",
        "redeliveries",
        "searching",
        "spent",
        "state",
        "touched",
        "tracked",
        "vanished",
        "wanted",
    )

    def __init__(self, config: ConsumerConfig, filters: Filters, state: ConsumerState, source: MessageSource) -> None:
        self._source = source
        self.state = state
        self.backlog = Backlog(source, filters)
        self.configure(config, filters)
        self.next_number = state.delivered_number + 1
        self.next_seq = state.delivered_seq + 1
        self._initial = [seq for seq in state.initial if seq > state.delivered_seq]
        self._initial_at = 0
        if state.resume >= self.next_seq:
            self.next_seq = state.resume + 1
        self.last_sent = state.delivered_seq
        """Highest stream sequence delivered so far."""
        self.last_sent_at = state.last_delivered
        self.last_acked_at = state.last_acked
        self.fresh: dict[int, Delivered] = {}
        self.flying: deque[dict[int, Delivered]] = deque()
        self.again: list[tuple[int, int]] = []
        """Redeliveries since the last entry: (sequence, deliveries so far)."""
        self.exhausted: list[int] = []
        """Messages that reached max_deliver since the last entry."""
        self.vanished: list[int] = []
        """Messages that recovery could not bring back: to be acknowledged by ourselves."""
        self.touched: list[int] = []
        """Flat (sequence, time) pairs for the next entry: waits that were restarted."""
        self.moved = False
        """Whether the delivered position changed since the last entry."""
        self.acking: set[int] = set()
        self.spent: set[int] = set(state.exhausted)
        """Messages that reached max_deliver, including those whose entry is not applied yet."""
        self.attempts: dict[int, int] = dict(state.redelivered)
        self.redeliveries = Redeliveries()
        self.outstanding = len(state.pending) - len(state.exhausted)
        self.wanted = 0
        self.searching = False
        """Whether the last pick has ended before it knew whether there is more."""
        self._loaded: StoredMessage | None = None
        self.picked_again = False
        self._typical = 256
        self._replay: tuple[int, int] | None = None
        self._replay_to = source.last_seq if config.replay_policy == "original" else 0
        self._schedule_restored()
        if self.next_seq > source.last_seq:
            self._catch_up()

    def configure(self, config: ConsumerConfig, filters: Filters) -> None:
        """Take over a new configuration (positions stay)."""
        self.config = config
        self.tracked = config.ack_policy in ACKNOWLEDGED
        self.noted = self.tracked or self._source.retention != "limits"
        """Whether the entry must name each message: for acknowledgements, or because delivery removes it."""
        self.backlog.configure(filters)

    def _schedule_restored(self) -> None:
        """Give an explicit time to what is not in order of delivery, so that the front of `pending` can be trusted."""
        newest = 0
        for seq, (_, time) in self.state.pending.items():
            if seq in self.spent:
                continue
            if seq in self.attempts or time < newest:
                self.redeliveries.schedule(seq, time + self.wait(self.attempts.get(seq, 1)))
            newest = max(newest, time)

    # --- what is left

    def remaining(self) -> int:
        """Matching messages that were not delivered yet."""
        return self.backlog.remaining(self.next_seq) + len(self._initial) - self._initial_at

    @property
    def exposed(self) -> bool:
        """Whether it would matter to this consumer that a message is removed."""
        return bool(
            self.backlog.counting
            or self.fresh
            or self.flying
            or self.attempts
            or self.acking
            or self.spent
            or self.redeliveries.planned
        )

    def chunk(self) -> int:
        """How many messages may go out before others get a turn: many small ones, few large ones."""
        return min(max(CHUNK_BYTES // (self._typical + 1), CHUNK_LEAST), CHUNK)

    def is_outstanding(self, seq: int) -> bool:
        """Delivered, not acknowledged, still to be redelivered one day."""
        return self.record(seq) is not None and seq not in self.acking and seq not in self.spent

    def record(self, seq: int) -> Delivered | None:
        """Consumer sequence and time of a delivery whose acknowledgement has not been applied."""
        record = self.fresh.get(seq) or self.state.pending.get(seq)
        if record is None:
            for batch in self.flying:
                if (record := batch.get(seq)) is not None:
                    return record
        return record

    @property
    def full(self) -> bool:
        """Whether max_ack_pending admits no new message."""
        limit = self.config.max_ack_pending
        return self.tracked and 0 < limit <= self.outstanding

    def room(self, want: int) -> int:
        """How many of `want` new messages max_ack_pending admits."""
        limit = self.config.max_ack_pending
        return min(want, limit - self.outstanding) if self.tracked and limit > 0 else want

    # --- choosing

    def pick(self, want: int) -> list[StoredMessage]:
        """Up to `want` messages that come next, without moving on; empty when there is nothing to deliver now.

        Either all of them are redeliveries (`picked_again`) or none. When a message must be read from disk first,
        `wanted` names it and the pick ends there. Tell `sent` what was really delivered.
        """
        self.wanted = 0
        self.searching = False
        if self.redeliveries:
            again = self._pick_again()
            if again is not None:
                self.picked_again = True
                return [again]
            if self.wanted:
                return []
        self.picked_again = False
        want = self.room(want)
        if want <= 0:
            return []
        if self._initial_at < len(self._initial):
            return self._pick_initial()
        return self._pick_new(want) if self.backlog.filters else self._pick_unfiltered(want)

    def _cached(self, seq: int) -> StoredMessage | None:
        message = self._source.get(seq)
        if message is None and self._loaded is not None and self._loaded.seq == seq:
            return self._loaded
        return message

    def _pick_again(self) -> StoredMessage | None:
        while seq := self.redeliveries.head():
            if self.is_outstanding(seq) and not self._exhausts(seq):
                message = self._cached(seq)
                if message is not None:
                    return message
                if self._source.live(seq):
                    self.wanted = seq
                    return None
                if self.acknowledge(seq):
                    self.vanished.append(seq)
            self.redeliveries.forget(seq)
        return None

    def _exhausts(self, seq: int) -> bool:
        """Whether the message may not be tried again; then it is noted as exhausted."""
        limit = self.config.max_deliver
        if limit <= 0 or self.attempts.get(seq, 1) < limit:
            return False
        self._exhaust(seq)
        return True

    def _exhaust(self, seq: int) -> None:
        self.exhausted.append(seq)
        self.spent.add(seq)
        self.outstanding -= 1
        self.redeliveries.forget(seq)

    def _pick_initial(self) -> list[StoredMessage]:
        initial = self._initial
        while self._initial_at < len(initial):
            seq = initial[self._initial_at]
            message = self._cached(seq)
            if message is not None:
                return [message]
            if self._source.live(seq):
                self.wanted = seq
                return []
            self._initial_at += 1
        return []

    def _pick_unfiltered(self, want: int) -> list[StoredMessage]:
        """The hot loop for consumers without filters: one look-up a message while they are dense and in memory."""
        get = self._source.get
        picked: list[StoredMessage] = []
        seq = self.next_seq
        end = seq + want
        while seq < end:
            message = get(seq)
            if message is None:
                break
            picked.append(message)
            seq += 1
        if picked:
            return picked
        return self._pick_new(want)

    def _pick_new(self, want: int) -> list[StoredMessage]:
        backlog = self.backlog
        picked: list[StoredMessage] = []
        if backlog.caught_up:
            return picked  # who stores the next one that matches says so (`arrived`)
        seq, enough = self.next_seq, backlog.looks + LOOKS
        while len(picked) < want:
            found = backlog.find(seq, LOOKS)
            if found <= 0:
                self.searching = found < 0
                if not picked:
                    self._pass_over(found)
                break
            message = self._cached(found)
            if message is None:
                if not picked:
                    self.wanted = found
                    self.next_seq = found
                break
            picked.append(message)
            seq = found + 1
            if backlog.looks >= enough:
                self.searching = True
                break
        return picked

    def _pass_over(self, found: int) -> None:
        """Never look again at what does not match: all that there is, or what has been looked at so far."""
        if found:
            self.next_seq = max(self.next_seq, self.backlog.reached)
        else:
            self._catch_up()

    def arrived(self, seq: int) -> None:
        """While this consumer was caught up, the first message that matches was stored."""
        if self.backlog.caught_up:
            self.next_seq = max(self.next_seq, seq)
            self.backlog.arrived(self.next_seq)

    def _catch_up(self) -> None:
        """Nothing more matches: never look at these sequences again."""
        self.backlog.catch_up()
        self.next_seq = max(self.next_seq, self._source.last_seq + 1)

    def loaded(self, seq: int, message: StoredMessage | None, now: int) -> None:
        """The answer to `wanted`. None: the message is gone or damaged, and is passed over (for now)."""
        self._loaded = message
        if message is not None:
            return
        if self.redeliveries.head() == seq:
            self.redeliveries.schedule(seq, now + self.wait(self.attempts.get(seq, 1)))
        elif self._initial_at < len(self._initial) and self._initial[self._initial_at] == seq:
            self._initial_at += 1
        elif self.next_seq == seq:
            self.next_seq = seq + 1
            self.backlog.forget()

    def landed(self, batch: dict[int, Delivered]) -> None:
        """An entry was applied: its deliveries are in the replicated state now."""
        for index, flying in enumerate(self.flying):
            if flying is batch:
                del self.flying[index]
                return

    # --- telling what happened

    def sent(self, messages: Sequence[StoredMessage], now: int) -> None:
        """These, the first of the last pick, have been delivered, with consecutive consumer sequences."""
        count = len(messages)
        if count == 0:
            return
        first = self.next_number
        self.next_number += count
        self.moved = True
        self.last_sent_at = now
        if self.picked_again:
            self._sent_again(messages[0].seq, now)
            return
        last = messages[-1].seq
        if self._initial_at < len(self._initial):
            self._initial_at += 1
        else:
            self.next_seq = last + 1
            self.backlog.sent(count)
        self.last_sent = last
        self._typical = max(len(messages[0].payload), len(messages[-1].payload))
        if self.tracked:
            self.outstanding += count
        if self.noted:
            numbers = range(first, first + count)
            self.fresh.update(zip([m.seq for m in messages], zip(numbers, repeat(now)), strict=False))
        if self._replay_to:
            self._replay = (messages[-1].time, now) if last < self._replay_to else None

    def _sent_again(self, seq: int, now: int) -> None:
        self.redeliveries.pop()
        deliveries = self.attempts.get(seq, 1) + 1
        self.attempts[seq] = deliveries
        self.again.append((seq, deliveries))
        self.redeliveries.schedule(seq, now + self.wait(deliveries))

    def not_before(self, message: StoredMessage) -> int:
        """When replay policy `original` wants this message delivered (0: at once)."""
        if self._replay is None or self.picked_again or message.seq > self._replay_to:
            return 0
        before, sent = self._replay
        return sent + message.time - before

    @property
    def replaying(self) -> bool:
        """Whether messages are spaced as they were stored."""
        return self._replay_to >= self.next_seq and self._replay_to > 0

    def acknowledge(self, seq: int) -> bool:
        """An acknowledgement of one message arrived. False when there is nothing to acknowledge."""
        if seq in self.acking:
            return False
        if seq not in self.state.pending and self.record(seq) is None:
            return False
        self.acking.add(seq)
        if self.spent and seq in self.spent:
            self.spent.discard(seq)
        else:
            self.outstanding -= 1
        self.redeliveries.forget(seq)
        if self.attempts:
            self.attempts.pop(seq, None)
        return True

    def acknowledge_many(self, seqs: Sequence[int]) -> list[int]:
        """Acknowledgements of single messages arrived. Those that there was something to acknowledge for."""
        if self.spent or self.attempts:
            return [seq for seq in seqs if self.acknowledge(seq)]
        acking, fresh, pending, record = self.acking, self.fresh, self.state.pending, self.record
        taken = [
            seq
            for seq in dict.fromkeys(seqs)
            if seq not in acking and (seq in pending or seq in fresh or record(seq) is not None)
        ]
        acking.update(taken)
        self.outstanding -= len(taken)
        if self.redeliveries.planned:
            for seq in taken:
                self.redeliveries.forget(seq)
        return taken

    def acknowledge_all(self, seq: int) -> bool:
        """An acknowledgement of everything up to a sequence arrived. False when there is nothing to acknowledge."""
        candidates: list[int] = []
        for candidate in self._in_order():
            if candidate > seq:
                break
            candidates.append(candidate)
        return sum([self.acknowledge(candidate) for candidate in candidates]) > 0

    def negative(self, seq: int, delay: int, now: int) -> bool:
        """A negative acknowledgement: try again at once, or after `delay` nanoseconds."""
        if not self.is_outstanding(seq):
            return False
        if delay > 0:
            self.redeliveries.schedule(seq, now + delay)
            self.touched += (seq, now + delay - self.wait(self.attempts.get(seq, 1)))
        else:
            self.redeliveries.enqueue(seq)
        return True

    def progress(self, seq: int, now: int) -> bool:
        """Work in progress: the wait starts again."""
        if not self.is_outstanding(seq):
            return False
        self.redeliveries.schedule(seq, now + self.wait(self.attempts.get(seq, 1)))
        self.touched += (seq, now)
        return True

    def lost(
        self, seqs: Sequence[int], forgotten: dict[int, Delivered], struck: dict[int, bytes]
    ) -> list[tuple[int, int, int]]:
        """The stream lost single messages; the replicated state has forgotten some of them already. `struck` tells the
        subjects that matter.

        Returns (stream sequence, consumer sequence, deliveries) of those that were outstanding.
        """
        gone: list[tuple[int, int, int]] = []
        for seq in seqs:
            if seq >= self.next_seq:
                self.backlog.lost(seq, struck)
                continue
            record = forgotten.get(seq) or self.record(seq)
            if record is None:
                continue
            if self.tracked and seq not in self.acking:
                if seq not in self.spent:
                    self.outstanding -= 1
                gone.append((seq, record[0], self.attempts.get(seq, 1)))
            self._drop(seq)
        return gone

    def _drop(self, seq: int) -> None:
        self.fresh.pop(seq, None)
        for batch in self.flying:
            batch.pop(seq, None)
        self.redeliveries.forget(seq)
        self.attempts.pop(seq, None)
        self.acking.discard(seq)
        self.spent.discard(seq)

    def purged(self) -> None:
        """The stream lost many messages: look at everything again."""
        live = self._source.live
        for seq in [seq for seq in chain(self.fresh, *self.flying) if not live(seq)]:
            self._drop(seq)
        self.backlog.forget()
        self.next_seq = max(self.next_seq, self._source.first_seq)
        self.last_sent = max(self.last_sent, self._source.first_seq - 1)
        self.outstanding = sum(1 for seq in self._in_order() if seq not in self.acking and seq not in self.spent)

    # --- acknowledgement waits

    def wait(self, attempt: int) -> int:
        """How long the acknowledgement of this attempt (1, 2, …) may take, in nanoseconds: as configured, or somewhat
        longer where nobody could answer in time and all of it would be delivered again and again."""
        backoff = self.config.backoff
        return max(backoff[min(attempt, len(backoff)) - 1] if backoff else self.config.ack_wait, SHORTEST_WAIT)

    def _in_order(self) -> Iterator[int]:
        return chain(self.state.pending, *self.flying, self.fresh)

    def front(self) -> tuple[int, int] | None:
        """Stream and consumer sequence of the first delivery that has not been acknowledged."""
        for batch in (self.state.pending, *self.flying, self.fresh):
            for seq, (number, _) in batch.items():
                return seq, number
        return None

    def _first_tries(self) -> Iterator[tuple[int, int]]:
        """(sequence, expiry) of outstanding first deliveries, in ascending order of expiry in each batch."""
        wait = self.wait(1)
        planned, spent, acking = self.redeliveries, self.spent, self.acking
        for batch in (self.state.pending, *self.flying, self.fresh):
            for seq, (_, time) in batch.items():
                if not (seq in planned or seq in spent or seq in acking):
                    yield seq, time + wait

    def expire(self, now: int) -> None:
        """Queue what has waited long enough, or note it as exhausted."""
        if not self.tracked:
            return
        expired: list[int] = []
        for seq, at in self._first_tries():
            if at > now:
                break
            expired.append(seq)
        expired += self.redeliveries.take_due(now)
        for seq in sorted(expired):
            if self.is_outstanding(seq) and not self._exhausts(seq):
                self.redeliveries.enqueue(seq)

    def next_expiry(self) -> int:
        """When `expire` has something to do, at the earliest."""
        if not self.tracked or self.outstanding <= 0:
            return NEVER
        first = next(self._first_tries(), None)
        return min(self.redeliveries.next_due(NEVER), NEVER if first is None else first[1])
