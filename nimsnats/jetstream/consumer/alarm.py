"""One timer for all consumers of a stream.

Owns who wants to be looked at when. A consumer that wants to be woken earlier than it said before just says so again;
what it said before is then ignored when its time comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from nimsnats.jetstream.consumer.delivery import NEVER
from nimsnats.runtime import Runtime

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer

FINEST: Final = 1_000_000
"""Nanoseconds between two looks at the same consumer, at least."""
_AGAIN: Final = 1_000_000_000
"""Nanoseconds until a consumer is looked at again whose look has made an error; the others do not wait for it."""


class Alarm:
    """See the module. `clock` tells nanoseconds, `find` the consumer of an id (None when it is gone)."""

    def __init__(self, runtime: Runtime, clock: Callable[[], int], find: Callable[[int], Consumer | None]) -> None:
        self._runtime = runtime
        self._clock = clock
        self._find = find
        self._heap: list[tuple[int, int]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._at = NEVER

    def wake(self, consumer: Consumer, at: int) -> None:
        """Have this consumer's `tick` called at a time, or earlier."""
        if at >= consumer.wake_at:
            return
        consumer.wake_at = at
        heappush(self._heap, (at, consumer.id))
        if at < self._at:
            self._arm(at)

    def stop(self) -> None:
        """Wake nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._at = None, NEVER
        self._heap.clear()

    def _arm(self, at: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = self._runtime.call_later(max(at - self._clock(), 0) / 1e9, self._fire)

    def _fire(self) -> None:
        self._timer, self._at = None, NEVER
        now = self._clock()
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, id = heappop(heap)
            consumer = self._find(id)
            if consumer is None or consumer.wake_at != at:
                continue
            consumer.wake_at = NEVER
            try:
                when = consumer.tick(now)
            except Exception as error:
                self._runtime.fence.caught(consumer.tick, error)
                when = now + _AGAIN
            if when != NEVER:
                self.wake(consumer, max(when, now + FINEST))
        if heap and heap[0][0] < self._at:
            self._arm(heap[0][0])
