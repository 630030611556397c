"""When messages of a stream run out: per-message TTLs, and which messages leave no marker behind.

Owns the deadlines by sequence. It reads no clock and removes nothing: `removal.py` asks what is due at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.clock import FARTHEST, SECOND, parse_duration, unbounded_duration
from nimsnats.jetstream.errors import ApiError

NEVER: Final = -1
_DIGITS: Final = 20
"""So many digits of seconds are beyond 64 bits of nanoseconds in any case."""


def parse_ttl(text: bytes) -> int:
    """Nanoseconds of a `Nats-TTL` value: seconds, a Go duration, `never` = -1, nothing = 0 for no TTL. Raises ApiError
    10165, also for more than 64 bits can hold, where nats-server lets seconds wrap around."""
    if not text:
        return 0
    if text.lower() == b"never":
        return NEVER
    try:
        ttl = _seconds(text) if text.isdigit() else parse_duration(text.decode("utf-8", "replace"))
    except ValueError:
        raise errors.MESSAGE_TTL_INVALID() from None
    if not SECOND <= ttl <= FARTHEST:
        raise errors.MESSAGE_TTL_INVALID()
    return ttl


def parse_early_ttl(text: bytes) -> int:
    """The same by the rules of batches whose values were not bounded (`Batch.rules` is 0): what was taken then is taken
    when the log is applied again, and lasts as long as 64 bits can say. Raises ApiError 10165."""
    if text == b"never":
        return NEVER
    try:
        ttl = int(text) * SECOND if text.isdigit() else unbounded_duration(text.decode("utf-8", "replace"))
    except ValueError:
        raise errors.MESSAGE_TTL_INVALID() from None
    if ttl < SECOND:
        raise errors.MESSAGE_TTL_INVALID()
    return min(ttl, FARTHEST)


def kept_ttl(text: bytes) -> int:
    """The same for a message that has been stored, by whatever rules, here or on another server. Raises ApiError 10165
    for what no rules allow."""
    try:
        return parse_ttl(text)
    except ApiError:
        return parse_early_ttl(text)


def _seconds(digits: bytes) -> int:
    digits = digits.lstrip(b"0")
    return int(digits or b"0") * SECOND if len(digits) < _DIGITS else FARTHEST + 1


class Expiry:
    """Deadlines of single messages. Entries of removed messages stay until `prune` or until they come due."""

    def __init__(self) -> None:
        self.deadlines: dict[int, int] = {}
        self.never: set[int] = set()
        """Messages that `max_age` does not touch."""
        self.silent: set[int] = set()
        """Messages that leave no delete marker when they expire (markers themselves, purged keys)."""
        self._heap: list[tuple[int, int]] = []

    def add(self, seq: int, ttl: int, now: int) -> None:
        """Note the TTL of a message stored at `now`: nanoseconds, NEVER, or 0 for none."""
        if not ttl:
            return
        if ttl == NEVER:
            self.never.add(seq)
            return
        deadline = min(now + ttl, FARTHEST)
        self.deadlines[seq] = deadline
        heappush(self._heap, (deadline, seq))

    def next_at(self) -> int:
        """The next deadline, 0 when there is none. It may belong to a message that is gone."""
        return self._heap[0][0] if self._heap else 0

    def due(self, now: int) -> list[int]:
        """Sequences whose deadline has come, soonest first, without forgetting them."""
        return sorted(seq for deadline, seq in self._heap if deadline <= now) if self._due(now) else []

    def _due(self, now: int) -> bool:
        return bool(self._heap) and self._heap[0][0] <= now

    def take_due(self, now: int, most: int) -> list[int]:
        """At most so many sequences whose deadline has come, soonest first, and forget them; none when there are no
        more."""
        taken: list[int] = []
        while len(taken) < most and self._due(now):
            _, seq = heappop(self._heap)
            if self.deadlines.pop(seq, None) is not None:
                taken.append(seq)
        return taken

    def prune(self, live: Callable[[int], bool]) -> None:
        """Forget messages that are gone."""
        self.deadlines = {seq: at for seq, at in self.deadlines.items() if live(seq)}
        self.never = set(filter(live, self.never))
        self.silent = set(filter(live, self.silent))
        self._heap = [(at, seq) for seq, at in self.deadlines.items()]
        heapify(self._heap)

    def stored(self) -> list[Any]:
        """A msgpack-able form."""
        return [list(self.deadlines.items()), sorted(self.never), sorted(self.silent)]

    def restore(self, stored: list[Any]) -> None:
        """Back from `stored`."""
        deadlines, never, silent = stored
        self.deadlines = dict(deadlines)
        self.never = set(never)
        self.silent = set(silent)
        self._heap = [(at, seq) for seq, at in self.deadlines.items()]
        heapify(self._heap)
