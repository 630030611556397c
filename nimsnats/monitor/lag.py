"""How late the event loop runs its timers: the one number that says the process is short of processor time."""

from __future__ import annotations

import asyncio
from typing import Final

from nimsnats.monitor.histogram import Histogram
from nimsnats.runtime import Runtime

_PERIOD: Final = 0.5
_BOUNDS: Final = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LagMeter:
    """Sets a timer again and again and notes in `seconds` how much later than asked it fires."""

    def __init__(self, runtime: Runtime) -> None:
        self.seconds = Histogram(_BOUNDS)
        self._runtime = runtime
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0

    def start(self) -> None:
        """Begin to measure. Not on the loop's own clock: uvloop's counts milliseconds only."""
        self._due = self._runtime.boot_time_ns() + round(_PERIOD * 1e9)
        self._timer = self._runtime.call_later(_PERIOD, self._fired)

    def stop(self) -> None:
        """Cancel the timer. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fired(self) -> None:
        late = max(0, self._runtime.boot_time_ns() - self._due) / 1e9
        self.start()
        self.seconds.observe(late)
