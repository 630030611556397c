"""The way of a message on one subject to its receivers, worked out once and kept until interest changes.

Owns `Plan` (every receiver of a subject) and `Route` (the part of it that can take whole runs of messages). Plans hold
no payload and deliver nothing by themselves; `delivery` and the connections do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nimsnats.broker.interest import SubscriptionSet
from nimsnats.broker.subscription import Subscription

if TYPE_CHECKING:
    from nimsnats.broker.client import ClientConnection

Target = tuple[Subscription, bytes]
"""A subscription and `MSG <subject> <sid> ` for it (b"" for an internal one)."""


class Route:
    """Receivers that take a run of messages as it is: plain client subscriptions without a limit.

    `groups` holds those with the same prefix together, because they are sent the same bytes.
    """

    __slots__ = ("groups", "receivers")

    def __init__(self, groups: dict[bytes, list[tuple[ClientConnection, Subscription]]]) -> None:
        self.groups = tuple((prefix, tuple(members)) for prefix, members in groups.items())
        self.receivers = sum(len(members) for _, members in self.groups)


class Plan:
    """Every receiver of one subject."""

    __slots__ = ("handlers", "header_route", "queues", "route", "subject", "targets")

    def __init__(self, subject: bytes, matches: Iterable[SubscriptionSet]) -> None:
        self.subject = subject
        targets: list[Target] = []
        handlers: list[Subscription] = []
        queues: dict[bytes, list[Target]] = {}
        head = b"MSG " + subject + b" "
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
        self.route: Route | None = None
        self.header_route: Route | None = None

    def build_routes(self) -> None:
        """Work out `route` and `header_route`; they stay None where messages must go one by one.

        That is so when a receiver is chosen anew for each message (queue groups), counts down (auto-unsubscribe), is
        a handler, cannot take headers, or is one connection twice (it sees its subscriptions' messages interleaved).
        """
        if self.handlers or self.queues or any(sub.limit for sub, _ in self.targets):
            return
        plain: dict[bytes, list[tuple[ClientConnection, Subscription]]] = {}
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
        self.route = Route(plain)
        if headers:
            self.header_route = Route({b"H" + prefix: members for prefix, members in plain.items()})
