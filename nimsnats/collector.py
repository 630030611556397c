"""Python's cyclic garbage collector, as a server needs it: it looks at what is new, and never at everything.

Owns the collector's thresholds, and what is frozen. A full collection visits every object: with a million subscriptions
it would stop the loop for a second, again each time that there are a quarter more. Nearly all objects of a server live
as long as what they stand for, and end by reference counts alone. So whenever a few ten thousand objects have become
old, these alone are looked at once more and then frozen (`gc.freeze`): no collection visits them again, and reference
counts still end them. Cycles are found before that; those that form among frozen objects are looked for once an hour,
as long as that is no more than a short pause.

A process does this for itself. Who embeds a server keeps the collector that Python has, and so does a simulator.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

    from nimsnats.runtime import Runtime

YOUNG: Final = 5_000
"""New objects from which on the youngest generation is looked at: less than a millisecond."""
MIDDLE: Final = 5
"""Collections of the youngest generation for one of the middle one."""
OLD: Final = 2
"""Collections of the middle generation from which on what they have left is looked at and frozen."""
_NEVER: Final = 1_000_000_000
"""Collections of the middle generation for a full one: those are done here."""
LOOK: Final = 0.1
"""Seconds between two looks at how much has become old."""
HOUR: Final = 3600.0
FEW: Final = 200_000
"""Frozen objects up to which all of them are looked at once an hour: tens of milliseconds."""


class Collector:
    """The collector of this process, from `start` to `stop`."""

    def __init__(self, runtime: Runtime) -> None:
        self.pauses = 0
        """Collections so far."""
        self.paused = 0.0
        """Seconds that they took together."""
        self.longest = 0.0
        """Seconds of the longest."""
        self.freezes = 0
        """How often what had become old was frozen."""
        self._runtime = runtime
        self._began = 0.0
        self._all_seen = 0.0
        self._before: tuple[int, int, int] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Take over; what there is now is frozen."""
        self._before = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, MIDDLE, _NEVER)
        gc.callbacks.append(self._measured)
        self._all_seen = self._runtime.monotonic()
        self._timer = self._runtime.call_later(LOOK, self._tick)

    def stop(self) -> None:
        """Leave the collector as it was found. Idempotent."""
        if self._before is None:
            return
        gc.callbacks.remove(self._measured)
        gc.set_threshold(*self._before)
        self._before = None
        if self._timer is not None:
            self._timer.cancel()
        gc.unfreeze()

    def look(self) -> None:
        """Look at what has become old, if it is enough, and freeze what is left of it."""
        if gc.get_count()[2] >= OLD:
            gc.collect()
            gc.freeze()
            self.freezes += 1

    def look_at_all(self) -> None:
        """Look at everything, if that is little."""
        if gc.get_freeze_count() <= FEW:
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    def _tick(self) -> None:
        self.look()
        now = self._runtime.monotonic()
        if now - self._all_seen >= HOUR:
            self._all_seen = now
            self.look_at_all()
        self._timer = self._runtime.call_later(LOOK, self._tick)

    def _measured(self, phase: str, info: dict[str, int]) -> None:
        del info
        if phase == "start":
            self._began = time.perf_counter()
            return
        took = time.perf_counter() - self._began
        self.pauses += 1
        self.paused += took
        self.longest = max(self.longest, took)
