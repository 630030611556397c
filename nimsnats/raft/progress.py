"""What a leader knows of each member's log. Dissertation 3.3, 10.2 (pipelining); shaped like etcd's tracker.

Owns the per-member state only; `core` decides what to send.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum


class Flow(Enum):
    """How a member is being fed."""

    PROBE = "probe"
    """Its log's end is unknown: one message at a time until an answer tells."""
    REPLICATE = "replicate"
    """Its log matches: messages are sent ahead of their acknowledgements."""
    SNAPSHOT = "snapshot"
    """What it needs is no longer in the log."""


@dataclass(slots=True)
class Progress:
    """One member, as its leader sees it. Invariant: match < next."""

    match: int = 0
    """Highest index known to be durable there."""
    next: int = 1
    """Index of the next entry to send."""
    flow: Flow = Flow.PROBE
    probing: bool = False
    """In PROBE: a message is out and not answered."""
    reading: bool = False
    """Older entries are being read from disk for it."""
    active: bool = False
    """Heard from since the last quorum check."""
    sound: bool = False
    """Has answered a heartbeat since this was last taken back, and has lost nothing: it has a vote to give."""
    pending_snapshot: int = 0
    inflight: deque[tuple[int, int]] = field(default_factory=deque[tuple[int, int]])
    """(last index, bytes) of unacknowledged messages."""
    inflight_bytes: int = 0

    def acknowledged(self, index: int) -> bool:
        """It has everything up to `index`; returns whether that is news."""
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        news = index > self.match
        if news:
            self.match = index
        self.next = max(self.next, index + 1)
        return news

    def rejected(self, index: int, hint: int) -> bool:
        """It has no entry matching `index`; go back to `hint`. Returns whether that is to be believed (it may
        be old)."""
        if self.flow is Flow.REPLICATE:
            if index <= self.match:
                return False
            self.probe(self.match + 1)
            return True
        if self.next - 1 != index:
            return False
        self.next = max(min(index, hint + 1), self.match + 1)
        self.probing = False
        return True

    def probe(self, start: int) -> None:
        """Feel for the end of its log from `start`."""
        self.flow, self.next = Flow.PROBE, start
        self._forget()

    def replicate(self) -> None:
        """Its log is known to match up to `match`."""
        self.flow, self.next = Flow.REPLICATE, self.match + 1
        self._forget()

    def install(self, snapshot: int) -> None:
        """It is being given the snapshot at this index."""
        self.flow, self.pending_snapshot = Flow.SNAPSHOT, snapshot
        self._forget()

    def _forget(self) -> None:
        self.probing = self.reading = False
        self.inflight.clear()
        self.inflight_bytes = 0

    def sent(self, last: int, size: int) -> None:
        """Entries up to `last` are on their way."""
        if self.flow is Flow.REPLICATE:
            self.next = last + 1
            self.inflight.append((last, size))
            self.inflight_bytes += size
        else:
            self.probing = True

    def paused(self, max_messages: int, max_bytes: int) -> bool:
        """Whether nothing may be sent now."""
        if self.reading or self.flow is Flow.SNAPSHOT:
            return True
        if self.flow is Flow.PROBE:
            return self.probing
        return len(self.inflight) >= max_messages or self.inflight_bytes >= max_bytes
