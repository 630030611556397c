"""The pull side of a consumer: open requests and how they are served.

Owns the waiting queue, the order in which requests are served, their expiry, heartbeats and closing statuses. Lives on
the leader only. It never chooses messages (`delivery.py`) and never touches replicated state.

Requests are served in turn, one message each; one that wants more goes to the back. Deliveries of a tick are made in
chunks so that one backlog does not hold up the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nimsnats.jetstream.clock import format_duration
from nimsnats.jetstream.consumer import request as statuses
from nimsnats.jetstream.consumer.delivery import NEVER, Delivery
from nimsnats.jetstream.consumer.priority import Groups
from nimsnats.jetstream.consumer.request import BadRequest, PullRequest, heartbeat, read_request
from nimsnats.jetstream.consumer.waiting import Waiting
from nimsnats.jetstream.message import StoredMessage
from nimsnats.protocol.headers import status_block

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer


class PullSide:
    """Open requests of one pull consumer."""

    def __init__(self, consumer: Consumer, delivery: Delivery) -> None:
        self._consumer = consumer
        self._delivery = delivery
        self.groups = Groups(consumer)
        self._waiting = Waiting(self.groups.lane)

    def count(self) -> int:
        """How many requests are open; those whose inbox nobody listens to are dropped first."""
        account = self._consumer.account
        for request in self._waiting.unlistened(
            account.interest.removes, account.has_interest, self._consumer.owner.now()
        ):
            self._waiting.remove(request)
        return len(self._waiting)

    @property
    def active(self) -> bool:
        """Whether requests are open."""
        return bool(self._waiting)

    def take_over(self, before: PullSide) -> None:
        """Go on with the requests of the side that this one replaces."""
        self._waiting = before._waiting
        self._waiting.sort(self.groups.lane)

    def configure(self) -> None:
        """Take over the consumer's configuration."""
        self.groups.configure()
        self._waiting.sort(self.groups.lane)

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
        if not self._consumer.count():
            return True  # it ends as soon as it is known that there is nothing
        backlog = self._consumer.num_pending() + len(self._delivery.redeliveries)
        if backlog == 0 and not request.expires:
            self._status(request.reply, statuses.NO_MESSAGES)
            return False
        self._look(now)
        if 0 < backlog < self._waiting.left:
            self._status(request.reply, statuses.REQUESTS_PENDING)
            return False
        return True

    def _enqueue(self, request: PullRequest, now: int) -> None:
        if len(self._waiting) >= self._consumer.config.max_waiting:
            self._look(now)
            if self.count() >= self._consumer.config.max_waiting:
                if not request.heartbeat:
                    self._status(request.reply, statuses.MAX_WAITING)
                return
        self._waiting.add(request)
        self._consumer.serve(now)
        if request.expires_at or request.heartbeat_at:
            self._consumer.wake(min(request.expires_at or NEVER, request.heartbeat_at or NEVER))

    # --- serving

    def serve(self, now: int) -> bool:
        """Deliver to open requests. True when there is more to do at once."""
        delivery, waiting = self._delivery, self._waiting
        budget = delivery.chunk()
        while waiting:
            want = waiting.head().left if len(waiting) == 1 else budget
            picked = delivery.pick(min(want, budget))
            if not picked:
                if delivery.wanted:
                    self._consumer.load(delivery.wanted)
                elif not delivery.searching:
                    self._nothing_left()
                return delivery.searching
            if (at := delivery.not_before(picked[0])) > now:
                self._consumer.wake(at)
                return False
            served = self._deliver(picked, now)
            if served == 0 and waiting:
                return False
            budget -= served
            if budget <= 0 or delivery.searching:
                return True
        return False

    def _deliver(self, picked: list[StoredMessage], now: int) -> int:
        """Deliver the first messages of a pick, as many as requests take; how many they were."""
        delivery, send = self._delivery, self._consumer.send
        again = delivery.picked_again
        number, left = delivery.next_number, delivery.remaining()
        if not again and len(self._waiting) == 1 and self.groups.absent and not delivery.replaying:
            request = self._waiting.head()
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
        self._waiting.served(request, served)
        if request.heartbeat:
            request.heartbeat_at = now + request.heartbeat
        if served < len(picked) or request.left <= 0:
            self._waiting.remove(request)
        return served

    def _deliver_one(
        self, message: StoredMessage, number: int, pending: int, send: Callable[..., int], now: int
    ) -> bool:
        """Deliver to the next request that can take it; False when there is none."""
        waiting, groups = self._waiting, self.groups
        while waiting:
            request = waiting.head() if groups.free else groups.choose(waiting)
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
        waiting.served(request, 1)
        if request.heartbeat:
            request.heartbeat_at = now + request.heartbeat
        if request.left <= 0:
            waiting.remove(request)
            if request.limited and request.bytes_left > 0:
                self._status(request.reply, request.status(statuses.COMPLETED))
        elif len(waiting) > 1 or not self.groups.absent:
            waiting.requeue(request)

    def _nothing_left(self) -> None:
        """The backlog is empty: close what does not want to wait for more."""
        for request in self._waiting.impatient():
            if self._delivery.remaining() == 0:
                self._close(request, statuses.NO_MESSAGES)

    # --- time

    def tick(self, now: int) -> int:
        """Expire requests and send heartbeats that are due; when to look again."""
        self._look(now)
        return min(self.groups.tick(now), self._waiting.next_due())

    def _look(self, now: int) -> None:
        """See after the requests whose time has come."""
        waiting = self._waiting
        interested = self._consumer.account.has_interest
        while (request := waiting.due(now)) is not None:
            if request.expires_at and request.expires_at <= now:
                self._close(request, request.status(statuses.TIMEOUT))
            elif not interested(request.reply):
                waiting.remove(request)
            else:
                request.heartbeat_at = now + request.heartbeat
                waiting.watch(request)
                self._status(request.reply, heartbeat(*self._consumer.position()))

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
