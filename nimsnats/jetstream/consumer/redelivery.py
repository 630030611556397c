"""When outstanding messages are to be tried again, and which of them are waiting to be.

Owns the explicit times (redeliveries, delayed negative acknowledgements, work in progress) and the queue of messages
whose time has come. First deliveries are not in here: they expire in the order of delivery, which `delivery.py` sees by
itself.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush


class Redeliveries:
    """See the module. Sequences are stream sequences, times nanoseconds."""

    __slots__ = ("_due", "_heap", "_queue", "_queued")

    def __init__(self) -> None:
        self._due: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []
        self._queue: deque[int] = deque()
        self._queued: set[int] = set()

    def __len__(self) -> int:
        return len(self._queued)

    @property
    def planned(self) -> bool:
        """Whether any message is in here, with a time or in the queue."""
        return bool(self._due or self._queued)

    def __contains__(self, seq: int) -> bool:
        """Whether the message is in here, with a time or in the queue."""
        return seq in self._due or seq in self._queued

    def head(self) -> int:
        """The message to try next, 0 when there is none."""
        queue, queued = self._queue, self._queued
        while queue:
            if queue[0] in queued:
                return queue[0]
            queue.popleft()
        return 0

    def pop(self) -> None:
        """Take the head out of the queue."""
        self._queued.discard(self._queue.popleft())

    def schedule(self, seq: int, at: int) -> None:
        """Try the message at this time; what was planned before is void."""
        self._queued.discard(seq)
        self._due[seq] = at
        heappush(self._heap, (at, seq))

    def enqueue(self, seq: int) -> None:
        """Try the message as soon as possible, after those that wait already."""
        self._due.pop(seq, None)
        if seq not in self._queued:
            self._queued.add(seq)
            self._queue.append(seq)

    def forget(self, seq: int) -> None:
        """The message needs no other try."""
        if self._queued:
            self._queued.discard(seq)
        if self._due:
            self._due.pop(seq, None)

    def take_due(self, now: int) -> list[int]:
        """Messages whose time has come; they are in here no more."""
        heap, due = self._heap, self._due
        ready: list[int] = []
        while heap and heap[0][0] <= now:
            at, seq = heappop(heap)
            if due.get(seq) == at:
                del due[seq]
                ready.append(seq)
        return ready

    def next_due(self, never: int) -> int:
        """The earliest explicit time, or `never`."""
        heap, due = self._heap, self._due
        while heap and due.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else never
