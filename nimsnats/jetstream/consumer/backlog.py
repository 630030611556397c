"""What a consumer has yet to be given of what is stored: how many messages, and which one is next.

Owns the count, which is kept up to date while messages come, go and are delivered, and what is known of the way ahead.
Lives on the leader only, but what it finds is the same everywhere. What takes long is done a part at a time: others
have their turn between two parts.

The count holds for matching messages from the next one to be delivered up to `_counted_to`. What comes above is counted
when somebody asks; what is removed below has to be told.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

from nimsnats.jetstream.source import Filters, MessageSource
from nimsnats.protocol.subject import any_matcher

LOOKS: Final = 2048
"""Messages that are looked at before others have their turn, about."""
_FEW: Final = 64
"""So many messages are walked without another thought."""
_FAR: Final = 16 * LOOKS
"""Sequences that are walked before a shorter way is looked for again."""


class Backlog:
    """See the module. `next_seq` and `start` are sequences from which on nothing has been delivered."""

    __slots__ = (
        "_ahead",
        "_ahead_from",
        "_ahead_to",
        "_counted_to",
        "_matches",
        "_narrow",
        "_number",
        "_source",
        "_walk_to",
        "caught_up",
        "filters",
        "hears",
        "looks",
        "reached",
    )

    def __init__(self, source: MessageSource, filters: Filters) -> None:
        self._source = source
        self.hears = False
        """Whether somebody tells it which messages the stream loses: without that, a count holds for one moment."""
        self.looks = 0
        """How many messages and subjects have been looked at so far."""
        self.reached = 0
        """Where to go on when `find` has not come to an end."""
        self.configure(filters)

    def configure(self, filters: Filters) -> None:
        """Take over other filters."""
        self.filters = filters
        self._matches = any_matcher(filters)
        self._narrow = False
        """Whether it is known that the filters do not select all that the stream can hold."""
        self.caught_up = False
        """Whether all that is stored and matches has been seen; always False without filters, where it is no secret."""
        self._ahead: Sequence[int] = ()
        """Sequences that match, all from `_ahead_from` up to `_ahead_to`; of some the message may be gone."""
        self._ahead_from = self._ahead_to = 0
        self._walk_to = 0
        self._number = -1
        self._counted_to = 0

    def forget(self) -> None:
        """What was known of the count is true no more."""
        self._number = -1

    # --- how many

    def count(self, next_seq: int, looks: int = LOOKS) -> bool:
        """Go on with counting. False when others should have their turn before it is done."""
        source = self._source
        if self.caught_up:
            return True
        if self._number < 0:
            self._number, self._counted_to = 0, next_seq - 1
        last = source.last_seq
        if self._counted_to >= last:
            return True
        start = max(self._counted_to + 1, next_seq)
        number, upto = source.count(self._narrowed(), start, looks)
        self.looks += min(upto - start, looks)
        self._number += number
        self._counted_to = max(upto - 1, self._counted_to)
        return self._counted_to >= last

    def remaining(self, next_seq: int) -> int:
        """How many match, counted to the end."""
        if self.caught_up:
            return 0
        while not self.count(next_seq):
            pass
        number = self._number
        if not self.hears:
            self._number = -1
        return number

    @property
    def counting(self) -> bool:
        """Whether messages are counted that had better not be removed without a word."""
        return self._number > 0 and not self.caught_up

    def sent(self, count: int) -> None:
        """The first of them were delivered."""
        if self._number >= count:
            self._number -= count

    def lost(self, seq: int, struck: Mapping[int, bytes]) -> None:
        """A message that was not delivered is gone; `struck` tells its subject."""
        if self.caught_up or self._number < 0 or seq > self._counted_to:
            return
        if not self.filters:
            self._number -= 1
        elif (subject := struck.get(seq)) is None:
            self._number = -1
        elif self._matches(subject):
            self._number -= 1

    def _narrowed(self) -> Filters:
        """The filters; none when they select everything."""
        if self.filters and not self._narrow:
            if self._source.covers(self.filters):
                return ()
            self._narrow = True
        return self.filters

    # --- which

    def arrived(self, next_seq: int) -> None:
        """The consumer was caught up, and from `next_seq` on there may be something to be found."""
        self.caught_up = False
        self._number, self._counted_to = 0, next_seq - 1

    def catch_up(self) -> None:
        """Nothing more matches."""
        self.caught_up = bool(self.filters)
        self._number, self._counted_to = 0, self._source.last_seq
        self._ahead, self._ahead_to = (), 0

    def find(self, start: int, looks: int) -> int:
        """The lowest live sequence from `start` on that matches; 0 when there is none. -1 when others should have their
        turn before it is found: then `reached` is where to go on."""
        source = self._source
        filters, last = self._narrowed(), source.last_seq
        if filters:
            if self._ahead_from <= start <= self._ahead_to:
                found = self._listed(start)
                if found:
                    return found
                start = self._ahead_to + 1
            if start > last:
                return 0
            if last - start >= _FEW and start > self._walk_to:
                plan = source.upcoming(filters, start)
                if plan is not None:
                    self._ahead, self._ahead_to = plan
                    self._ahead_from = start
                    self.looks += len(self._ahead)
                    found = self._listed(start)
                    self.reached = self._ahead_to + 1
                    return found or (0 if self._ahead_to >= last else -1)
                self._walk_to = start + _FAR
        found, self.reached = source.seek(filters, start, looks)
        self.looks += max(min((found or self.reached) - start, looks), 0)
        if found:
            return found
        return 0 if self.reached > last else -1

    def _listed(self, start: int) -> int:
        """The first of those ahead that is still there, 0 when none is."""
        ahead, live = self._ahead, self._source.live
        at = bisect_left(ahead, start)
        while at < len(ahead):
            if live(ahead[at]):
                return ahead[at]
            at += 1
        return 0
