"""The open pull requests of one consumer: in which order they are served, and when each has to be looked at.

Owns the lanes (requests that are alike to the priority policy, first come first served), the times at which requests
expire or want a heartbeat, and who has yet to be asked whether anybody listens for it. No operation costs more the more
requests there are. It decides nothing about them: `pull.py` and `priority.py` do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

from nimsnats.jetstream.consumer.delivery import NEVER
from nimsnats.jetstream.consumer.request import PullRequest

ALIKE: Final = 0
"""The lane of all requests where there are no priorities."""
SWEEP: Final = 1024
"""Requests that are asked for their listeners, at most, while the clock stands still."""
SWEEP_LEAST: Final = 64
"""As many are asked at every occasion."""
_STALE: Final = 64


class Waiting:
    """See the module. `lane` tells to which lane a request belongs: requests of the lowest one are served first."""

    __slots__ = ("_clock", "_due", "_impatient", "_lane", "_lanes", "_sweepable", "_swept", "_turns", "left")

    def __init__(self, lane: Callable[[PullRequest], Hashable]) -> None:
        self._lane = lane
        self._lanes: dict[Hashable, OrderedDict[PullRequest, None]] = {ALIKE: OrderedDict()}
        self._sweepable: OrderedDict[PullRequest, None] = OrderedDict()
        """All requests, those first that have been asked for their listeners least recently."""
        self._due: list[tuple[int, int, PullRequest]] = []
        """Heap of (time, turn, request); also of requests that are open no more."""
        self._impatient: dict[PullRequest, None] = {}
        self._turns = 0
        self._clock = -1
        self._swept = 0
        self.left = 0
        """Messages that all requests together still want."""

    def __len__(self) -> int:
        return len(self._sweepable)

    def __iter__(self) -> Iterator[PullRequest]:
        """All requests, those that have waited longest first."""
        return iter(sorted(self._sweepable, key=lambda request: request.turn))

    # --- coming and going

    def add(self, request: PullRequest) -> None:
        """A request has come."""
        self._sweepable[request] = None
        self._sweepable.move_to_end(request, last=False)
        request.asked = -1
        self.left += request.left
        self._queue(request)
        self.watch(request)
        self.settle_patience(request)

    def remove(self, request: PullRequest) -> None:
        """A request is open no more."""
        self._unqueue(request)
        del self._sweepable[request]
        self.left -= request.left
        if request.no_wait:
            self._impatient.pop(request, None)

    def served(self, request: PullRequest, count: int) -> None:
        """A request has been given messages."""
        request.left -= count
        request.delivered += count
        self.left -= count
        if request.no_wait:
            self.settle_patience(request)

    def requeue(self, request: PullRequest) -> None:
        """To the back of its lane, which may be another one by now."""
        self._unqueue(request)
        self._queue(request)

    def sort(self, lane: Callable[[PullRequest], Hashable]) -> None:
        """Put every request into the lane that it belongs to by other rules, in the order in which they have come."""
        self._lane = lane
        for request in self:
            self.requeue(request)

    def settle_patience(self, request: PullRequest) -> None:
        """Note a request that does not wait for messages that are yet to come."""
        if request.no_wait and (request.delivered > 0 or not request.expires):
            self._impatient[request] = None

    def impatient(self) -> list[PullRequest]:
        """Requests that end as soon as there is nothing left."""
        return list(self._impatient) if self._impatient else []

    def _queue(self, request: PullRequest) -> None:
        self._turns += 1
        request.turn = self._turns
        request.lane = key = self._lane(request)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = OrderedDict()
        lane[request] = None

    def _unqueue(self, request: PullRequest) -> None:
        lane = self._lanes[request.lane]
        del lane[request]
        if not lane and request.lane != ALIKE:
            del self._lanes[request.lane]

    # --- whose turn it is

    def head(self) -> PullRequest:
        """The first request of the lowest lane that has one. There is one."""
        lanes = self._lanes
        if len(lanes) == 1:
            return next(iter(lanes[ALIKE]))
        return next(iter(lanes[min(key for key, lane in lanes.items() if lane)]))  # pyright: ignore[reportArgumentType]

    def lanes(self) -> list[Hashable]:
        """The lanes that have requests."""
        return [key for key, lane in self._lanes.items() if lane]

    def first(self, lane: Hashable) -> PullRequest | None:
        """The first request of a lane."""
        return next(iter(self._lanes.get(lane, ())), None)

    def of(self, lane: Hashable) -> list[PullRequest]:
        """All requests of a lane, in order."""
        return list(self._lanes.get(lane, ()))

    # --- time

    def watch(self, request: PullRequest) -> None:
        """Have a request be due when it expires or wants its next heartbeat."""
        at = min(request.expires_at or NEVER, request.heartbeat_at or NEVER)
        if at == NEVER:
            return
        if len(self._due) > 2 * len(self) + _STALE:
            self._due = [entry for entry in self._due if entry[2] in self._sweepable]
            heapify(self._due)
        self._turns += 1
        heappush(self._due, (at, self._turns, request))

    def due(self, now: int) -> PullRequest | None:
        """A request that expires or wants a heartbeat by `now`, each once: to be closed, or watched again."""
        due = self._due
        while due and due[0][0] <= now:
            request = heappop(due)[2]
            if request not in self._sweepable:
                continue
            if min(request.expires_at or NEVER, request.heartbeat_at or NEVER) <= now:
                return request
            self.watch(request)  # it has been given messages, which are as good as a heartbeat
        return None

    def next_due(self) -> int:
        """When a request is due, at the earliest."""
        due = self._due
        while due and due[0][2] not in self._sweepable:
            heappop(due)
        return due[0][0] if due else NEVER

    # --- listeners

    def unlistened(self, removes: int, listened: Callable[[bytes], bool], now: int) -> list[PullRequest]:
        """Requests whose inbox nobody listens to. Nobody stops to listen without a subscription that ends: each is
        asked once for every value of `removes`, and not all of very many at once."""
        if self._clock != now:
            self._clock, self._swept = now, 0
        left = max(SWEEP - self._swept, SWEEP_LEAST)
        sweepable = self._sweepable
        gone: list[PullRequest] = []
        for _ in range(min(left, len(sweepable))):
            request = next(iter(sweepable))
            if request.asked == removes:
                break
            request.asked = removes
            sweepable.move_to_end(request)
            self._swept += 1
            if not listened(request.reply):
                gone.append(request)
        return gone
