"""How much of a connection's input is taken before the others have their turn.

Owns the buffer that all connections of a loop read into, and when a connection that has filled its share may read on.
Event loops read again at once what fills a buffer (libuv up to 32 times), so that one flood would keep everybody else
waiting: here a connection that has filled its share reads on in the next turn of the loop. A share is as many bytes as
are worked off in a part of `BUDGET`, because a message costs more or less by what it asks for; it is measured at full
reads only, so that ordinary traffic pays nothing for it.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nimsnats.broker.connection import Connection
    from nimsnats.runtime import Runtime

FRONT: Final = 16 * 1024
"""Leftovers up to that size are put in front of the next read; longer ones are collected and joined when complete."""
MOST: Final = 256 * 1024
"""Bytes of the largest share."""
FIRST: Final = 64 * 1024
"""The share of a connection of which nothing is known yet."""
LEAST: Final = 4 * 1024
BUDGET: Final = 6_000_000
"""Nanoseconds that the full reads of one turn may take together, as far as shares can see to it."""

TOGETHER: Final = 32
"""Connections that may read on in the same turn, with however many it is: the others in the turns that follow."""


class Halt(IntEnum):
    """Why a connection is not read from, as bits: there may be several reasons at a time."""

    TURN = 1
    """It has had its share of this turn."""
    STALL = 2
    """Receivers of its messages are nearly full."""
    BRAKE = 4
    """It fills a queue faster than that is worked off (`brake`)."""
    LOGIN = 8
    """Its credentials are being checked."""
    SLICE = 16
    """What it has sent asks for so much that it is worked off in slices (`slices`)."""


class Turns:
    """The turns of one broker's connections."""

    __slots__ = ("_busy", "_runtime", "_waiting", "view")

    def __init__(self, runtime: Runtime) -> None:
        self.view = memoryview(bytearray(FRONT + MOST))
        """What comes is consumed before the next read of whatever connection."""
        self._runtime = runtime
        self._waiting: deque[Connection] = deque()
        self._busy = 1
        """How many connections had their whole share in the turn before."""

    def taken(self, connection: Connection, spent: int) -> None:
        """`connection` has used its share up, which took so many nanoseconds: the others are next."""
        budget = BUDGET // self._busy
        if spent > budget:
            connection.share = max(LEAST, connection.share * budget // spent)
        elif spent < budget // 2:
            connection.share = min(MOST, connection.share * 2)
        if not self._waiting:
            self._runtime.call_soon(self._next)
        self._waiting.append(connection)
        connection.halt(Halt.TURN)

    def _next(self) -> None:
        waiting = self._waiting
        self._busy = count = min(len(waiting), TOGETHER)
        for _ in range(count):
            connection = waiting.popleft()
            try:
                connection.go_on(Halt.TURN)
            except Exception as error:
                connection.input_broke(error)
        if waiting:
            self._runtime.call_soon(self._next)
