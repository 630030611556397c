"""Many coarse deadlines with one loop timer: a key a connection, none of them needs a timer object of its own.

An error of one deadline does not keep the others from firing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio

    from nimsnats.runtime import Runtime

K = TypeVar("K", bound=Hashable)

_GRAIN: Final = 0.02
"""Seconds between two slots; a deadline fires at most that much late."""
_AGAIN: Final = 1.0
"""Seconds until a deadline that has made an error fires once more."""


class Wheel(Generic[K]):
    """Calls `fire(key)` when a key's deadline has passed. A key has one deadline; setting it anew moves it."""

    def __init__(self, runtime: Runtime, fire: Callable[[K], None]) -> None:
        self._runtime = runtime
        self._fire = fire
        self._slot_of: dict[K, int] = {}
        self._slots: dict[int, dict[K, None]] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0

    def set(self, key: K, delay: float) -> None:
        """Fire for `key` in `delay` seconds."""
        self.cancel(key)
        slot = int((self._runtime.monotonic() + delay) / _GRAIN) + 1
        keys = self._slots.get(slot)
        if keys is None:
            keys = self._slots[slot] = {}
            heappush(self._order, slot)
        keys[key] = None
        self._slot_of[key] = slot
        self._arm()

    def cancel(self, key: K) -> None:
        """Forget `key`; nothing happens when it has no deadline."""
        slot = self._slot_of.pop(key, None)
        if slot is not None:
            del self._slots[slot][key]

    def waiting(self) -> list[K]:
        """All that have a deadline."""
        return list(self._slot_of)

    def close(self) -> None:
        """Forget everything and stop the timer."""
        self._slot_of.clear()
        self._slots.clear()
        self._order.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if not self._order or (self._timer is not None and self._armed <= self._order[0]):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed = self._order[0]
        delay = self._armed * _GRAIN - self._runtime.monotonic()
        self._timer = self._runtime.call_later(max(0.0, delay), self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = int(self._runtime.monotonic() / _GRAIN + 0.5)
        while self._order and self._order[0] <= now:
            keys = self._slots.pop(heappop(self._order))
            for key in keys:
                self._slot_of.pop(key, None)
            for key in keys:
                try:
                    self._fire(key)
                except Exception as error:
                    self._runtime.fence.caught(self._fire, error)
                    self.set(key, _AGAIN)
        self._arm()
