"""The pull side of a consumer: open requests and how they are served.

Owns the waiting queue, the order in which requests are served, their expiry, heartbeats and closing statuses. Lives on
the leader only. It never chooses messages (`delivery.py`) and never touches replicated state.

Requests are served in turn, one message each; one that wants more goes to the back. Deliveries of a tick are made in
chunks so that one backlog does not hold up the loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from nimsnats.jetstream.clock import format_duration
from nimsnats.jetstream.consumer import request as statuses
from nimsnats.jetstream.consumer.delivery import NEVER, Delivery
from nimsnats.jetstream.consumer.priority import Groups
from nimsnats.jetstream.consumer.request import BadRequest, PullRequest, heartbeat, read_request
from nimsnats.jetstream.message import StoredMessage
from nimsnats.protocol.headers import status_block

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer


class PullSide:
    """Open requests of one pull consumer."""

    def __init__(self, consumer: Consumer, delivery: Delivery) -> None:
        self._consumer = consumer
        self._delivery = delivery
        self._waiting: deque[PullRequest] = deque()
        self._checked = -1
        self.groups = Groups(consumer)

    def count(self) -> int:
        """How many requests are open; those whose inbox nobody listens to are dropped first."""
        account = self._consumer.account
        removes = account.interest.removes
        if self._checked != removes:  # nobody stops listening without a subscription that ends
            interested = account.has_interest
            gone = [request for request in self._waiting if not interested(request.reply)]
            for request in gone:
                self._waiting.remove(request)
            self._checked = removes
        return len(self._waiting)

    @property
    def active(self) -> bool:
        """Whether requests are open."""
        return bool(self._waiting)

    def take_over(self, before: PullSide) -> None:
        """Go on with the requests of the side that this one replaces."""
        self._waiting = before._waiting

    # --- requests

    def request(self, body: bytes, reply: bytes, now: int) -> None:
        """Take a request and serve what can be served at once."""
        try:
            request = read_request(body, reply, now)
        except BadRequest as error:
            self._status(reply, statuses.bad_request(str(error)))
            return
        refusal = self._over_limits(request) or self.groups.refuse(request, now)
        if refusal:
            self._status(reply, refusal)
        elif not request.no_wait or self._admit_no_wait(request, now):
            self._enqueue(request, now)

    def _over_limits(self, request: PullRequest) -> bytes:
        config = self._consumer.config
        if 0 < config.max_batch < request.left:
            return status_block(409, f"Exceeded MaxRequestBatch of {config.max_batch}")
        if 0 < config.max_expires < request.expires:
            return status_block(409, f"Exceeded MaxRequestExpires of {format_duration(config.max_expires)}")
        if 0 < config.max_bytes < request.bytes_left:
            return status_block(409, f"Exceeded MaxRequestMaxBytes of {config.max_bytes}")
        return b""

    def _admit_no_wait(self, request: PullRequest, now: int) -> bool:
        backlog = self._delivery.remaining() + len(self._delivery.redeliveries)
        if backlog == 0 and not request.expires:
            self._status(request.reply, statuses.NO_MESSAGES)
            return False
        self._drop_expired(now)
        if backlog > 0 and backlog < sum(other.left for other in self._waiting):
            self._status(request.reply, statuses.REQUESTS_PENDING)
            return False
        return True

    def _enqueue(self, request: PullRequest, now: int) -> None:
        if len(self._waiting) >= self._consumer.config.max_waiting:
            self._drop_expired(now)
            if self.count() >= self._consumer.config.max_waiting:
                if not request.heartbeat:
                    self._status(request.reply, statuses.MAX_WAITING)
                return
        self._queue(request)
        self._checked = -1  # whether anybody listens for this one has not been asked
        self._consumer.serve(now)
        if request.expires_at or request.heartbeat_at:
            self._consumer.wake(min(request.expires_at or NEVER, request.heartbeat_at or NEVER))

    def _queue(self, request: PullRequest) -> None:
        """To the back; with priorities, behind the last one that is at least as urgent."""
        waiting = self._waiting
        if self.groups.prioritized and waiting and waiting[-1].priority > request.priority:
            at = next(i for i, other in enumerate(waiting) if other.priority > request.priority)
            waiting.insert(at, request)
        else:
            waiting.append(request)

    # --- serving

    def serve(self, now: int) -> bool:
        """Deliver to open requests. True when there is more to do at once."""
        delivery, waiting = self._delivery, self._waiting
        budget = delivery.chunk()
        while waiting:
            want = waiting[0].left if len(waiting) == 1 else budget
            picked = delivery.pick(min(want, budget))
            if not picked:
                if delivery.wanted:
                    self._consumer.load(delivery.wanted)
                else:
                    self._nothing_left()
                return False
            if (at := delivery.not_before(picked[0])) > now:
                self._consumer.wake(at)
                return False
            served = self._deliver(picked, now)
            if served == 0 and waiting:
                return False
            budget -= served
            if budget <= 0:
                return True
        return False

    def _deliver(self, picked: list[StoredMessage], now: int) -> int:
        """Deliver the first messages of a pick, as many as requests take; how many they were."""
        delivery, send = self._delivery, self._consumer.send
        again = delivery.picked_again
        number, left = delivery.next_number, delivery.remaining()
        if not again and len(self._waiting) == 1 and self.groups.absent and not delivery.replaying:
            request = self._waiting[0]
            if not request.limited and (not request.expires_at or request.expires_at > now):
                return self._deliver_run(request, picked, number, left, now)
        served = 0
        one_by_one = delivery.replaying
        for message in picked:
            pending = left if again else max(left - 1, 0)
            if not self._deliver_one(message, number, pending, send, now):
                break
            served += 1
            number += 1
            left = pending
            if one_by_one or not self._waiting:
                break
        delivery.sent(picked if served == len(picked) else picked[:served], now)
        return served

    def _deliver_run(self, request: PullRequest, picked: list[StoredMessage], number: int, left: int, now: int) -> int:
        """Deliver to the only request there is, which wants at least as many messages as were picked."""
        served = self._consumer.send_run(request.reply, picked, number, left)
        self._delivery.sent(picked if served == len(picked) else picked[:served], now)
        request.left -= served
        request.delivered += served
        if request.heartbeat:
            request.heartbeat_at = now + request.heartbeat
        if served < len(picked) or request.left <= 0:
            self._waiting.clear()
        return served

    def _deliver_one(
        self, message: StoredMessage, number: int, pending: int, send: Callable[..., int], now: int
    ) -> bool:
        """Deliver to the next request that can take it; False when there is none."""
        waiting, groups = self._waiting, self.groups
        while waiting:
            request = waiting[0] if groups.free else groups.choose(waiting, now)
            if request is None:
                return False
            if request.expires_at and request.expires_at <= now:
                self._close(request, request.status(statuses.TIMEOUT))
                continue
            if request.limited:
                size = self._consumer.size(message, number, pending)
                if size > request.bytes_left:
                    self._close(request, request.status(statuses.SIZE))
                    continue
                request.bytes_left -= size
            if not send(request.reply, message, number, pending, groups.header(request, now)):
                waiting.remove(request)
                continue
            self._served(request, now)
            return True
        return False

    def _served(self, request: PullRequest, now: int) -> None:
        waiting = self._waiting
        request.left -= 1
        request.delivered += 1
        if request.heartbeat:
            request.heartbeat_at = now + request.heartbeat
        if request.left <= 0:
            waiting.remove(request)
            if request.limited and request.bytes_left > 0:
                self._status(request.reply, request.status(statuses.COMPLETED))
        elif len(waiting) > 1:
            waiting.remove(request)
            self._queue(request)

    def _nothing_left(self) -> None:
        """The backlog is empty: close what does not want to wait for more."""
        for request in [r for r in self._waiting if r.no_wait and (r.delivered or not r.expires)]:
            if self._delivery.remaining() == 0:
                self._close(request, statuses.NO_MESSAGES)

    # --- time

    def tick(self, now: int) -> int:
        """Expire requests and send heartbeats that are due; when to look again."""
        self._drop_expired(now)
        when = self.groups.tick(now)
        interested = self._consumer.account.has_interest
        for request in list(self._waiting):
            if request.heartbeat_at and request.heartbeat_at <= now:
                if not interested(request.reply):
                    self._waiting.remove(request)
                    continue
                request.heartbeat_at = now + request.heartbeat
                self._status(request.reply, heartbeat(*self._consumer.position()))
            when = min(when, request.expires_at or NEVER, request.heartbeat_at or NEVER)
        return when

    def _drop_expired(self, now: int) -> None:
        for request in [r for r in self._waiting if r.expires_at and r.expires_at <= now]:
            self._close(request, request.status(statuses.TIMEOUT))

    def close(self, block: bytes) -> None:
        """End every open request with this status (empty: with the pending headers of a shutdown)."""
        for request in list(self._waiting):
            self._close(request, block or request.status(statuses.SHUTDOWN))

    def drop(self, request: PullRequest, block: bytes) -> None:
        """End one request."""
        self._close(request, block)

    def _close(self, request: PullRequest, block: bytes) -> None:
        self._waiting.remove(request)
        self._status(request.reply, block)

    def _status(self, reply: bytes, block: bytes) -> None:
        self._consumer.say(reply, block)
