"""Requests that come over routes wait here for their turn, so that a flood of them keeps nothing else waiting.

Owns the queue of one node: clients of this node wait by not being read from, but a route carries everybody's messages
and goes on. When as many wait as may, all of them are dropped, as nats-server does with its queue of routed requests:
who asked has to ask again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nimsnats.runtime import Runtime
    from nimsnats.slices import Slices

MOST: Final = 10_000
"""Requests that may wait (nats-server's limit)."""
MOST_BYTES: Final = 256 * 1024 * 1024
"""Bytes of their bodies, which nats-server does not limit."""
_QUIET: Final = 1.0
"""Seconds between two warnings, as in nats-server."""


class RequestQueue:
    """The routed requests of one node, worked off in slices in the order in which they came."""

    __slots__ = ("_due", "_log", "_runtime", "_size", "_slices", "_told", "_waiting", "_warned", "dropped")

    def __init__(self, runtime: Runtime, slices: Slices, log: logging.Logger, told: Callable[[int], None]) -> None:
        """`told` is called with how many requests have been dropped."""
        self.dropped = 0
        self._runtime = runtime
        self._slices = slices
        self._log = log
        self._told = told
        self._waiting: deque[tuple[int, Callable[..., object], tuple[object, ...]]] = deque()
        self._size = 0
        """Bytes that wait."""
        self._due = False
        self._warned = float("-inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, size: int, work: Callable[..., object], *request: object) -> None:
        """Call `work` with `request`, of so many bytes, when those before it have been worked off. What it raises ends
        at the fence."""
        waiting = self._waiting
        waiting.append((size, work, request))
        self._size += size
        if not self._due:
            self._due = True
            self._runtime.call_soon(self._go_on)
        if len(waiting) >= MOST or self._size >= MOST_BYTES:
            self._overflow()

    def close(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        self._size = 0

    def _go_on(self) -> None:
        waiting, slices, fence = self._waiting, self._slices, self._runtime.fence
        end = slices.end()
        while waiting:
            size, work, request = waiting.popleft()
            self._size -= size
            fence.run(work, *request)
            if waiting and slices.over(end):
                slices.later(self._go_on)
                return
        self._due = False

    def _overflow(self) -> None:
        count = len(self._waiting)
        self.close()
        self.dropped += count
        now = self._runtime.monotonic()
        if now - self._warned >= _QUIET:
            self._warned = now
            self._log.warning("JetStream API queue limit reached, dropping %d requests", count)
        self._runtime.fence.run(self._told, count)
