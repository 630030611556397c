"""When messages of a stream run out: per-message TTLs, and which messages leave no marker behind.

Owns the deadlines by sequence. It reads no clock and removes nothing: `stream.py` asks what is due at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.clock import SECOND, parse_duration

NEVER: Final = -1


def parse_ttl(text: bytes) -> int:
    """Nanoseconds of a `Nats-TTL` value (seconds, a Go duration, or `never` = -1). Raises ApiError 10165."""
    if text == b"never":
        return NEVER
    try:
        ttl = int(text) * SECOND if text.isdigit() else parse_duration(text.decode("utf-8", "replace"))
    except ValueError:
        raise errors.MESSAGE_TTL_INVALID() from None
    if ttl < SECOND:
        raise errors.MESSAGE_TTL_INVALID()
    return ttl


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
        """Note the TTL of a message stored at `now`."""
        if ttl == NEVER:
            self.never.add(seq)
            return
        self.deadlines[seq] = now + ttl
        heappush(self._heap, (now + ttl, seq))

    def next_at(self) -> int:
        """The next deadline, 0 when there is none. It may belong to a message that is gone."""
        return self._heap[0][0] if self._heap else 0

    def due(self, now: int) -> list[int]:
        """Sequences whose deadline has come, soonest first, without forgetting them."""
        return sorted(seq for deadline, seq in self._heap if deadline <= now) if self._due(now) else []

    def _due(self, now: int) -> bool:
        return bool(self._heap) and self._heap[0][0] <= now

    def take_due(self, now: int) -> list[int]:
        """Sequences whose deadline has come, and forget them."""
        taken: list[int] = []
        while self._due(now):
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
