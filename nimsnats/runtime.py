"""Everything nondeterministic that a node is allowed to touch, in one value that is handed in from outside.

Owns: the wall clock, the random source and the event loop's timers. It never touches the network or the disk: those
have interfaces of their own (listeners in `broker`, `storage`). Production code builds `Runtime.real()`; the simulator
builds one whose loop runs on virtual time and whose random source has a seed. No other module reads a clock or draws
a random number.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from nimsnats.fence import Fence


def _boot_time_ns() -> int:
    """CLOCK_BOOTTIME where there is one (Linux): unlike the loop's clock it goes on while the machine is suspended."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class StartError(Exception):
    """The node cannot start: a port in use, a data directory that it may not touch. The message is one clear line.

    Base of every room's own start-up errors; the command line prints it without a traceback and exits with 1.
    """


@dataclass(slots=True)
class Runtime:
    """Clock, randomness and timers of one node.

    `time_ns` is wall-clock time in nanoseconds since the epoch (what messages are stamped with). Durations are measured
    with `monotonic` (seconds), which is the loop's own clock so that timers and measurements agree. `boot_time_ns` is
    for leases alone: nanoseconds that go on while the machine is suspended and never jump when the wall clock is set.
    `fence` is where errors of ours end.
    """

    time_ns: Callable[[], int]
    random: random.Random
    loop: asyncio.AbstractEventLoop
    tasks: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    boot_time_ns: Callable[[], int] = _boot_time_ns
    fence: Fence = field(default_factory=Fence)

    @classmethod
    def real(cls) -> Runtime:
        """The runtime of production: system clock, system entropy, the running loop."""
        return cls(time.time_ns, random.SystemRandom(), asyncio.get_running_loop())

    def monotonic(self) -> float:
        """Seconds on the loop's clock."""
        return self.loop.time()

    def call_soon(self, callback: Callable[..., object], *args: object) -> asyncio.Handle:
        """Run `callback` in this loop's next turn."""
        return self.loop.call_soon(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Run `callback` after `delay` seconds."""
        return self.loop.call_later(delay, callback, *args)

    async def sleep(self, delay: float) -> None:
        """Wait `delay` seconds on this runtime's timers."""
        done = asyncio.Event()
        timer = self.call_later(delay, done.set)
        try:
            await done.wait()
        finally:
            timer.cancel()

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start an owned task; the caller keeps it, cancels it and awaits it in its own shutdown."""
        task = self.loop.create_task(coro, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def tend(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """`spawn` for work whose outcome nobody waits for: what it raises ends at the fence, where it is seen."""
        task = self.spawn(self._fenced(coro), name)
        task.add_done_callback(lambda _: coro.close())  # of a task that was cancelled before it could begin
        return task

    async def _fenced(self, coro: Coroutine[Any, Any, None]) -> None:
        try:
            await coro
        except Exception as error:
            self.fence.caught(f"task {coro.__qualname__}", error)
