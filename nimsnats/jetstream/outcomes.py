"""What became of the batches of a log, told by the batches behind them: so that a log with a hole is applied as it was.

Applying a batch decides which of its messages are stored and under which sequences, and that depends on everything
before. When damage takes a batch of a single copy, nobody knows how many of its messages had been refused (duplicates,
failed expectations), and those behind would be decided anew without what it held. So every batch of a single copy says
what became of the few that were applied before it was proposed.

Owns the form of these notes, and behind a loss what is known and what is guessed. Messages that were stored by guess
give way when a later note shows that the guess was wrong: none is ever read under a sequence that was acknowledged for
another one, unless the notes on it are lost, too (which the log then says).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from nimsnats.jetstream import typed
from nimsnats.jetstream.batch import MAX_MESSAGES
from nimsnats.jetstream.consumer.state import expand, runs_of
from nimsnats.jetstream.packing import pack
from nimsnats.raft.machine import BadEntry

if TYPE_CHECKING:
    from nimsnats.jetstream.store import MessageStore

_TOLD_PARTS: Final = (typed.natural,) * 3
_TOLD: Final = 3
"""Batches that the next one tells of. Two are under way at a time, so each is told of by several."""


@dataclass(slots=True, frozen=True)
class Placement:
    """Which sequences an applied batch was given: `stored` of them from `first` on, for all but the positions in
    `refused`."""

    first: int
    stored: int
    refused: frozenset[int]


Told = tuple[int, Placement]
"""A batch by its log index, and what became of it."""


def read_told(told: bytes) -> list[Told]:
    """What a batch says about others. Raises BadEntry."""
    found: list[Told] = []
    batches = typed.opened(told)
    if type(batches) is not list:
        raise BadEntry("what is told is not a list")
    for each in cast("list[Any]", batches):
        index, first, stored, *refused = typed.row(each, _TOLD_PARTS, "what is told", (typed.naturals,))
        runs: list[int] = refused[0] if refused else []
        if len(runs) % 2 or sum(runs[1::2]) > MAX_MESSAGES or stored > MAX_MESSAGES:
            raise BadEntry("what is told is of more messages than a batch can have")
        found.append((index, Placement(first, stored, frozenset(expand(runs)))))
    return found


class Outcomes:
    """Of one stream; `store` holds its messages."""

    def __init__(self, store: MessageStore) -> None:
        self._store = store
        self._recent: deque[list[Any]] = deque(maxlen=_TOLD)
        self._refused_at = self._told_to = 0
        """Log index of the newest batch with refusals, and up to which index everything is told."""
        self._known: dict[int, Placement] = {}
        """By log index; empty unless entries were lost."""
        self._sure = -1
        """Behind a loss: messages up to this sequence have their place. -1 while nothing was lost."""
        self._guessed = 0
        """Messages of the batches since, lost or not: at most so many were given a sequence."""
        self.shifted = False
        """Whether messages are stored that may have had other sequences."""

    # While batches are applied

    def note(self, index: int, first: int, stored: int, refused: Iterable[int]) -> None:
        """The batch at a log index was applied."""
        runs = runs_of(refused)
        self._recent.append([index, first, stored, runs] if runs else [index, first, stored])
        if runs:
            self._refused_at = index

    @property
    def due(self) -> bool:
        """Whether something was refused that no entry tells yet."""
        return self._refused_at > self._told_to

    def tell(self) -> bytes:
        """What the next batch says about those before it; empty when there were none."""
        if not self._recent:
            return b""
        self._told_to = self._recent[-1][0]
        return pack(list(self._recent))

    def heard(self, told: Iterable[Told]) -> None:
        """An entry of the log that tells this was applied again."""
        self._told_to = max([self._told_to, *(index for index, _ in told)])

    # Behind a loss

    def learn(self, told: Iterable[Told]) -> None:
        """Take in what a batch behind the loss says."""
        self._known.update(told)

    def begin(self) -> None:
        """Entries are lost from here on."""
        if self._sure < 0:
            self._sure = self._store.last_seq

    def place(self, index: int) -> tuple[Placement | None, list[int]]:
        """What became of a batch when it was first applied, if that matters and is known. Then it is its turn in the
        store, too: messages that were stored by guess have given way, and are returned, ascending."""
        known = self._known.get(index)
        if known is None or known.first <= self._sure:
            return None, []
        gone: list[int] = []
        if known.first != self._store.last_seq + 1:
            gone = self._store.lose_tail(self._sure, known.first - 1, self._guessed)
        return known, gone

    def passed(self, messages: int, *, known: bool, kept: bool) -> None:
        """A batch of so many messages has its sequences now: those that it had (`known`) or some by guess. `kept`: it
        is not lost itself."""
        if known:
            self._sure, self._guessed, self.shifted = self._store.last_seq, 0, False
        elif self._sure >= 0:
            self.shifted = self.shifted or (kept and self._guessed > 0)
            self._guessed += messages

    def forget(self) -> None:
        """Everything that was lost is behind us."""
        self._known.clear()
        self._sure, self._guessed, self.shifted = -1, 0, False
