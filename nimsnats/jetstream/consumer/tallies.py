"""Counting what consumers have yet to be given, where that takes longer than a moment: one part a turn of the loop.

Owns the queue of the consumers whose backlog is counted, and who waits for it. Lives on the leader only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nimsnats.runtime import Runtime

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer

Told = Callable[[], object]


class Tallies:
    """Of one stream's consumers, the first that asked first."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queue: dict[Consumer, list[Told]] = {}
        self._running = False

    def ask(self, consumer: Consumer, told: Told) -> None:
        """Call `told` once, when the consumer's backlog is counted, or will not be."""
        told_before = self._queue.setdefault(consumer, [])
        if told not in told_before:
            told_before.append(told)
        if not self._running:
            self._running = True
            self._runtime.call_soon(self._turn)

    def counts(self, consumer: Consumer) -> bool:
        """Whether somebody waits for this consumer's count."""
        return consumer in self._queue

    def stop(self) -> None:
        """Count no more: nobody leads here."""
        queue, self._queue = self._queue, {}
        for waiting in queue.values():
            self._tell(waiting)

    def _turn(self) -> None:
        self._running = False
        consumer = next(iter(self._queue), None)
        if consumer is None:
            return
        counted = True
        try:
            counted = consumer.count()
        except Exception as error:
            self._runtime.fence.caught(consumer.count, error)
        if counted:
            self._tell(self._queue.pop(consumer))
        if self._queue and not self._running:
            self._running = True
            self._runtime.call_soon(self._turn)

    def _tell(self, waiting: list[Told]) -> None:
        for told in waiting:
            self._runtime.fence.run(told)
