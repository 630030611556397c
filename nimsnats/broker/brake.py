"""Slowing who publishes too fast: a queue that has much to do holds the clients that fill it, for a moment each.

Owns `Brake`, one a queue. A client that is held is not read from, so that what it has sent waits in its socket and in
itself instead of being refused; others are served meanwhile. No hold lasts longer than `HOLD`: then the client is read
from once more, so that its PINGs are answered, and held again if it still publishes. A queue that does not move for
`PATIENCE` holds nobody: what it has no room for is refused, and clients of other queues are not kept waiting for it.

Routes are never held, because they carry everybody's messages: nodes tell each other instead which queue is full
(`route_brake`), and each holds its own clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

    from nimsnats.broker.connection import Connection
    from nimsnats.broker.stats import BrokerStats
    from nimsnats.runtime import Runtime

HOLD: Final = 1.0
"""Seconds that a client is held at most before it is read from again."""
PATIENCE: Final = 2.0
"""Seconds without movement after which a queue holds nobody."""
_TOGETHER: Final = 4
"""Clients that read on together when there is room again: each may bring a whole read."""


class Brake:
    """The hold of one queue on its publishers. `tell` is called with True, again and again, while publishers at other
    nodes fill the queue, and with False when it has room again."""

    __slots__ = ("_held", "_runtime", "_since", "_stats", "_tell", "_timer", "_told")

    def __init__(self, runtime: Runtime, stats: BrokerStats, tell: Callable[[bool], None] | None = None) -> None:
        self._runtime = runtime
        self._stats = stats
        self._tell = tell
        self._told = False
        self._held: dict[Connection, float] = {}
        """Until when each is held at most, the longest held first."""
        self._since: float | None = None
        """When the queue moved last, or was found full; None while it has room."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, publisher: Connection | None) -> None:
        """The queue is over its mark, and `publisher` (None: somebody elsewhere) has just put something into it."""
        now = self._runtime.monotonic()
        if self._since is None:
            self._since = now
        elif now - self._since > PATIENCE:
            return
        if publisher is None:
            if self._tell is not None:
                self._told = True
                self._tell(True)
        elif publisher.STALLS and publisher not in self._held and not publisher.closed:
            self._held[publisher] = now + HOLD
            publisher.held_by(self)
            self._stats.slowed += 1
            self._stats.slowed_total += 1
            self._arm()

    def moved(self, *, room: bool) -> None:
        """Something has left the queue; `room` says whether it is under its lower mark now."""
        if self._since is None:
            return
        self._since = self._runtime.monotonic()
        if not room:
            return
        for publisher in list(self._held)[:_TOGETHER]:
            self._free(publisher)
        if not self._held:
            self._since = None
            self._tell_room()

    def release(self) -> None:
        """The queue is empty or gone: nobody is held any more."""
        for publisher in list(self._held):
            self._free(publisher)
        self._since = None
        self._tell_room()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def forget(self, publisher: Connection) -> None:
        """A held connection is closed."""
        until = self._held.pop(publisher)
        self._stats.slowed -= 1
        self._stats.slowed_seconds += max(0.0, self._runtime.monotonic() - until + HOLD)

    def _tell_room(self) -> None:
        if self._told and self._tell is not None:
            self._told = False
            self._tell(False)

    def _free(self, publisher: Connection) -> None:
        self.forget(publisher)
        publisher.freed_by(self)

    def _arm(self) -> None:
        if self._timer is None and self._held:
            until = next(iter(self._held.values()))
            self._timer = self._runtime.call_later(max(0.0, until - self._runtime.monotonic()), self._expire)

    def _expire(self) -> None:
        """Let those read on who have been held for long."""
        self._timer = None
        now = self._runtime.monotonic()
        for publisher in [publisher for publisher, until in self._held.items() if until <= now]:
            self._free(publisher)
        self._arm()
