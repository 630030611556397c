"""One consumer: its identity, its replicated state and, on the leader, the parts that deliver.

Owns what a consumer says and hears: the delivered message with its acknowledgement subject, the meaning of
acknowledgements, pausing, inactivity, info and advisories. It never decides which message comes next (`delivery.py`)
nor who gets it (`pull.py`, `push.py`), and it proposes nothing: `set.py` collects its changes once a tick.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream.api.decode import DURATION, Struct, decode
from nimsnats.jetstream.clock import format_time, parse_duration
from nimsnats.jetstream.consumer.advisory import ack_sample, advise
from nimsnats.jetstream.consumer.config import ConsumerConfig
from nimsnats.jetstream.consumer.delivery import NEVER, Delivery
from nimsnats.jetstream.consumer.info import consumer_info
from nimsnats.jetstream.consumer.outbox import Outbox
from nimsnats.jetstream.consumer.pull import PullSide
from nimsnats.jetstream.consumer.push import PushSide
from nimsnats.jetstream.consumer.rules import EPHEMERAL_THRESHOLD, sampled
from nimsnats.jetstream.consumer.state import ConsumerState, Delivered
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.message import StoredMessage
from nimsnats.jetstream.source import Filters
from nimsnats.protocol.headers import with_headers
from nimsnats.runtime import Runtime

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.jetstream.consumer.set import ConsumerSet

CHECKPOINT: Final = 1_000_000_000
"""How often the position of an ephemeral without acknowledgements is written down, in nanoseconds."""
DEFAULT_BURST: Final = 1024 * 1024

_ACK: Final = frozenset((b"", b"+ACK", b"+OK"))


class Consumer:
    """See the module. Attributes above `leading` are replicated; the rest exists while this node leads."""

    __slots__ = (
        "_ack_prefix",
        "_active_at",
        "_deliver",
        "_inactive_at",
        "_jitter",
        "_logged_at",
        "_pause_told",
        "account",
        "acked",
        "acked_to",
        "config",
        "created",
        "delivery",
        "filters",
        "generated",
        "id",
        "name",
        "outbox",
        "owner",
        "plain_acks",
        "runtime",
        "side",
        "state",
        "stream",
        "unacknowledged",
        "wake_at",
    )

    def __init__(
        self, owner: ConsumerSet, id: int, name: str, config: ConsumerConfig, created: int, generated: bool
    ) -> None:
        self.owner = owner
        self.id = id
        """Index of the entry that created or reset the consumer; entries made for an earlier life are ignored."""
        self.name = name
        self.created = created
        self.generated = generated
        self.stream = owner.source.name
        self.account: Account = owner.account
        self.runtime: Runtime = owner.runtime
        self.state = ConsumerState(1)
        self.configure(config)
        self.delivery: Delivery | None = None
        self.side: PullSide | PushSide | None = None
        self.outbox: Outbox | None = None
        """Where deliveries wait to be written down; None when they need not."""
        self.wake_at = NEVER
        self.acked: list[int] = []
        """Acknowledged since the last entry (policy explicit)."""
        self.acked_to: tuple[int, int] | None = None
        """Acknowledged up to this stream and consumer sequence since the last entry (policy all)."""
        self._ack_prefix = f"$JS.ACK.{self.stream}.{name}.".encode()
        self._deliver = self.account.deliver
        self._active_at = 0
        self._inactive_at = NEVER
        self._jitter = 0
        self._logged_at = 0
        self._pause_told = False

    def configure(self, config: ConsumerConfig) -> None:
        """Take over a configuration (replicated part)."""
        self.config = config
        self.unacknowledged = config.ack_policy == "none"
        self.plain_acks = config.ack_policy == "explicit" and not config.sample_freq
        """Whether a plain acknowledgement needs nothing but its stream sequence."""
        filters = config.filters
        self.filters: Filters = () if b">" in filters else filters

    # --- leading

    @property
    def leading(self) -> Delivery:
        """The leader's view. Only to be asked for on the leader."""
        assert self.delivery is not None
        return self.delivery

    @property
    def pull(self) -> PullSide:
        """The open requests of a pull consumer on the leader."""
        assert isinstance(self.side, PullSide)
        return self.side

    @property
    def burst(self) -> int:
        """Bytes that a rate-limited consumer may deliver at once."""
        return DEFAULT_BURST

    @property
    def lazy(self) -> bool:
        """Whether deliveries cost no log entries: nobody needs the position after a crash."""
        config = self.config
        return config.ack_policy == "none" and not config.durable and self.owner.source.retention == "limits"

    @property
    def careful(self) -> bool:
        """Whether a delivery has to be written down before it is made: forgotten in a crash, it could be made once more
        than `max_deliver` allows."""
        return self.config.max_deliver > 0 and not self.unacknowledged

    def _hold_back(self) -> None:
        if self.outbox is None and self.careful:
            self.outbox = Outbox(self.account)
            self._deliver = self.outbox.deliver

    def _let_go(self) -> None:
        if self.outbox is not None:
            self.outbox.clear()
            self.outbox = None
            self._deliver = self.account.deliver

    def lead(self, now: int) -> None:
        """Start to deliver."""
        self._let_go()
        self._hold_back()
        self.delivery = Delivery(self.config, self.filters, self.state, self.owner.source)
        self.acked, self.acked_to = [], None
        if self.config.push:
            self.side = PushSide(self, self.delivery, now)
        else:
            self.side = PullSide(self, self.delivery)
        self._jitter = int(self.runtime.random.uniform(100_000_000, 1_000_000_000))
        self._active_at = now
        self._logged_at = now
        self._pause_told = self.state.paused_until > self.runtime.time_ns()
        self.wake_at = NEVER
        self.wake(now)
        if self.delivery.backlog.caught_up:
            self.owner.audience.wait(self)

    def follow(self, status: bytes | None) -> None:
        """Stop to deliver; open requests end with `status` (empty: server shutdown, None: silently)."""
        self._let_go()
        if isinstance(self.side, PullSide) and status is not None:
            self.side.close(status)
        self.delivery = None
        self.side = None
        self.wake_at = NEVER

    def restart(self, now: int) -> None:
        """The positions were reset while leading; open requests stay open."""
        side = self.side
        self.lead(now)
        if isinstance(side, PullSide) and isinstance(self.side, PullSide):
            self.side.take_over(side)
        self.mark()

    @property
    def waits(self) -> bool:
        """Whether new messages could be delivered at once."""
        side = self.side
        return side is not None and (side.ready if isinstance(side, PushSide) else side.active)

    def reconfigured(self, now: int) -> None:
        """The configuration changed while leading."""
        if self.delivery is None:
            return
        self.delivery.configure(self.config, self.filters)
        self._hold_back()
        if isinstance(self.side, PushSide):
            self.side.configure(now)
        elif self.side is not None:
            self.side.configure()
        self.wake(now)

    def mark(self) -> None:
        """Have the consumer looked at in the next tick."""
        self.owner.journal.mark(self)

    def wake(self, at: int) -> None:
        """Have `tick` called at this time, or earlier."""
        self.owner.alarm.wake(self, at)

    def load(self, seq: int) -> None:
        """Have a message read from disk; delivery goes on when it is there."""
        self.owner.load(self, seq)

    def serve(self, now: int) -> bool:
        """Deliver what can be delivered now. True when there is more to do at once."""
        delivery, side = self.delivery, self.side
        if delivery is None or side is None or self.paused:
            return False
        if not self.owner.source.accepting:
            self.mark()
            return False
        if delivery.wanted and self.owner.loading(self):
            return False
        if self.outbox is not None and self.outbox.full:
            return False  # the next entry that is applied goes on
        self.owner.expose(self)
        if not delivery.backlog.count(delivery.next_seq):
            self.owner.tallies.ask(self, self.mark)
            return False  # every delivery tells how many are left
        before, exhausted = delivery.next_number, len(delivery.exhausted)
        more = side.serve(now)
        if delivery.next_number != before:
            self._active_at = now
            self.mark()
            if delivery.tracked:
                self.wake(now + delivery.wait(1))
        elif len(delivery.exhausted) != exhausted:
            self.mark()  # only for news: what is marked already may have to wait until it can be written
        if delivery.backlog.caught_up:
            self.owner.audience.wait(self)
        elif not more and self.waits and not delivery.full:
            self.owner.journal.hunger(self)
        return more

    def count(self) -> bool:
        """Go on counting what has yet to be delivered. False when others should have their turn before it is known."""
        delivery = self.delivery
        if delivery is None:
            return True
        self.owner.expose(self)
        return delivery.backlog.count(delivery.next_seq)

    @property
    def worked(self) -> int:
        """What has been done for this consumer so far, about: one for each delivery or every few looks."""
        delivery = self.delivery
        return 0 if delivery is None else delivery.next_number + delivery.backlog.looks // 8

    def num_pending(self) -> int:
        """Matching messages that were not delivered yet."""
        delivery = self.delivery
        if delivery is None:
            return 0
        self.owner.expose(self)
        return delivery.remaining()

    @property
    def paused(self) -> bool:
        """Whether deliveries wait for `pause_until`."""
        until = self.state.paused_until
        return until > 0 and until > self.runtime.time_ns()

    def tick(self, now: int) -> int:
        """Do what is due; when to look again."""
        delivery, side = self.delivery, self.side
        if delivery is None or side is None:
            return NEVER
        when = NEVER
        if self.paused:
            when = now + max(self.state.paused_until - self.runtime.time_ns(), 1)
        elif self._pause_told:
            self._pause_told = False
            self.advise_pause()
        delivery.expire(now)
        if self.serve(now):
            self.mark()
        if delivery.exhausted:
            self.mark()
        return min(when, side.tick(now), delivery.next_expiry(), self._check_activity(now))

    # --- activity

    def interest_lost(self) -> None:
        """Nobody listens on the deliver subject any more."""
        self._active_at = now = self.owner.now()
        self.wake(now + self.config.inactive_threshold)

    def answered(self) -> None:
        """Who created it, or asked, has the answer now: from here on it may be inactive."""
        self._active_at = self.owner.now()

    def _check_activity(self, now: int) -> int:
        threshold = self.config.inactive_threshold
        if not threshold and not self.config.durable:
            threshold = EPHEMERAL_THRESHOLD
        if not threshold:
            return NEVER
        side = self.side
        if self.owner.tallies.counts(self):  # whoever asked has no answer yet
            self._active_at = now
        elif isinstance(side, PushSide):
            if side.bound:
                self._active_at = now
                return NEVER
        elif side is not None and side.count() > 0:
            self._active_at = now
        at = self._active_at + threshold + self._jitter
        if at > now:
            return at
        self.owner.propose_removal(self)
        self._active_at = now
        return now + threshold

    # --- delivering

    def send(
        self, to: bytes, message: StoredMessage, number: int, pending: int, extra: tuple[bytes, bytes] | None = None
    ) -> int:
        """Send a message under consumer sequence `number`; how many got it."""
        delivery = self.delivery
        assert delivery is not None
        seq, time, subject, headers, payload = message
        deliveries = delivery.attempts.get(seq, 1) + 1 if delivery.picked_again else 1
        reply = b"%b%d.%d.%d.%d.%d" % (self._ack_prefix, deliveries, seq, number, time, pending)
        if self.config.headers_only:
            headers = with_headers(headers, ((b"Nats-Msg-Size", b"%d" % len(payload)),))
            payload = b""
        if extra is not None:
            headers = with_headers(headers, (extra,))
        return self._deliver(to, subject, reply, headers, payload)

    def send_run(self, to: bytes, messages: list[StoredMessage], number: int, left: int) -> int:
        """Send new messages in a row, the first under consumer sequence `number` with `left` matching ones from it on.

        Returns how many got through: the first one that nobody takes ends the run. The loop of every fast consumer.
        """
        if self.config.headers_only:
            for sent, message in enumerate(messages):
                if not self.send(to, message, number + sent, max(left - sent - 1, 0)):
                    return sent
            return len(messages)
        deliver, prefix = self._deliver, self._ack_prefix + b"1."
        sent = 0
        for seq, time, subject, headers, payload in messages:
            left -= 1
            reply = b"%b%d.%d.%d.%d" % (prefix, seq, number, time, left if left > 0 else 0)
            if not deliver(to, subject, reply, headers, payload):
                return sent
            sent += 1
            number += 1
        return sent

    def say(self, to: bytes, headers: bytes, reply: bytes = b"") -> None:
        """Send a client a status, a heartbeat or the like, after everything that was delivered before."""
        if self.outbox is not None:
            self.outbox.say(to, headers, reply)
        else:
            self.account.publish(to, b"", headers=headers, reply=reply)

    def size(self, message: StoredMessage, number: int, pending: int) -> int:
        """What a delivery counts against byte limits: subject, acknowledgement subject, headers and payload."""
        reply = len(self._ack_prefix) + len(f"1.{message.seq}.{number}.{message.time}.{pending}")
        payload = 0 if self.config.headers_only else len(message.payload)
        return len(message.subject) + reply + len(message.headers) + payload

    def position(self) -> tuple[int, int]:
        """Consumer and stream sequence of the last delivery, as info and heartbeats show them."""
        delivery, state = self.delivery, self.state
        if delivery is None:
            return state.delivered_number, state.delivered_seq
        return delivery.next_number - 1, delivery.last_sent

    # --- acknowledgements

    def acknowledged(self, seq: int) -> None:
        """A plain acknowledgement under policy explicit, by far the most frequent thing that clients say."""
        delivery = self.delivery
        if delivery is not None and delivery.acknowledge(seq):
            self.acked.append(seq)
            if self.id not in self.owner.journal.marked:
                self.owner.journal.mark(self)

    def acknowledged_many(self, seqs: list[int]) -> None:
        """The same, many at once."""
        delivery = self.delivery
        if delivery is not None and (taken := delivery.acknowledge_many(seqs)):
            self.acked += taken
            self.owner.journal.mark(self)

    def receive_ack(self, seq: int, number: int, deliveries: int, payload: bytes, reply: bytes) -> None:
        """What a client sent to the acknowledgement subject of a delivery."""
        delivery = self.delivery
        if delivery is None or seq >= delivery.next_seq:
            return
        self._active_at = now = self.owner.now()
        if payload in _ACK:
            self._acknowledge(seq, number, now)
        elif payload.startswith(b"-NAK"):
            self._negative(seq, number, deliveries, payload[4:].strip(), now)
        elif payload == b"+WPI":
            if delivery.progress(seq, now):
                self.mark()
        elif payload.startswith(b"+TERM"):
            if self._acknowledge(seq, number, now, sampled=False):
                self.terminated(seq, number, deliveries, payload[5:].strip().decode("utf-8", "replace"))
        elif payload.startswith(b"+NXT"):
            self._acknowledge(seq, number, now)
            if isinstance(self.side, PullSide) and reply:
                self.side.request(payload[4:], reply, now)
            return
        if reply:
            self.owner.journal.answer(self, reply)

    def _acknowledge(self, seq: int, number: int, now: int, sampled: bool = True) -> bool:
        delivery = self.leading
        record = delivery.record(seq) if self.config.sample_freq and sampled else None
        attempts = delivery.attempts.get(seq, 1)
        if self.config.ack_policy == "all":
            if seq <= self.state.floor_seq or not delivery.acknowledge_all(seq):
                return False
            if self.acked_to is None or seq > self.acked_to[0]:
                self.acked_to = (seq, number)
        else:
            if not delivery.acknowledge(seq):
                return False
            self.acked.append(seq)
        self.mark()
        if record is not None:
            self._sample(seq, record, attempts, now)
        return True

    def _sample(self, seq: int, record: Delivered, deliveries: int, now: int) -> None:
        if self.runtime.random.random() * 100 < sampled(self.config.sample_freq):
            ack_sample(self, seq, record[0], max(now - record[1], 1), deliveries)

    def _negative(self, seq: int, number: int, deliveries: int, argument: bytes, now: int) -> None:
        if not self.leading.negative(seq, _delay(argument), now):
            return
        fields = {"consumer_seq": number, "stream_seq": seq, "deliveries": deliveries}
        self.advise("MSG_NAKED", "nak", {**self.names(), **fields})
        self.mark()
        self.wake(self.leading.next_expiry())

    # --- what the outside is told

    def names(self) -> dict[str, Any]:
        """The fields that every consumer event starts with."""
        return {"stream": self.stream, "consumer": self.name}

    def advise(self, kind: str, type: str, fields: dict[str, Any]) -> None:
        """Publish an advisory if somebody listens."""
        advise(self, kind, type, fields)

    def terminated(self, seq: int, number: int, deliveries: int, reason: str) -> None:
        """Tell that a message will not be delivered again."""
        fields: dict[str, Any] = {"consumer_seq": number, "stream_seq": seq, "deliveries": deliveries}
        if reason:
            fields["reason"] = reason
        self.advise("MSG_TERMINATED", "terminated", {**self.names(), **fields})

    def advise_pause(self) -> None:
        """Tell that the consumer was paused or goes on."""
        fields: dict[str, Any] = {**self.names(), "paused": self.paused}
        fields["pause_until"] = format_time(self.state.paused_until) if self.state.paused_until else ""
        self.advise("PAUSE", "consumer_pause", fields)

    def pause_changed(self, now: int) -> None:
        """`paused_until` was applied while leading."""
        self._pause_told = self.paused
        self.advise_pause()
        self.wake(now)

    def info(self, *, listed: bool = False) -> dict[str, Any]:
        """ConsumerInfo without `type`. In lists the configuration lacks the version keys."""
        return consumer_info(self, listed=listed)

    # --- entries

    def take_delivered(self, now: int, everything: bool = False) -> list[Any] | None:
        """What was delivered since the last call, as an item of an entry; None when there is nothing to write.

        The position of consumers that are `lazy` is written once a second while it moves, unless `everything` is asked.
        """
        delivery = self.delivery
        if delivery is None or not (delivery.moved or delivery.exhausted):
            return None
        if self.lazy:
            if now - self._logged_at < CHECKPOINT and not everything:
                return None
            self._logged_at = now
        delivery.moved = False
        fresh, again, exhausted = delivery.fresh, delivery.again, delivery.exhausted
        last_seq = delivery.last_sent
        delivery.fresh, delivery.again, delivery.exhausted = {}, [], []
        delivery.flying.append(fresh)
        for seq in exhausted:
            fields = {"stream_seq": seq, "deliveries": self.config.max_deliver}
            self.advise("MAX_DELIVERIES", "max_deliver", {**self.names(), **fields})
        return [self.id, now, delivery.next_number - 1, last_seq, fresh, again, exhausted]

    def take_acks(self, now: int) -> list[Any] | None:
        """What was acknowledged since the last call, as an item of an entry; None when there is nothing to write."""
        delivery = self.delivery
        if delivery is None or not (self.acked or self.acked_to or delivery.touched or delivery.vanished):
            return None
        self.acked += delivery.vanished
        delivery.vanished.clear()
        delivery.last_acked_at = self._active_at = now
        acked, to, touched = self.acked, self.acked_to, delivery.touched
        self.acked, self.acked_to, delivery.touched = [], None, []
        return [self.id, now, acked, to, touched]


_JSON: Final = re.compile(rb"\s*\{")
_NAK: Final = Struct("ConsumerNakOptions", {"delay": DURATION})


def _delay(argument: bytes) -> int:
    """The delay of `-NAK <argument>` in nanoseconds; 0 when there is none or it cannot be read, as with nats-server."""
    if not argument:
        return 0
    try:
        if _JSON.match(argument):
            return decode(argument, _NAK, strict=False).get("delay", 0)
        return parse_duration(argument.decode("utf-8", "replace"))
    except (ApiError, ValueError):
        return 0
