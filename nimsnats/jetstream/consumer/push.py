"""The push side of a consumer: messages go to the deliver subject as long as somebody listens.

Owns interest, flow control, heartbeats and the rate limit. Lives on the leader only. It never chooses messages
(`delivery.py`) and never touches replicated state.

Flow control as in nats-server: a window of outstanding bytes that starts at 2 MiB and doubles with every answer up to
32 MiB. Past half of it the client is asked to answer; past all of it delivery stops until it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nimsnats.jetstream.consumer.delivery import NEVER, Delivery
from nimsnats.jetstream.consumer.request import heartbeat
from nimsnats.jetstream.message import StoredMessage
from nimsnats.protocol.headers import status_block

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer

MAX_WINDOW: Final = 32 * 1024 * 1024
FIRST_WINDOW: Final = MAX_WINDOW // 16
FLOW_CONTROL: Final = status_block(100, "FlowControl Request")
_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class PushSide:
    """Delivery of one push consumer."""

    def __init__(self, consumer: Consumer, delivery: Delivery, now: int) -> None:
        self._consumer = consumer
        self._delivery = delivery
        self._window = FIRST_WINDOW
        self._unanswered = 0
        """Bytes delivered that no flow control answer covers."""
        self._asked = b""
        self._asked_bytes = 0
        self._free_at = 0
        self._heartbeat_at = 0
        self.bound = False
        self.configure(now)

    def configure(self, now: int) -> None:
        """Take over the consumer's configuration."""
        config = self._consumer.config
        self._to = config.deliver_subject.encode()
        self._group = config.deliver_group.encode()
        self._heartbeat = config.idle_heartbeat
        self._heartbeat_at = now + self._heartbeat if self._heartbeat else 0
        self.interest_changed()

    def interest_changed(self) -> bool:
        """Look again whether somebody listens; whether that has changed."""
        bound = self._consumer.account.has_interest(self._to, self._group)
        changed = bound != self.bound
        self.bound = bound
        return changed

    @property
    def ready(self) -> bool:
        """Whether somebody listens and has answered for enough of what was sent."""
        return self.bound and not (self._consumer.config.flow_control and self._unanswered > self._window)

    # --- serving

    def serve(self, now: int) -> bool:
        """Deliver what may be delivered. True when there is more to do at once."""
        delivery, consumer = self._delivery, self._consumer
        budget = delivery.chunk()
        while budget > 0:
            if not self.ready:
                return False
            if self._free_at > now:
                consumer.wake(self._free_at)
                return False
            picked = delivery.pick(budget)
            if not picked:
                if delivery.wanted:
                    consumer.load(delivery.wanted)
                return delivery.searching
            if (at := delivery.not_before(picked[0])) > now:
                consumer.wake(at)
                return False
            sent = self._deliver(picked, now)
            budget -= sent
            if delivery.searching:
                return True
            if sent == 0:
                return False
        return True

    def _deliver(self, picked: list[StoredMessage], now: int) -> int:
        delivery, consumer, to = self._delivery, self._consumer, self._to
        config = consumer.config
        number, left = delivery.next_number, delivery.remaining()
        if config.flow_control or config.rate_limit_bps > 0 or delivery.replaying or delivery.picked_again:
            sent = self._deliver_measured(picked, number, left, now)
        else:
            sent = consumer.send_run(to, picked, number, left)
        if sent < len(picked) and not consumer.account.has_interest(to, self._group):
            self.bound = False
            consumer.interest_lost()
        delivery.sent(picked if sent == len(picked) else picked[:sent], now)
        if sent and self._heartbeat:
            self._heartbeat_at = now + self._heartbeat
        return sent

    def _deliver_measured(self, picked: list[StoredMessage], number: int, left: int, now: int) -> int:
        """Deliver until the window is full, the rate is reached or the stored distance is to be kept."""
        delivery, consumer = self._delivery, self._consumer
        again = delivery.picked_again
        sent = 0
        for message in picked:
            pending = left if again else max(left - 1, 0)
            if not consumer.send(self._to, message, number, pending):
                break
            sent += 1
            if not self._account(message, number, pending, now) or delivery.replaying:
                break
            number += 1
            left = pending
        return sent

    def _account(self, message: StoredMessage, number: int, pending: int, now: int) -> bool:
        """Count a delivered message against window and rate; whether the next one may follow at once."""
        config = self._consumer.config
        size = self._consumer.size(message, number, pending)
        if config.rate_limit_bps:
            burst = self._consumer.burst * 8 * 1_000_000_000 // config.rate_limit_bps
            begin = max(self._free_at + burst, now)
            self._free_at = begin + size * 8 * 1_000_000_000 // config.rate_limit_bps - burst
        if config.flow_control:
            self._unanswered += size
            self._ask(size)
            if self._unanswered > self._window:
                return False
        return self._free_at <= now

    # --- flow control

    def _ask(self, size: int) -> None:
        if not self._asked:
            if self._unanswered > self._window // 2:
                self._asked_bytes = self._unanswered
                token = "".join(self._consumer.runtime.random.choices(_DIGITS, k=4))
                self._asked = b"$JS.FC.%b.%b.%b" % (
                    self._consumer.stream.encode(),
                    self._consumer.name.encode(),
                    token.encode(),
                )
                self._consumer.say(self._to, FLOW_CONTROL, self._asked)
        elif self._unanswered - self._asked_bytes >= self._window:
            self._asked_bytes += size

    def flow_answered(self, subject: bytes) -> None:
        """The client has answered a flow control request."""
        if subject != self._asked:
            return
        self._window = min(self._window * 2, MAX_WINDOW)
        self._unanswered = max(self._unanswered - self._asked_bytes, 0)
        self._asked, self._asked_bytes = b"", 0
        self._consumer.mark()

    # --- time

    def tick(self, now: int) -> int:
        """Send a heartbeat that is due; when to look again."""
        when = self._free_at if self._free_at > now else NEVER
        if not self._heartbeat:
            return when
        if self._heartbeat_at <= now:
            self._heartbeat_at = now + self._heartbeat
            if self.bound:
                self._consumer.say(self._to, heartbeat(*self._consumer.position(), self._asked))
        return min(when, self._heartbeat_at)
