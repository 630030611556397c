"""Waiting times between attempts: exponential, capped, and jittered so that a fleet does not knock in step."""

from __future__ import annotations

import random


class Backoff:
    """Delays `first`, doubled each time up to `cap` (seconds), each drawn from its upper half.

    The random source is the runtime's, so that a simulation replays the same delays.
    """

    def __init__(self, source: random.Random, first: float, cap: float) -> None:
        self._random = source
        self._first = first
        self._cap = cap
        self._next = first

    def reset(self) -> None:
        """An attempt succeeded: the next delay is a short one again."""
        self._next = self._first

    def delay(self) -> float:
        """Seconds to wait before the next attempt."""
        bound = min(self._next, self._cap)
        self._next = min(self._next * 2, self._cap)
        return bound * (0.5 + 0.5 * self._random.random())
