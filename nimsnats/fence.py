"""Where an error of ours ends: what one item of many raises is logged with its stack, counted, and ends nothing else.

Owns the counts by place and what has been logged. Whoever serves many (the messages of a read, the handlers of a
message, the groups of a tick, the deadlines of a timer) has the `except Exception` around one of them, hands the error
over here, and goes on with the next; `run` is for a single action beside what must not fail. CancelledError,
KeyboardInterrupt and SystemExit are no errors and pass. Not for what the network or the disk says: that is judged where
it comes in, and failures of storage keep their own way to whoever waits for the data.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

PLACES_KEPT: Final = 512
"""Places that are counted by name; errors in further ones are counted together as `others`."""
_LOGGED_KEPT: Final = 1024
_FRAMES: Final = 16
"""Outermost frames of a stack that are logged, and as many innermost ones: a recursion without end has a thousand."""
_OURS: Final = "nimsnats."


class Fence:
    """Of one node. An error is logged once for each place, type and line; `counts` has them all, by place.

    A place is named in the code: a callable stands for its module and qualified name, so that the names are few.
    """

    def __init__(self, log: logging.Logger | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._log = log or logging.getLogger("nimsnats.fence")
        self._logged: set[tuple[str, str, int]] = set()

    def caught(self, place: Callable[..., object] | str, error: Exception) -> None:
        """Log and count an error that has ended one item. Never raises, whatever there is too little of."""
        try:
            name = place if isinstance(place, str) else named(place)
            if name not in self.counts and len(self.counts) >= PLACES_KEPT:
                name = "others"
            self.counts[name] += 1
            key = (name, type(error).__qualname__, _line(error))
            if key in self._logged or len(self._logged) >= _LOGGED_KEPT:
                return
            self._logged.add(key)
            stack = (type(error), error, _shortened(error.__traceback__))
            self._log.error("Internal error in %s, which goes on without what caused it", name, exc_info=stack)
        except Exception:  # no memory left to say it with
            self.counts["others"] += 1

    def run(self, action: Callable[..., object], *arguments: object) -> None:
        """Do what must not keep its caller from going on. What only this node does while an entry is applied must not
        raise there: the entry would be refused here and nowhere else."""
        try:
            action(*arguments)
        except Exception as error:
            self.caught(action, error)

    def escaped(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The exception handler of a loop: what callbacks raise, and tasks that nobody asks, are told here as well."""
        error = context.get("exception")
        if isinstance(error, Exception):
            self.caught(_outermost(error), error)
        else:
            loop.default_exception_handler(context)


def _outermost(error: Exception) -> str:
    """The function that a loop has called, as far as it is of Python and not the loop's own."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None and at.tb_frame.f_globals.get("__name__", "").startswith("asyncio"):
        at = at.tb_next
    if at is None:
        return "loop"
    module = str(at.tb_frame.f_globals.get("__name__", ""))
    return f"{module}.{at.tb_frame.f_code.co_qualname}".removeprefix(_OURS).replace(".<locals>", "")


def named(place: Callable[..., object]) -> str:
    """Module and qualified name of a function or method, or of the class of any other callable."""
    shown: object = getattr(place, "func", place)  # a partial stands for what it calls
    if not hasattr(shown, "__qualname__"):
        shown = type(shown)
    module, name = str(getattr(shown, "__module__", "")), str(getattr(shown, "__qualname__", ""))
    return f"{module}.{name}".removeprefix(_OURS).replace(".<locals>", "")


def _line(error: Exception) -> int:
    """The innermost line; of a recursion or of too little memory, which end somewhere, none."""
    at = error.__traceback__
    if at is None or isinstance(error, RecursionError | MemoryError):
        return 0
    while at.tb_next is not None:
        at = at.tb_next
    return at.tb_lineno


def _shortened(stack: TracebackType | None) -> TracebackType | None:
    """The outermost and the innermost frames of a deep stack."""
    frames: list[TracebackType] = []
    while stack is not None:
        frames.append(stack)
        stack = stack.tb_next
    if len(frames) > 2 * _FRAMES:
        frames[_FRAMES:-_FRAMES] = []
    short: TracebackType | None = None
    for frame in reversed(frames):
        short = TracebackType(short, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return short
