"""An event loop on virtual time that runs several processes, each of which can be frozen or killed.

Owns time and the order of events. A process is known by the context that its callbacks run in, which asyncio hands
from task to task by itself: so a killed process runs nothing more, and a frozen one runs later what has come due.
There are no threads, no file descriptors and no waiting: when nobody can run, the clock jumps to the next timer.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, TypeVar

from nimsnats.fence import Fence

_T = TypeVar("_T")
_OWNER: Final[ContextVar[Process | None]] = ContextVar("owner", default=None)
_NUMBERS: Final = itertools.count()
_MOST_TURNS: Final = 20_000
"""Turns of the loop at one moment of virtual time: more is an endless loop."""


class Livelock(AssertionError):
    """Callbacks call each other without end while no time passes."""


class SimFence(Fence):
    """Nothing ends here: an error of a node is an error of the run."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self._loop = loop

    def caught(self, place: Callable[..., object] | str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": f"caught in {place}", "exception": error})


class Escaped(AssertionError):
    """An exception that nobody has caught, or that somebody had to log."""


class Process:
    """Everything that one process runs. `host` is where it lives on the network."""

    def __init__(self, loop: SimLoop, name: str, host: str) -> None:
        self.name = name
        self.host = host
        self.loop = loop
        self.dead = False
        self.frozen = False
        self.tasks: list[asyncio.Task[Any]] = []
        """All that were ever started: those of a killed process must not be closed, they would run their clean-ups."""
        self._held: list[asyncio.Handle] = []
        self.context = copy_context()
        self.context.run(_OWNER.set, self)

    def spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start a task of this process from outside."""
        return self.context.run(self.loop.create_task, work)

    def call(self, callback: Callable[..., object], *args: object) -> None:
        """Have this process run something now, or when it is thawed; a dead one never does."""
        if self.dead:
            return
        if self.frozen:
            self.hold(Step(callback, args, self.loop, self.context))
        else:
            self.context.run(callback, *args)

    def hold(self, handle: asyncio.Handle) -> None:
        """Keep a callback for later."""
        self._held.append(handle)

    def thaw(self) -> None:
        """Go on with what has come due meanwhile."""
        self.frozen = False
        held, self._held = self._held, []
        self.loop.ready.extend(held)

    def kill(self) -> None:
        """Run nothing more, ever."""
        self.dead = True
        self._held.clear()


def current() -> Process | None:
    """The process that is running now."""
    return _OWNER.get()


class Step(asyncio.Handle):
    """A callback and whose it is."""

    __slots__ = ("owner",)

    def __init__(self, callback: Any, args: Any, loop: Any, context: Context) -> None:
        super().__init__(callback, args, loop, context)
        self.owner: Process | None = context.get(_OWNER)


class Timer(asyncio.TimerHandle):
    """The same at a time."""

    __slots__ = ("owner",)

    def __init__(self, when: float, callback: Any, args: Any, loop: Any, context: Context) -> None:
        super().__init__(when, callback, args, loop, context)
        self.owner: Process | None = context.get(_OWNER)


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on where it is in memory."""

    _number: int

    def __new__(cls, *_: Any, **__: Any) -> SimTask:
        task: SimTask = super().__new__(cls)
        task._number = next(_NUMBERS)  # asyncio puts it into a set before anybody else sees it
        return task

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.AbstractEventLoop):
    """See the module. `broken` collects what escaped from callbacks and tasks. Servers and connections are `network`'s,
    which sets itself."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ready: deque[asyncio.Handle] = deque()
        self.events = 0
        self.network: Any = None
        self.broken: list[dict[str, Any]] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._number = 0
        self._turns = 0
        self._tasks: list[asyncio.Task[Any]] = []

    # What asyncio asks for

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = Step(callback, args, self, copy_context() if context is None else context)
        self.ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        timer = Timer(when, callback, args, self, copy_context() if context is None else context)
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, timer))
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        return self.call_at(self.now + max(delay, 0.0), callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays in the heap and is passed over."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task = SimTask(coro, loop=self, name=name, context=context)
        owner = _OWNER.get()
        (self._tasks if owner is None else owner.tasks).append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.broken.append(context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise AssertionError(f"a thread for {func}: not in a simulation")

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return self.network.listen(protocol_factory, host, port)

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.network.connect(protocol_factory, host, port)

    # Running

    def run(self, main: Coroutine[Any, Any, _T], until: float) -> _T:
        """Run until `main` has ended, which must be before virtual time `until`."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(main)
            while not task.done():
                self._turn()
                if self.broken:
                    raise Escaped(self.broken[0]) from self.broken[0].get("exception")
                if self.now > until:
                    raise AssertionError(f"still running at {until:g} s: {task.get_stack(limit=1)}")
            return task.result()
        finally:
            asyncio._set_running_loop(None)

    def _turn(self) -> None:
        ready, timers = self.ready, self._timers
        if ready:
            self._turns += 1
            if self._turns > _MOST_TURNS:
                raise Livelock(f"no end at {self.now:.6f}: {list(ready)[:10]}")
        else:
            while timers[0][2].cancelled():
                heapq.heappop(timers)
            self.now = max(self.now, timers[0][0])
            self._turns = 0
        while timers and timers[0][0] <= self.now:
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled():
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            owner: Process | None = handle.owner  # type: ignore[attr-defined]
            if owner is not None:
                if owner.dead:
                    continue
                if owner.frozen:
                    owner.hold(handle)
                    continue
            self.events += 1
            handle._run()
