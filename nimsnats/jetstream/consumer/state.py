"""What a consumer has delivered and what has been acknowledged: its part of the stream's replicated state.

Changed only by applying committed entries, so every replica holds the same. Deterministic: no clock, no set order. The
leader's faster, volatile view lives in `delivery.py`.

`pending` keeps insertion order, and new messages are delivered in ascending stream sequence, so its first key is always
the lowest one: the acknowledgement floor needs no search.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import repeat
from typing import Any, Final, cast

from nimsnats.jetstream import typed
from nimsnats.raft.machine import BadEntry

Delivered = tuple[int, int]
"""Consumer sequence of the first delivery, time of the newest (nanoseconds since the epoch)."""


def runs_of(seqs: Iterable[int]) -> list[int]:
    """Sequences as flat pairs (first, count) of contiguous runs, in the given order."""
    runs: list[int] = []
    expected = -1
    for seq in seqs:
        if seq == expected:
            runs[-1] += 1
        else:
            runs += (seq, 1)
        expected = seq + 1
    return runs


def expand(runs: Sequence[int]) -> list[int]:
    """The sequences of `runs_of`."""
    seqs: list[int] = []
    for index in range(0, len(runs), 2):
        seqs.extend(range(runs[index], runs[index] + runs[index + 1]))
    return seqs


def expand_known(runs: Sequence[int], known: Collection[int]) -> list[int]:
    """The sequences of `runs_of`, of runs that are longer than all the `known` ones (which are ascending) only those:
    a run costs no more than what there is. At least one, if there was one: that somebody has acknowledged something
    counts by itself."""
    seqs: list[int] = []
    for index in range(0, len(runs), 2):
        first, count = runs[index], runs[index + 1]
        if count <= len(known):
            seqs.extend(range(first, first + count))
        else:
            seqs.extend(seq for seq in known if first <= seq < first + count)
    return seqs or list(runs[:1])


def delivery_runs(fresh: dict[int, Delivered]) -> list[int]:
    """New deliveries as flat (stream sequence, consumer sequence, time, count), both sequences counting up in a run."""
    runs: list[int] = []
    next_seq = next_number = last_time = -1
    for seq, (number, time) in fresh.items():
        if seq == next_seq and number == next_number and time == last_time:
            runs[-1] += 1
        else:
            runs += (seq, number, time, 1)
        next_seq, next_number, last_time = seq + 1, number + 1, time
    return runs


def expand_deliveries(runs: Sequence[int], live: Callable[[int, int], Iterable[int]]) -> dict[int, Delivered]:
    """The deliveries of `delivery_runs`, those of messages that are there: `live` gives the sequences that are, of so
    many from one on."""
    fresh: dict[int, Delivered] = {}
    for index in range(0, len(runs), 4):
        first, number, time, count = runs[index : index + 4]
        fresh.update((seq, (number + seq - first, time)) for seq in live(first, count))
    return fresh


class ConsumerState:
    """Positions, unacknowledged messages and delivery counts of one consumer."""

    __slots__ = (
        "_front",
        "delivered_number",
        "delivered_seq",
        "exhausted",
        "floor_number",
        "floor_seq",
        "initial",
        "last_acked",
        "last_delivered",
        "paused_until",
        "pending",
        "redelivered",
        "resume",
    )

    def __init__(self, start: int) -> None:
        """`start` is the first stream sequence that may be delivered."""
        self.delivered_number = 0
        """Consumer sequence of the last delivery."""
        self.delivered_seq = start - 1
        self.floor_number = 0
        self.floor_seq = start - 1
        self.pending: dict[int, Delivered] = {}
        self.redelivered: dict[int, int] = {}
        """How often a message has been delivered, for those that were delivered more than once."""
        self.exhausted: set[int] = set()
        """Messages still in `pending` that reached max_deliver: never delivered again, but a late ack counts."""
        self.initial: list[int] = []
        """For last_per_subject: what to deliver first, ascending; then everything after `resume`."""
        self.resume = 0
        self.last_delivered = 0
        self.last_acked = 0
        self.paused_until = 0
        self._front: int = 0

    def deliver(self, last_number: int, last_seq: int, fresh: dict[int, Delivered], time: int) -> None:
        """Take over new deliveries, all live and in ascending order, and the new positions."""
        if fresh:
            late = next(iter(fresh)) <= self.delivered_seq
            self.pending.update(fresh)
            if late:  # an entry that was dropped and proposed again
                self.pending = dict(sorted(self.pending.items()))
            self._front, (number, _) = next(iter(self.pending.items()))
            if number - 1 > self.floor_number:  # what was delivered before it was lost meanwhile
                self.floor_number, self.floor_seq = number - 1, self._front - 1
        self.advance(last_number, last_seq, time)

    def advance(self, last_number: int, last_seq: int, time: int) -> None:
        """Move the delivered position only (acknowledgement policy none)."""
        self.delivered_number = max(self.delivered_number, last_number)
        self.delivered_seq = max(self.delivered_seq, last_seq)
        self.last_delivered = max(self.last_delivered, time)
        if self.initial and self.delivered_seq >= self.initial[-1]:
            self.initial = []

    def floor_to_delivered(self) -> None:
        """For acknowledgement policy none: delivered is acknowledged."""
        self.floor_number, self.floor_seq = self.delivered_number, self.delivered_seq

    def redeliver(self, seq: int, deliveries: int, time: int) -> None:
        """Another attempt; the record keeps the consumer sequence of the first one."""
        before = self.pending.get(seq)
        if before is not None:
            self.pending[seq] = (before[0], time)
            self.redelivered[seq] = deliveries

    def touch(self, seq: int, time: int) -> None:
        """Restart the acknowledgement wait from `time` (work in progress, delayed negative acknowledgement)."""
        before = self.pending.get(seq)
        if before is not None:
            self.pending[seq] = (before[0], time)

    def exhaust(self, seqs: Sequence[int], deliveries: int) -> None:
        """These will not be attempted again."""
        for seq in seqs:
            if seq in self.pending:
                self.exhausted.add(seq)
                self.redelivered[seq] = deliveries

    def ack(self, seqs: Sequence[int], time: int) -> list[int]:
        """Acknowledge single messages; what was pending of them is returned."""
        pending = self.pending
        known = [seq for seq in seqs if seq in pending]
        deque(map(cast("Callable[..., Any]", pending.pop), known, repeat(None)), maxlen=0)
        if self.redelivered:
            for seq in known:
                self.redelivered.pop(seq, None)
                self.exhausted.discard(seq)
        self.last_acked = max(self.last_acked, time)
        self._move_floor()
        return known

    def ack_all(self, seq: int, number: int, time: int) -> list[int]:
        """Acknowledge everything up to a sequence; what was pending of it is returned."""
        if seq <= self.floor_seq:
            return []
        done: list[int] = []
        for candidate in self.pending:
            if candidate > seq:
                break
            done.append(candidate)
        self.ack(done, time)
        self.floor_number = max(self.floor_number, min(number, self.delivered_number))
        self.floor_seq = max(self.floor_seq, min(seq, self.delivered_seq))
        return done

    def forget(self, seqs: Iterable[int]) -> dict[int, Delivered]:
        """The stream lost these messages; what was pending of them is returned."""
        gone = {seq: self.pending[seq] for seq in seqs if seq in self.pending}
        for seq in gone:
            del self.pending[seq]
            self.redelivered.pop(seq, None)
            self.exhausted.discard(seq)
        if gone:
            self._move_floor()
        return gone

    def purge(self, first_seq: int, live: Callable[[int], bool]) -> None:
        """The stream lost many messages and now starts at `first_seq`."""
        self.delivered_seq = max(self.delivered_seq, first_seq - 1)
        if self.floor_seq < first_seq - 1:
            below = [number for seq, (number, _) in self.pending.items() if seq < first_seq]
            self.floor_seq = first_seq - 1
            self.floor_number = max(below, default=self.floor_number)
        self.forget([seq for seq in self.pending if not live(seq)])
        if not self.pending:
            self.floor_to_delivered()

    def reset(self, start: int) -> None:
        """Begin again at `start` with consumer sequence 1."""
        paused = self.paused_until
        self.__init__(start)
        self.paused_until = paused

    def done(self, seq: int) -> bool:
        """Whether the consumer needs this message no more (as far as it matches its filters)."""
        return seq <= self.floor_seq or (seq <= self.delivered_seq and seq not in self.pending)

    def _move_floor(self) -> None:
        if not self.pending:
            self._front = 0
            self.floor_to_delivered()
        elif self._front not in self.pending:
            self._front, (number, _) = next(iter(self.pending.items()))
            self.floor_number = max(self.floor_number, number - 1)
            self.floor_seq = max(self.floor_seq, self._front - 1)

    def snapshot(self) -> list[Any]:
        """Everything, in msgpack's types."""
        pending: list[int] = []
        for seq, (number, time) in self.pending.items():
            pending += (seq, number, time)
        return [
            [self.delivered_number, self.delivered_seq, self.floor_number, self.floor_seq],
            [self.last_delivered, self.last_acked, self.paused_until, self.resume],
            pending,
            [part for pair in self.redelivered.items() for part in pair],
            sorted(self.exhausted),
            runs_of(seq for seq in self.initial if seq > self.delivered_seq),
        ]

    @classmethod
    def restored(cls, snapshot: Any) -> ConsumerState:
        """The state that `snapshot` described. Raises BadEntry when this describes none."""
        state = cls(1)
        positions, marks, pending, redelivered, exhausted, initial = cast(
            "list[list[int]]", typed.row(snapshot, _PARTS, "the state")
        )
        if len(pending) % 3 or len(redelivered) % 2 or len(initial) % 2 or sum(initial[1::2]) > _MOST_INITIAL:
            raise BadEntry("the state has other parts than it can have")
        state.delivered_number, state.delivered_seq, state.floor_number, state.floor_seq = typed.row(
            positions, (typed.natural, typed.position) * 2, "the positions"
        )
        state.last_delivered, state.last_acked, state.paused_until, state.resume = typed.row(
            marks, (typed.integer,) * 4, "the marks"
        )
        for index in range(0, len(pending), 3):
            state.pending[pending[index]] = (pending[index + 1], pending[index + 2])
        state.redelivered = dict(zip(redelivered[::2], redelivered[1::2], strict=True))
        state.exhausted = set(exhausted)
        state.initial = expand(initial)
        state._front = next(iter(state.pending), 0)
        return state


_PARTS: Final = (typed.integers, typed.integers, *(typed.naturals,) * 4)
_MOST_INITIAL: Final = 1 << 24
"""Messages that a last-per-subject consumer has yet to deliver at first."""
