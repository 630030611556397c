"""The way of a message on one subject to its receivers, worked out once and kept until interest changes.

Owns `Plan` (every receiver of a subject) and its ways for whole runs of messages: a connection, or a `Fanout` of
several. Plans hold no payload and deliver nothing by themselves; accounts and connections do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from nimsnats.broker import reserved
from nimsnats.broker.interest import SubscriptionSet
from nimsnats.broker.route_outward import MixedGroup, Outward, remote_prefix
from nimsnats.broker.subscription import RemoteSubscription, Subscription
from nimsnats.protocol.parser import Way
from nimsnats.protocol.subject import fits_line

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.route import RouteConnection
    from nimsnats.broker.subscription import Handler, RowsHandler

Receiver: TypeAlias = "ClientConnection | RouteConnection"
"""A connection that messages go to."""

Lane: TypeAlias = "Receiver | Fanout | Group | Internal | Headed"
"""What takes a run of messages."""

_MOST_SHARES = 256
"""Members, counted by weight, up to which a queue group is a lane of its own."""

_RECEIVERS_A_LINE = 32
"""Receivers that can be given a message while one control line is processed singly."""

Target = tuple[Subscription, bytes]
"""A subscription and `MSG <subject> <sid> ` for it (b"" for an internal one)."""


class Fanout:
    """The lane of several receivers, or none, that take a run of messages as it is.

    `groups` holds those with the same prefix together, because they are sent the same bytes.
    """

    __slots__ = ("delivered", "groups")

    def __init__(self, groups: dict[bytes, list[tuple[Receiver, Subscription]]]) -> None:
        self.groups = tuple((prefix, tuple(members)) for prefix, members in groups.items())
        self.delivered = 0


class Group:
    """The lane of one queue group: each message of a run goes to one of `members`."""

    __slots__ = ("delivered", "members")

    def __init__(self, members: list[tuple[Subscription, Receiver, bytes]]) -> None:
        self.members = tuple(members)
        self.delivered = 0


class Internal:
    """The lane of one handler inside the server, for messages with headers or for those without."""

    __slots__ = ("account", "delivered", "handler", "headers", "rows", "subject")

    def __init__(
        self, account: Account, subject: bytes, handler: Handler, rows: RowsHandler | None = None, *, headers: bool
    ) -> None:
        self.account = account
        self.subject = subject
        self.handler = handler
        self.rows = rows
        self.headers = headers
        self.delivered = 0


class Headed:
    """The lane of messages with headers, which may want to be traced: else they go the way of `lane`.

    One stands for each receiver, so that runs of it go on over several subjects; for other lanes, `plan` and `account`
    say whose messages these are.
    """

    __slots__ = ("account", "delivered", "lane", "plan")

    def __init__(
        self, lane: Receiver | Fanout | Group | Internal, plan: Plan | None = None, account: Account | None = None
    ) -> None:
        self.lane = lane
        self.plan = plan
        self.account = account
        self.delivered = 0


class Plan:
    """Every receiver of one subject.

    `listed` is given for messages from a route: they go no further than this server, and only to those queue groups
    that the sender has named.
    """

    __slots__ = (
        "empty", "handlers", "header_way", "outward", "queues", "sole", "stranded", "subject", "targets", "way",
        "weight",
    )  # fmt: skip

    def __init__(
        self, subject: bytes, matches: Sequence[SubscriptionSet], listed: frozenset[bytes] | None = None
    ) -> None:
        self.subject = subject
        self.way: Way[Lane] | None = None
        self.header_way: Way[Lane] | None = None
        self.targets: tuple[Target, ...] = ()
        self.handlers: tuple[Subscription, ...] = ()
        self.queues: tuple[tuple[Target, ...], ...] = ()
        self.outward: Outward | None = None
        self.stranded: Outward | None = None
        """Listed groups with members at other peers only: the last one here has just left."""
        self.sole: Target | None = None
        """The only receiver, when that is one plain client subscription: the usual case of replies."""
        if not fits_line(subject):
            matches = _here(matches)
        if subject.startswith(reserved.NODES):
            matches = _between_nodes(matches)
        if len(matches) == 1 and matches[0].queues is None and len(matches[0].plain) == 1:
            (sub,) = matches[0].plain
            if sub.client is not None:
                self.sole = (sub, b"MSG " + subject + b" " + sub.sid + b" ")
                self.targets = (self.sole,)
            elif sub.handler is not None:
                self.handlers = (sub,)
            elif listed is None and isinstance(sub, RemoteSubscription):
                self.outward = Outward(subject, (sub,), ())
        else:
            self._collect(matches, listed)
        receivers = len(self.targets) + (len(self.outward.plain) if self.outward is not None else 0)
        self.weight = receivers // _RECEIVERS_A_LINE + sum([sub.cost for sub in self.handlers])
        """How many control lines' work it is to deliver a message, if that is much more than one (`Parser.left`)."""
        self.empty = not (self.targets or self.handlers or self.queues or self.outward)

    def _collect(self, matches: Sequence[SubscriptionSet], listed: frozenset[bytes] | None) -> None:
        targets: list[Target] = []
        handlers: list[Subscription] = []
        remotes: dict[RouteConnection, RemoteSubscription] = {}
        queues: dict[bytes, list[Subscription]] = {}
        head = b"MSG " + self.subject + b" "
        for found in matches:
            for sub in found.plain:
                if sub.client is not None:
                    targets.append((sub, head + sub.sid + b" "))
                elif sub.handler is not None:
                    handlers.append(sub)
                elif isinstance(sub, RemoteSubscription):
                    remotes.setdefault(sub.route, sub)
            if found.queues is not None:
                for name, members in found.queues.items():
                    if listed is None or name in listed:
                        queues.setdefault(name, []).extend(members)
        groups: list[tuple[Target, ...]] = []
        mixed: list[MixedGroup] = []
        for name, members in queues.items():
            inside = [sub for sub in members if sub.handler is not None]
            if len(inside) == 1:
                handlers += inside
                continue
            chosen: list[Target | RemoteSubscription] = []
            local: list[Target] = []
            for sub in inside or members:
                if isinstance(sub, RemoteSubscription):
                    chosen.append(sub)
                else:
                    local.append((sub, head + sub.sid + b" "))
            if chosen and (listed is None or not local):
                mixed.append(MixedGroup(name, (*local, *chosen)))
            elif local:
                groups.append(tuple(local))
        self.targets = tuple(targets)
        self.handlers = tuple(handlers)
        self.queues = tuple(groups)
        if listed is None and (remotes or mixed):
            self.outward = Outward(self.subject, remotes.values(), mixed)
        elif mixed:
            self.stranded = Outward(self.subject, (), mixed)

    def build_ways(self, account: Account, barred: tuple[bytes, ...] = ()) -> None:
        """Work out `way` and `header_way`; they stay None where messages must go one by one.

        `barred` are beginnings of subjects that the publishers may not use, because each attempt is answered. It is
        also so when a handler or a queue group is not the only receiver, or when a receiver counts down
        (auto-unsubscribe), cannot take headers, or is one connection twice (it sees its subscriptions' messages
        interleaved).
        """
        if self.subject.startswith(barred) or self.stranded is not None:
            return
        outward = self.outward
        mixed = outward.groups if outward is not None else ()
        remotes = outward.plain if outward is not None else ()
        if self.handlers or self.queues or mixed:
            if not (self.targets or remotes) and len(self.queues) + len(self.handlers) + len(mixed) == 1:
                self._build_single(mixed, account)
            return
        if any(sub.limit for sub, _ in self.targets):
            return
        plain: dict[bytes, list[tuple[Receiver, Subscription]]] = {}
        headed: dict[bytes, list[tuple[Receiver, Subscription]]] = {}
        seen: set[ClientConnection] = set()
        headers = True
        for sub, prefix in self.targets:
            client = sub.client
            assert client is not None
            if client in seen or client.trace:
                return
            seen.add(client)
            headers = headers and client.headers
            plain.setdefault(prefix, []).append((client, sub))
            headed.setdefault(b"H" + prefix, []).append((client, sub))
        for sub in remotes:
            headers = headers and sub.route.headers
            plain.setdefault(remote_prefix(sub, self.subject), []).append((sub.route, sub))
            headed.setdefault(remote_prefix(sub, self.subject, headers=True), []).append((sub.route, sub))
        self.way = _way(plain)
        if headers:
            self.header_way = self._headed(_way(headed), account)

    def _headed(self, way: Way[Lane], account: Account) -> Way[Lane]:
        """The way of messages with headers into a lane."""
        lane, tally, prefix = way
        if isinstance(lane, (Fanout, Group, Internal)):
            headed = Headed(lane, self._wayless(), account)
            return headed, headed, prefix
        assert not isinstance(lane, Headed)
        if lane.headed is None:
            lane.headed = Headed(lane)
        return lane.headed, tally, prefix

    def _wayless(self) -> Plan:
        """The same receivers without ways: what a way of this plan may hold. Plans come and go, and one that held
        itself would stay for ever once it is old (`collector`)."""
        plan = Plan.__new__(Plan)
        for name in Plan.__slots__:
            setattr(plan, name, getattr(self, name))
        plan.way = plan.header_way = None
        return plan

    def _build_single(self, mixed: Sequence[MixedGroup], account: Account) -> None:
        """The only receiver is one handler or one queue group of clients, here or at peers."""
        for sub in self.handlers:
            assert sub.handler is not None
            self.way = _lane(Internal(account, self.subject, sub.handler, sub.rows, headers=False))
            self.header_way = self._headed(_lane(Internal(account, self.subject, sub.handler, headers=True)), account)
            return
        members: list[tuple[Subscription, Receiver, bytes, bytes]] = []
        for member in mixed[0].members if mixed else self.queues[0]:
            if isinstance(member, RemoteSubscription):
                if member.weight + len(members) > _MOST_SHARES:
                    return
                prefixes = (remote_prefix(member, self.subject), remote_prefix(member, self.subject, headers=True))
                members += [(member, member.route, *prefixes)] * member.weight
                continue
            sub, prefix = member
            if sub.client is None:
                return
            members.append((sub, sub.client, prefix, b"H" + prefix))
        self.way = _lane(Group([(sub, receiver, prefix) for sub, receiver, prefix, _ in members]))
        if all(receiver.headers for _, receiver, _, _ in members):
            group = Group([(sub, receiver, prefix) for sub, receiver, _, prefix in members])
            self.header_way = self._headed(_lane(group), account)


def _here(matches: Sequence[SubscriptionSet]) -> list[SubscriptionSet]:
    """Of these, who is connected here. A subject that does not fit into a line would end the routes, or reach the
    peers as another one."""
    kept = SubscriptionSet()
    for found in matches:
        for sub in found:
            if not isinstance(sub, RemoteSubscription):
                kept.add(sub)
    return [kept] if kept else []


def _between_nodes(matches: Sequence[SubscriptionSet]) -> list[SubscriptionSet]:
    """Of these, who may hear what nodes say to each other: handlers in here, and members that have asked for it. A
    client that subscribes to everything has not asked for it, here or behind a member."""
    kept = SubscriptionSet()
    for found in matches:
        for sub in found:
            if sub.handler is not None or (
                isinstance(sub, RemoteSubscription) and sub.route.member and sub.subject.startswith(reserved.NODES)
            ):
                kept.add(sub)
    return [kept] if kept else []


def _way(groups: dict[bytes, list[tuple[Receiver, Subscription]]]) -> Way[Lane]:
    """One receiver is a lane by itself: all its subscriptions share it, in the order of the messages."""
    if len(groups) == 1:
        ((prefix, members),) = groups.items()
        if len(members) == 1:
            receiver, sub = members[0]
            return receiver, sub, prefix
    return _lane(Fanout(groups))


def _lane(lane: Fanout | Group | Internal) -> Way[Lane]:
    """The way into a lane that puts prefixes in front itself, and counts for itself."""
    return lane, lane, b""
