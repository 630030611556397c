"""An account: its own subject space, with its interest and the plans made from it.

Owns subscriptions, the cached plans, and delivery to whatever a plan names. It never parses and never writes to a
socket; clients' messages come in through `ClientConnection`, internal ones through `publish` and `deliver`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nimsnats.broker import reserved
from nimsnats.broker.interest import Interest
from nimsnats.broker.plan import Lane, Plan, Target
from nimsnats.broker.subscription import RemoteSubscription, RequestSubscription, StreamSubscription, Subscription
from nimsnats.protocol.acks import PREFIX as ACKS
from nimsnats.protocol.parser import Line
from nimsnats.protocol.subject import fits_line, has_wildcard, is_valid

if TYPE_CHECKING:
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.route import RouteConnection
    from nimsnats.broker.route_account import AccountRouting
    from nimsnats.broker.stats import BrokerStats
    from nimsnats.broker.subscription import AcksHandler, Handler, RowsHandler
    from nimsnats.fence import Fence
    from nimsnats.protocol.acks import AckRun
    from nimsnats.protocol.parser import AcksTaker

_PLANS_KEPT: Final = 16384
_SEEN_KEPT: Final = 8192
_FAILED: Final = b"NATS/1.0 500 Internal Server Error\r\n\r\n"
_FAILED_BODY: Final = b'{"error":{"code":500,"description":"internal error"}}'
"""What a requester gets whose request a handler could not take because of an error of ours: whoever reads the status
and whoever reads the body, as in JetStream's answers, hears the same."""

Lines = dict[bytes, Line[Lane]]
InterestListener = Callable[[bytes, bytes, bool], None]


class InvalidSubject(ValueError):
    """A subscription's subject has an empty token or something after `>`."""


class Account:
    """One isolated subject space."""

    def __init__(self, name: str, stats: BrokerStats, seed: int, fence: Fence) -> None:
        self.name = name
        self.stats = stats
        self.fence = fence
        self.interest = Interest()
        self.clients: dict[int, ClientConnection] = {}
        self.lines: Lines = {}
        """Control lines of clients that may send headers; see `protocol.parser.Commands.lines`."""
        self.plain_lines: Lines = {}
        """The same for clients that may not."""
        self._plans: dict[bytes, Plan] = {}
        self._seen: set[bytes] = set()
        self._listeners: dict[int, InterestListener] = {}
        self._listener_ids = 0
        self._draw = seed & 0x7FFFFFFF
        self.routing: AccountRouting | None = None
        """What peers must be told, and the plans of what comes from them; set while there are routes."""

    # -- interest -----------------------------------------------------------------------------------------------

    def subscribe(
        self,
        subject: bytes,
        handler: Handler,
        queue: bytes = b"",
        *,
        routed: bool = False,
        rows: RowsHandler | None = None,
        acks: AcksHandler | None = None,
        stream: str = "",
        costly: bool = False,
    ) -> Subscription:
        """An internal subscription: `handler` is called with every message, or `rows` or `acks` with many. Raises
        InvalidSubject.

        With a `queue` this server's member is preferred to those of peers. `routed`: peers are told, and send their
        clients' messages here; `origin` is None for these. `stream`: it is this stream that listens. `costly`: each
        message is a request, and as much work as many messages.
        Handlers run inside the reading of their publisher's input: they must not block. What one raises ends its part
        in that message only: it is logged and counted, and the publisher, if it wants an answer, is told (`failed`).
        """
        if stream:
            sub: Subscription = StreamSubscription(stream, subject, queue, handler, routed=routed, rows=rows, acks=acks)
        else:
            kind = RequestSubscription if costly else Subscription
            sub = kind(subject, queue, handler=handler, routed=routed, rows=rows, acks=acks)
        self.add(sub)
        return sub

    def unsubscribe(self, sub: Subscription) -> None:
        """Remove a subscription made with `subscribe`; nothing happens when it is gone already."""
        self.remove(sub)

    def add(self, sub: Subscription) -> None:
        """Add any subscription. Raises InvalidSubject, also for one of which no peer could be told."""
        if not is_valid(sub.subject) or not fits_line(sub.subject):
            raise InvalidSubject(sub.subject.decode("utf-8", "replace"))
        self._changed(sub.subject, everything=self.interest.insert(sub))
        if sub.routed and self.routing is not None:
            self.routing.added(sub)
        self._tell(sub, added=True)

    def remove(self, sub: Subscription) -> None:
        """Remove any subscription."""
        before = self.interest.count
        everything = self.interest.remove(sub)
        if self.interest.count == before:
            return
        self._changed(sub.subject, everything=everything)
        if sub.routed and self.routing is not None:
            self.routing.removed(sub)
        self._tell(sub, added=False)

    def _tell(self, sub: Subscription, *, added: bool) -> None:
        for listener in tuple(self._listeners.values()):
            try:
                listener(sub.subject, sub.queue, added)
            except Exception as error:
                self.fence.caught(listener, error)

    def limited(self, sub: Subscription) -> None:
        """A subscription's auto-unsubscribe limit changed: its messages are counted one by one from now on."""
        self._changed(sub.subject, everything=has_wildcard(sub.subject))

    def has_interest(self, subject: bytes, queue: bytes = b"") -> bool:
        """Whether anyone would receive a message on `subject`; with `queue`, whether a member of that group would."""
        matches = self.interest.match(subject)
        if not queue:
            return bool(matches)
        return any(found.queues is not None and queue in found.queues for found in matches)

    def watch_interest(self, listener: InterestListener) -> Callable[[], None]:
        """Call `listener(subject, queue, added)` for every subscription that comes or goes, until the returned call."""
        self._listener_ids += 1
        key = self._listener_ids
        self._listeners[key] = listener

        def unwatch() -> None:
            self._listeners.pop(key, None)

        return unwatch

    def _changed(self, subject: bytes, *, everything: bool) -> None:
        if self.routing is not None:
            self.routing.changed(subject, everything=everything)
        if everything:
            self._forget()
        elif self._plans.pop(subject, None) is not None:
            self.lines.clear()
            self.plain_lines.clear()

    def _forget(self) -> None:
        self._plans.clear()
        self.lines.clear()
        self.plain_lines.clear()

    # -- delivery -----------------------------------------------------------------------------------------------

    def known_plan(self, subject: bytes) -> Plan | None:
        """The plan of a subject that has been used before, with its ways worked out; None for any other."""
        return self._plans.get(subject)

    @property
    def cached_plans(self) -> int:
        """How many subjects have a kept plan (subsz `num_cache`)."""
        return len(self._plans)

    def plan(self, subject: bytes) -> Plan:
        """The receivers of `subject`. Kept from the second use on: most subjects of replies are used once."""
        plan = self._plans.get(subject)
        if plan is not None:
            return plan
        plan = Plan(subject, self.interest.match(subject))
        if subject in self._seen:
            if len(self._plans) >= _PLANS_KEPT:
                self._forget()
            plan.build_ways(self, reserved.PUBLISH)
            self._plans[subject] = plan
        else:
            if len(self._seen) >= _SEEN_KEPT:
                self._seen.clear()
            self._seen.add(subject)
        return plan

    def publish(self, subject: bytes, payload: bytes = b"", *, reply: bytes = b"", headers: bytes = b"") -> int:
        """Publish from inside the server; the number of receivers reached."""
        return self.dispatch(self.plan(subject), subject, reply, headers, payload, None)

    def deliver(self, to: bytes, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> int:
        """Route by `to` but show `subject` to the receiver, as JetStream does; the number of receivers reached."""
        return self.dispatch(self.plan(to), subject, reply, headers, payload, None)

    def acks(self, run: AckRun, *, onward: bool = True) -> AcksTaker | None:
        """What takes a consumer's plain acknowledgements together, `onward` also at peers; None when somebody wants
        them one by one."""
        found = self.interest.below(ACKS + run.consumer)
        if found is None:
            return None
        takers: list[Callable[[list[int]], None]] = []
        remotes: list[RemoteSubscription] = []
        for sub in [sub for each in found for sub in each]:
            if isinstance(sub, RemoteSubscription) and not sub.queue:
                remotes.append(sub)
                continue
            named = onward or not sub.queue  # a peer names the queue groups that its messages are for
            take = self._taker(sub.acks, run.consumer) if named and sub.acks is not None else None
            if take is None:
                return None
            takers.append(take)

        def give(seqs: list[int], text: bytes) -> None:
            for take in takers:
                try:
                    take(seqs)
                except Exception as error:
                    self.fence.caught(take, error)
                    self._give_singly(take, seqs)
            for remote in remotes if onward else ():
                remote.route.pass_on(remote, run, len(seqs), text)

        return give

    def _taker(self, named: AcksHandler, consumer: bytes) -> Callable[[list[int]], None] | None:
        try:
            return named(consumer)
        except Exception as error:
            self.fence.caught(named, error)
            return None

    def _give_singly(self, take: Callable[[list[int]], None], seqs: list[int]) -> None:
        """What could not be taken together; to acknowledge twice does no harm."""
        for seq in seqs:
            try:
                take([seq])
            except Exception as error:
                self.fence.caught(take, error)

    def failed(self, handler: Callable[..., object], subject: bytes, reply: bytes, error: Exception) -> None:
        """An error of ours has ended a handler's part in a message: log and count it, and tell who waits for an answer.

        Not who has acknowledged something and waits for the confirmation: any answer would be taken for one.
        """
        self.fence.caught(handler, error)
        if reply and not subject.startswith(ACKS):
            try:
                self.publish(reply, _FAILED_BODY, headers=_FAILED)
            except Exception as another:
                self.fence.caught(self.publish, another)

    def dispatch(
        self,
        plan: Plan,
        subject: bytes,
        reply: bytes,
        headers: bytes,
        payload: bytes,
        origin: ClientConnection | None,
    ) -> int:
        """Deliver one message to everyone in `plan`, shown under `subject`; the number of receivers reached."""
        sole = plan.sole
        if sole is not None:
            try:
                return _hand_over(sole, plan, subject, reply, headers, payload, origin)
            except Exception as error:
                Outgoing.cut(sole, error)
                return 0
        reached = 0
        if plan.targets or plan.queues or plan.outward is not None:
            reached = self.hand_out(plan, Outgoing(self, plan, subject, reply, headers, payload, origin))
        for sub in plan.handlers:
            handler = sub.handler
            assert handler is not None
            try:
                if handler(subject, reply, headers, payload, origin) is False:
                    continue
            except Exception as error:
                self.failed(handler, subject, reply, error)
            sub.delivered += 1
            reached += 1
        return reached

    def hand_out(self, plan: Plan, message: Outgoing) -> int:
        """Deliver one message to everyone in `plan` but its handlers; the number of receivers reached."""
        reached = 0
        for target in plan.targets:
            try:
                reached += message.offer(target)
            except Exception as error:
                message.cut(target, error)
        for members in plan.queues:
            reached += message.offer_one(members, self.draw(len(members)))
        if plan.outward is not None:
            reached += plan.outward.send(message, self.draw)
        return reached

    def draw(self, below: int) -> int:
        """A cheap draw: which member of a queue group is asked first."""
        self._draw = (self._draw * 1103515245 + 12345) & 0x7FFFFFFF
        return (self._draw >> 8) % below


def _hand_over(
    target: Target,
    plan: Plan,
    subject: bytes,
    reply: bytes,
    headers: bytes,
    payload: bytes,
    origin: ClientConnection | None,
) -> bool:
    """Give one message to its only receiver, a client: what `Outgoing` does, without the object."""
    sub, prefix = target
    client = sub.client
    assert client is not None
    if plan.subject != subject:
        prefix = b"MSG " + subject + b" " + sub.sid + b" "
    if reply:
        prefix = prefix + reply + b" "
    size = len(payload)
    if headers and client.headers:
        prefix = b"H" + prefix
        size += len(headers)
        tail = b"%d %d\r\n%b%b\r\n" % (len(headers), size, headers, payload)
    else:
        tail = b"%d\r\n%b\r\n" % (size, payload)
    return client.accept(sub, prefix, tail, size, origin)


class Outgoing:
    """One message on its way, in the shapes that receivers need, each made at most once."""

    __slots__ = ("_account", "_bare", "headers", "origin", "payload", "reply", "shown", "size", "subject", "tail")

    def __init__(
        self,
        account: Account,
        plan: Plan | None,
        subject: bytes,
        reply: bytes,
        headers: bytes,
        payload: bytes,
        origin: ClientConnection | None,
    ) -> None:
        self._account = account
        self.subject = subject
        self.reply = reply
        self.headers = headers
        self.payload = payload
        self.origin = origin
        self.shown = plan is not None and plan.subject is not subject and plan.subject != subject
        self.size = len(headers) + len(payload)
        self._bare = b""
        head = reply + b" " if reply else b""
        if headers:
            self.tail = b"%b%d %d\r\n%b%b\r\n" % (head, len(headers), self.size, headers, payload)
        else:
            self.tail = b"%b%d\r\n%b\r\n" % (head, self.size, payload)

    def offer(self, target: Target) -> bool:
        """Hand the message to one subscription; False when it does not take it."""
        sub, prefix = target
        client = sub.client
        if client is None:
            return self.hand_over(sub)
        if self.shown:
            prefix = b"MSG " + self.subject + b" " + sub.sid + b" "
        if not self.headers:
            return client.accept(sub, prefix, self.tail, self.size, self.origin)
        if client.headers:
            return client.accept(sub, b"H" + prefix, self.tail, self.size, self.origin)
        return client.accept(sub, prefix, self.bare(), len(self.payload), self.origin)

    def hand_over(self, sub: Subscription) -> bool:
        """Give the message to a handler inside the server; False when it does not take it."""
        if not self.call(sub, self.headers):
            return False
        sub.delivered += 1
        return True

    def call(self, sub: Subscription, headers: bytes) -> bool:
        """Call a handler with the message under these headers; False when it does not take it."""
        handler = sub.handler
        assert handler is not None
        try:
            return handler(self.subject, self.reply, headers, self.payload, self.origin) is not False
        except Exception as error:
            self._account.failed(handler, self.subject, self.reply, error)
            return True

    def for_route(self, route: RouteConnection) -> Outgoing | None:
        """The message as a peer shall get it; None if it shall not."""
        del route
        return self

    def bare(self) -> bytes:
        """The tail without headers."""
        if not self._bare:
            head = self.reply + b" " if self.reply else b""
            self._bare = b"%b%d\r\n%b\r\n" % (head, len(self.payload), self.payload)
        return self._bare

    def offer_one(self, members: tuple[Target, ...], first: int) -> bool:
        """Hand the message to one member of a queue group: `first`, or the next that takes it."""
        count = len(members)
        for step in range(count):
            target = members[(first + step) % count]
            try:
                if self.offer(target):
                    return True
            except Exception as error:
                self.cut(target, error)
        return False

    @staticmethod
    def cut(target: Target, error: Exception) -> None:
        """A client could not be given a message because of an error of ours: it gets nothing more."""
        client = target[0].client
        assert client is not None
        client.output_broke(error)
