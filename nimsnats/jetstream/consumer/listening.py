"""What an account's consumers listen to: acknowledgements, flow control answers, interest.

Owns these subscriptions: one `$JS.ACK.>` and one `$JS.FC.>` for all streams of the account, because a subscription this
wide costs the broker one cached look-up for subjects that are used only once, and the watch on who comes and goes on
deliver subjects. Streams add their consumers when this node starts to lead them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nimsnats.broker.subscription import nobody
from nimsnats.identity import node_hash
from nimsnats.jetstream.consumer.push import PushSide
from nimsnats.jetstream.order import SubjectOrder
from nimsnats.jetstream.routed import nodes_group
from nimsnats.protocol.acks import ACK_DIGITS, ack_number
from nimsnats.protocol.subject import has_wildcard

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.subscription import Subscription
    from nimsnats.jetstream.consumer.consumer import Consumer


class Listening:
    """See the module; one for each account. `shared`: other nodes lead streams of this account too, so that what
    is published elsewhere comes here through subscriptions of single streams, which `serving.py` makes."""

    def __init__(self, account: Account, *, shared: bool = False) -> None:
        self._account = account
        self._shared = shared
        self._hash = node_hash(account.name).encode()
        self._streams: dict[bytes, Mapping[bytes, Consumer]] = {}
        self._subscriptions: list[Subscription] = []
        self._pushes: dict[bytes, dict[Consumer, None]] = {}
        """Push consumers by deliver subject."""
        self._order = SubjectOrder()
        """Their deliver subjects, for subscriptions with wildcards."""
        self._subjects: dict[Consumer, bytes] = {}
        self._unwatch: Callable[[], None] | None = None

    def add(self, stream: str, by_token: Mapping[bytes, Consumer]) -> None:
        """Listen for a stream; `by_token` are its consumers by name, now and later."""
        if not self._subscriptions:
            for kind, handler, acks in (("ACK", self._on_ack, self._on_acks), ("FC", self._on_flow, None)):
                subject = f"$JS.{kind}.>".encode()
                group = b"" if self._shared else nodes_group(kind)
                sub = self._account.subscribe(subject, handler, group, routed=not self._shared, acks=acks)
                self._subscriptions.append(sub)
        self._streams[stream.encode()] = by_token

    def remove(self, stream: str, consumers: Mapping[bytes, Consumer]) -> None:
        """Listen no more for a stream."""
        self._streams.pop(stream.encode(), None)
        for consumer in consumers.values():
            self.forget(consumer)
        if not self._streams:
            for subscription in self._subscriptions:
                self._account.unsubscribe(subscription)
            self._subscriptions.clear()

    def watch(self, consumer: Consumer) -> None:
        """Tell a push consumer when listeners on its deliver subject come and go."""
        self.forget(consumer)
        if not consumer.config.push:
            return
        subject = self._subjects[consumer] = consumer.config.deliver_subject.encode()
        if subject not in self._pushes:
            self._pushes[subject] = {}
            self._order.add(subject)
        self._pushes[subject][consumer] = None
        if self._unwatch is None:
            self._unwatch = self._account.watch_interest(self._interest_changed)

    def forget(self, consumer: Consumer) -> None:
        """A consumer is gone, or its deliver subject has changed."""
        subject = self._subjects.pop(consumer, None)
        if subject is None:
            return
        consumers = self._pushes[subject]
        del consumers[consumer]
        if not consumers:
            del self._pushes[subject]
            self._order.remove(subject)
        if not self._pushes and self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def _on_ack(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> bool | None:
        """`$JS.ACK.[<domain>.<account hash>.]<stream>.<consumer>.<deliveries>.<seq>.<number>.<time>.<pending>`."""
        parts = subject.split(b".")
        at = 2 if len(parts) == 9 else 4
        if at == 4 and (len(parts) < 11 or parts[3] != self._hash):
            return False
        consumers = self._streams.get(parts[at])
        consumer = consumers.get(parts[at + 1]) if consumers is not None else None
        if consumer is None or consumer.unacknowledged:
            return False
        if not reply and payload in _PLAIN and consumer.plain_acks:
            token = parts[at + 3]  # of more than 64 bits is no message's number, and none is waited for under it
            if token.isdigit() and len(token) <= ACK_DIGITS:
                consumer.acknowledged(int(token))
            return None
        seq, number, deliveries = map(ack_number, (parts[at + 3], parts[at + 4], parts[at + 2]))
        if min(seq, number, deliveries) >= 0:
            consumer.receive_ack(seq, number, deliveries, payload, reply)
        return None

    def _on_acks(self, name: bytes) -> Callable[[list[int]], None] | None:
        """What takes plain acknowledgements of the consumer `<stream>.<consumer>`, many at once."""
        stream, _, consumer_name = name.partition(b".")
        consumers = self._streams.get(stream)
        consumer = consumers.get(consumer_name) if consumers is not None else None
        if consumer is None or consumer.unacknowledged:
            return nobody
        return consumer.acknowledged_many if consumer.plain_acks else None

    def _on_flow(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> bool | None:
        tokens = subject.split(b".")
        consumers = self._streams.get(tokens[2]) if len(tokens) == 5 else None
        consumer = consumers.get(tokens[3]) if consumers is not None else None
        if consumer is None or not isinstance(consumer.side, PushSide):
            return False
        consumer.side.flow_answered(subject)
        return None

    def _interest_changed(self, subject: bytes, queue: bytes, added: bool) -> None:
        matching = self._order.every(subject) if has_wildcard(subject) else (subject,)
        concerned = [consumer for each in matching for consumer in self._pushes.get(each, ())]
        for consumer in concerned:
            try:
                _interest_changed(consumer)
            except Exception as error:
                consumer.runtime.fence.caught(_interest_changed, error)


def _interest_changed(consumer: Consumer) -> None:
    side = consumer.side
    if isinstance(side, PushSide) and side.interest_changed():
        if side.bound:
            consumer.mark()
        else:
            consumer.interest_lost()


_PLAIN = frozenset((b"", b"+ACK", b"+OK"))
