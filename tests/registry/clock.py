"""A runtime whose clock stands still until a test moves it; timers run in order of their time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from nimsnats.runtime import Runtime


class ManualRuntime(Runtime):
    """Real loop, real I/O, but `time_ns`, `monotonic`, `boot_time_ns`, `call_later` and `sleep` on a manual clock."""

    def __init__(self) -> None:
        super().__init__(lambda: 1_700_000_000_000_000_000 + self._ns(), random.Random(7), asyncio.get_running_loop())
        self.boot_time_ns = lambda: 5_000_000_000 + self._ns()
        self.now = 0.0
        self.timers: list[_Timer] = []

    def _ns(self) -> int:
        return int(self.now * 1e9)

    def monotonic(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Any:
        timer = _Timer(self.now + delay, callback, args)
        self.timers.append(timer)
        return timer

    async def advance(self, seconds: float) -> None:
        """Let time pass: every timer on the way runs at its moment, and what it set off gets some turns of the loop."""
        await turns()
        until = self.now + seconds
        while due := [timer for timer in self.timers if timer.when <= until and not timer.cancelled()]:
            timer = min(due, key=lambda timer: timer.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback(*timer.args)
            await turns()
        self.now = until
        await turns()


class _Timer:
    def __init__(self, when: float, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        self.when, self.callback, self.args, self._cancelled = when, callback, args, False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled


async def turns(count: int = 20) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)
