"""Long work in slices: how long a piece of it may keep the loop, and who goes on next.

Owns the queue of all work of one loop that has used up its slice: the input of a connection that asks for much, and
requests that look at much. Each turn of the loop lets a few go on, in the order in which they stopped, and together
they take no more than `BUDGET`; so whoever does little waits for no more than that. A slice is measured on the clock
that is injected: where time stands still within a turn, as in a simulator, work is never cut, and so is the same in
every run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nimsnats.runtime import Runtime

BUDGET: Final = 4_000_000
"""Nanoseconds that cut work may take in one turn, as far as slices can see to it."""
TOGETHER: Final = 4
"""Pieces of cut work that go on in the same turn."""


class Slices:
    """The cut work of one loop."""

    __slots__ = ("_due", "_runtime", "_waiting", "cuts")

    def __init__(self, runtime: Runtime) -> None:
        self.cuts = 0
        """How often work was cut."""
        self._runtime = runtime
        self._waiting: deque[Callable[[], object]] = deque()
        self._due = False
        """Whether the next turn lets some go on."""

    def end(self) -> int:
        """When a slice that begins now ends; for `over`."""
        return self._runtime.boot_time_ns() + BUDGET // min(len(self._waiting) + 1, TOGETHER)

    def over(self, end: int) -> bool:
        """Whether that time has come."""
        return self._runtime.boot_time_ns() >= end

    def later(self, go_on: Callable[[], object]) -> None:
        """Call `go_on` in a later turn, behind everything else that has been cut. What it raises ends at the fence."""
        self.cuts += 1
        self._waiting.append(go_on)
        self._next_soon()

    async def rest(self) -> int:
        """Give the loop back until it is this task's turn again; when its next slice ends."""
        turn: asyncio.Future[None] = self._runtime.loop.create_future()
        self.later(lambda: turn.done() or turn.set_result(None))
        await turn
        return self.end()

    def _next_soon(self) -> None:
        if not self._due:
            self._due = True
            self._runtime.call_soon(self._next)

    def _next(self) -> None:
        self._due = False
        waiting = self._waiting
        for _ in range(min(len(waiting), TOGETHER)):
            self._runtime.fence.run(waiting.popleft())
        if waiting:
            self._next_soon()
