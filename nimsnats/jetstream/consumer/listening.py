"""What a leader listens to for the consumers of a stream: acknowledgements, flow control answers, interest.

Owns those subscriptions, three for a stream however many consumers it has, and the watch on who comes and goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nimsnats.identity import node_hash
from nimsnats.jetstream.consumer.push import PushSide

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.subscription import Subscription
    from nimsnats.jetstream.consumer.consumer import Consumer


class Listening:
    """See the module. `by_token` are the stream's consumers by name."""

    def __init__(self, account: Account, by_token: Mapping[bytes, Consumer], clock: Callable[[], int]) -> None:
        self._account = account
        self._by_token = by_token
        self._clock = clock
        self._subscriptions: list[Subscription] = []
        self._pushes: dict[str, Consumer] = {}
        self._unwatch: Callable[[], None] | None = None

    def start(self, stream: str) -> None:
        """Listen to everything that concerns this stream."""
        name = stream.encode()
        ack = b"$JS.ACK.%b.>" % name
        ack_v2 = b"$JS.ACK.*.%b.%b.>" % (node_hash(self._account.name).encode(), name)
        flow = b"$JS.FC.%b.>" % name
        for subject, handler in ((ack, self._on_ack), (ack_v2, self._on_ack), (flow, self._on_flow)):
            self._subscriptions.append(self._account.subscribe(subject, handler))

    def stop(self) -> None:
        """Listen no more."""
        for subscription in self._subscriptions:
            self._account.unsubscribe(subscription)
        self._subscriptions.clear()
        self._pushes.clear()
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def watch(self, consumer: Consumer) -> None:
        """Tell a push consumer when listeners on its deliver subject come and go."""
        if not consumer.config.push:
            return
        self._pushes[consumer.name] = consumer
        if self._unwatch is None:
            self._unwatch = self._account.watch_interest(self._interest_changed)

    def forget(self, consumer: Consumer) -> None:
        """A consumer is gone."""
        self._pushes.pop(consumer.name, None)

    def _on_ack(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> bool | None:
        """`….<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>`, one handler for both forms."""
        parts = subject.rsplit(b".", 6)
        consumer = self._by_token.get(parts[1]) if len(parts) == 7 else None
        if consumer is None or consumer.config.ack_policy == "none":
            return False
        try:
            deliveries, seq, number = int(parts[2]), int(parts[3]), int(parts[4])
        except ValueError:
            return None
        consumer.receive_ack(seq, number, deliveries, payload, reply, self._clock())
        return None

    def _on_flow(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> bool | None:
        tokens = subject.split(b".")
        consumer = self._by_token.get(tokens[3]) if len(tokens) == 5 else None
        if consumer is None or not isinstance(consumer.side, PushSide):
            return False
        consumer.side.flow_answered(subject)
        return None

    def _interest_changed(self, subject: bytes, queue: bytes, added: bool) -> None:
        for consumer in self._pushes.values():
            side = consumer.side
            if isinstance(side, PushSide) and side.concerns(subject) and side.interest_changed():
                if side.bound:
                    consumer.mark()
                else:
                    consumer.interest_lost(self._clock())
