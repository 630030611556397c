"""The way of a message on one subject to its receivers, worked out once and kept until interest changes.

Owns `Plan` (every receiver of a subject) and its ways for whole runs of messages: a connection, or a `Fanout` of
several. Plans hold no payload and deliver nothing by themselves; accounts and connections do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from nimsnats.broker.interest import SubscriptionSet
from nimsnats.broker.subscription import Subscription
from nimsnats.protocol.parser import Way

if TYPE_CHECKING:
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.subscription import Handler

Lane: TypeAlias = "ClientConnection | Fanout | Group | Internal"
"""What takes a run of messages."""

RESERVED = (b"$NRG.", b"$GR.", b"_GR_.")
"""Beginnings of subjects that clients may not publish to."""

Target = tuple[Subscription, bytes]
"""A subscription and `MSG <subject> <sid> ` for it (b"" for an internal one)."""


class Fanout:
    """The lane of several receivers, or none, that take a run of messages as it is.

    `groups` holds those with the same prefix together, because they are sent the same bytes.
    """

    __slots__ = ("delivered", "groups")

    def __init__(self, groups: dict[bytes, list[tuple[ClientConnection, Subscription]]]) -> None:
        self.groups = tuple((prefix, tuple(members)) for prefix, members in groups.items())
        self.delivered = 0


class Group:
    """The lane of one queue group: each message of a run goes to one of `members`."""

    __slots__ = ("delivered", "members")

    def __init__(self, members: list[tuple[Subscription, ClientConnection, bytes]]) -> None:
        self.members = tuple(members)
        self.delivered = 0


class Internal:
    """The lane of one handler inside the server, for messages with headers or for those without."""

    __slots__ = ("delivered", "handler", "headers", "subject")

    def __init__(self, subject: bytes, handler: Handler, *, headers: bool) -> None:
        self.subject = subject
        self.handler = handler
        self.headers = headers
        self.delivered = 0


class Plan:
    """Every receiver of one subject."""

    __slots__ = ("empty", "handlers", "header_way", "queues", "sole", "subject", "targets", "way")

    def __init__(self, subject: bytes, matches: Sequence[SubscriptionSet]) -> None:
        self.subject = subject
        self.way: Way[Lane] | None = None
        self.header_way: Way[Lane] | None = None
        self.targets: tuple[Target, ...] = ()
        self.handlers: tuple[Subscription, ...] = ()
        self.queues: tuple[tuple[Target, ...], ...] = ()
        self.sole: Target | None = None
        """The only receiver, when that is one plain client subscription: the usual case of replies."""
        if len(matches) == 1 and matches[0].queues is None and len(matches[0].plain) == 1:
            (sub,) = matches[0].plain
            if sub.handler is None:
                self.sole = (sub, b"MSG " + subject + b" " + sub.sid + b" ")
                self.targets = (self.sole,)
            else:
                self.handlers = (sub,)
        else:
            self._collect(matches)
        self.empty = not (self.targets or self.handlers or self.queues)

    def _collect(self, matches: Sequence[SubscriptionSet]) -> None:
        targets: list[Target] = []
        handlers: list[Subscription] = []
        queues: dict[bytes, list[Target]] = {}
        head = b"MSG " + self.subject + b" "
        for found in matches:
            for sub in found.plain:
                if sub.handler is None:
                    targets.append((sub, head + sub.sid + b" "))
                else:
                    handlers.append(sub)
            if found.queues is not None:
                for name, members in found.queues.items():
                    queues.setdefault(name, []).extend((sub, head + sub.sid + b" ") for sub in members)
        self.targets = tuple(targets)
        self.handlers = tuple(handlers)
        self.queues = tuple(tuple(members) for members in queues.values())

    def build_ways(self) -> None:
        """Work out `way` and `header_way`; they stay None where messages must go one by one.

        That is so when a handler or a queue group is not the only receiver, or when a receiver counts down
        (auto-unsubscribe), cannot take headers, or is one connection twice (it sees its subscriptions' messages
        interleaved); and for subjects that clients may not publish to, because each attempt is answered.
        """
        if self.subject.startswith(RESERVED):
            return
        if self.handlers or self.queues:
            if not self.targets and len(self.queues) + len(self.handlers) == 1:
                self._build_single()
            return
        if any(sub.limit for sub, _ in self.targets):
            return
        groups: dict[bytes, list[tuple[ClientConnection, Subscription]]] = {}
        seen: set[ClientConnection] = set()
        headers = True
        for sub, prefix in self.targets:
            client = sub.client
            assert client is not None
            if client in seen or client.trace:
                return
            seen.add(client)
            headers = headers and client.headers
            groups.setdefault(prefix, []).append((client, sub))
        self.way = _way(groups)
        if headers:
            self.header_way = _way({b"H" + prefix: members for prefix, members in groups.items()})

    def _build_single(self) -> None:
        """The only receiver is one handler or one queue group of clients."""
        for sub in self.handlers:
            assert sub.handler is not None
            self.way = _lane(Internal(self.subject, sub.handler, headers=False))
            self.header_way = _lane(Internal(self.subject, sub.handler, headers=True))
            return
        members: list[tuple[Subscription, ClientConnection, bytes]] = []
        for sub, prefix in self.queues[0]:
            if sub.client is None:
                return
            members.append((sub, sub.client, prefix))
        self.way = _lane(Group(members))
        if all(client.headers for _, client, _ in members):
            self.header_way = _lane(Group([(sub, client, b"H" + prefix) for sub, client, prefix in members]))


def _way(groups: dict[bytes, list[tuple[ClientConnection, Subscription]]]) -> Way[Lane]:
    """One receiver is a lane by itself: all its subscriptions share it, in the order of the messages."""
    if len(groups) == 1:
        ((prefix, members),) = groups.items()
        if len(members) == 1:
            client, sub = members[0]
            return client, sub, prefix
    return _lane(Fanout(groups))


def _lane(lane: Fanout | Group | Internal) -> Way[Lane]:
    """The way into a lane that puts prefixes in front itself, and counts for itself."""
    return lane, lane, b""
