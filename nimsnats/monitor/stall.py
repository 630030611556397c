"""Says where an event loop is stuck, while it is: a thread looks at the loop's stack when it has not turned for long.

Owns: the loop's beat, the thread, and the counts. It never touches what it watches. A loop that is stuck inside C code
that keeps the interpreter lock cannot be seen by any Python thread: that is what the service manager's watchdog and
`faulthandler` are for.

Both the beat and the look happen a few times a second at most, whatever the load.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from types import FrameType
from typing import Final

from nimsnats.log import Repeats
from nimsnats.runtime import Runtime

LIMIT: Final = 1.0
_LOOKS: Final = 4
"""Beats and looks within one limit."""
_FRAMES: Final = 12
"""Innermost frames that are logged, at most back to where the loop was started."""


class StallWatch:
    """Watches the loop of `runtime` from the thread that calls `start`, which is the loop's own.

    A loop that has not turned for `limit` seconds is reported with its stack, once a stall; the same place at most
    every ten seconds. `count` and `seconds` are the stalls since start and their length, for metrics.
    """

    def __init__(self, runtime: Runtime, limit: float = LIMIT, log: logging.Logger | None = None) -> None:
        self.count = 0
        self.seconds = 0.0
        self._runtime = runtime
        self._limit = limit
        self._period = limit / _LOOKS
        self._log = log or logging.getLogger("nimsnats")
        self._repeats = Repeats(self._now)
        self._beat = 0.0
        self._stuck_since = -1.0
        """The beat after which the loop got stuck, the latest time that it did."""
        self._was_told = False
        """Whether that stall was logged, and not held back as one of many."""
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._turn()
        self._thread = threading.Thread(
            target=self._look, args=(threading.get_ident(),), name="stall watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Idempotent."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _now(self) -> float:
        # not the loop's own time: uvloop's stands still while a callback runs
        return self._runtime.boot_time_ns() / 1e9

    def _turn(self) -> None:
        now, before = self._now(), self._beat
        self._beat = now
        if before == self._stuck_since:
            self.seconds += now - before
            if self._was_told:
                self._log.warning("Event loop runs again after %.1f s", now - before)
        self._timer = self._runtime.call_later(self._period, self._turn)

    def _look(self, loop_thread: int) -> None:
        """The thread's life."""
        before = self._now()
        while not self._stopped.wait(self._period):
            now, beat = self._now(), self._beat
            was_away = now - before > self._limit
            before = now
            if was_away:
                continue  # this thread stood still as well: the machine slept or had no time, the loop is not to blame
            if now - beat > self._limit and beat != self._stuck_since:
                self._stuck_since = beat
                self.count += 1
                frame = sys._current_frames().get(loop_thread)  # pyright: ignore[reportPrivateUsage]
                self._was_told = frame is not None and self._tell(now - beat, frame)

    def _tell(self, seconds: float, frame: FrameType) -> bool:
        stack = traceback.extract_stack(frame)
        turns = [at for at, entry in enumerate(stack) if entry.name == "run_until_complete"]
        stack = stack[turns[-1] + 1 if turns and turns[-1] + 1 < len(stack) else 0 :][-_FRAMES:]
        place = (stack[-1].filename, stack[-1].name)
        lines = "".join(traceback.format_list(stack)).rstrip()
        return self._repeats.log(
            self._log, logging.WARNING, place, "Event loop has been stuck for %.1f s, in:\n%s", seconds, lines
        )
