"""The part of a plan that leaves this server: which routes get a message, and for which of the peer's queue groups.

Owns the choice between members here and at peers, and the shape of RMSG and HMSG. A peer gets one message however many
of its subscriptions match: plain interest and every group that was drawn for it travel together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from nimsnats.broker.subscription import RemoteSubscription, Subscription
from nimsnats.protocol.subject import fits_line

if TYPE_CHECKING:
    from nimsnats.broker.account import Outgoing
    from nimsnats.broker.plan import Target
    from nimsnats.broker.route import RouteConnection

_ACK: Final = b"$JS.ACK."
"""Replies of JetStream deliveries, behind which the stream's subject travels: `$JS.ACK.….@subject`."""
_ACK_DOTS: Final = 8


class MixedGroup:
    """A queue group with members at peers; each counts as often as it has members there."""

    __slots__ = ("members", "name", "total", "weights")

    def __init__(self, name: bytes, members: Sequence[Target | RemoteSubscription]) -> None:
        self.name = name
        self.members = tuple(members)
        self.weights = tuple(
            accumulate(member.weight if isinstance(member, RemoteSubscription) else 1 for member in members)
        )
        self.total = self.weights[-1]

    def choose(self, message: Outgoing, first: int, source: RouteConnection | None) -> RemoteSubscription | bool:
        """Hand the message to a member here, or name the peer that gets it; False when there is nobody left."""
        start = bisect_right(self.weights, first)
        count = len(self.members)
        for step in range(count):
            member = self.members[(start + step) % count]
            if isinstance(member, RemoteSubscription):
                if not member.route.closed and member.route is not source:
                    return member
                continue
            try:
                if message.offer(member):
                    return True
            except Exception as error:
                message.cut(member, error)
        return False


class Outward:
    """Peers that get the messages on one subject."""

    __slots__ = ("groups", "plain", "subject")

    def __init__(self, subject: bytes, plain: Iterable[RemoteSubscription], groups: Iterable[MixedGroup]) -> None:
        self.subject = subject
        self.plain = tuple(plain)
        self.groups = tuple(groups)

    def send(self, message: Outgoing, draw: Callable[[int], int], source: RouteConnection | None = None) -> int:
        """Send one message to every peer that is due; the number of receivers, peers and members here.

        `source` is the route that it came from, if any; it never goes back there.
        """
        reached = 0
        due: dict[RouteConnection, tuple[RemoteSubscription, list[bytes]]] = {
            sub.route: (sub, []) for sub in self.plain
        }
        for group in self.groups:
            chosen = group.choose(message, draw(group.total), source)
            if isinstance(chosen, RemoteSubscription):
                due.setdefault(chosen.route, (chosen, []))[1].append(group.name)
            else:
                reached += chosen
        for route, (sub, queues) in due.items():
            try:
                shaped = message.for_route(route)
                if shaped is not None:
                    reached += self._send(shaped, route, sub, b" ".join(queues))
            except Exception as error:
                route.output_broke(error)
        return reached

    def _send(self, message: Outgoing, route: RouteConnection, sub: RemoteSubscription, queues: bytes) -> bool:
        if b"\r" in message.reply or b"\n" in message.reply:
            return False  # the line would end the route
        headers = bool(message.headers) and route.headers
        prefix = (b"HMSG " if headers else b"RMSG ") + sub.account + b" " + self.subject + b" "
        tail = message.tail if headers or not message.headers else message.bare()
        size = message.size if headers else len(message.payload)
        if message.shown and message.reply.startswith(_ACK) and fits_line(message.subject):
            tail = message.reply + b"@" + message.subject + tail[len(message.reply) :]
        if queues:
            prefix, tail = marked(prefix, tail, queues)
            brakes = route.table.brakes
            if brakes.slowed:
                brakes.slow(sub.account, queues.split(b" "), message.origin)
        return route.take(sub, prefix, tail, size, message.origin)


def marked(prefix: bytes, tail: bytes, queues: bytes) -> tuple[bytes, bytes]:
    """Prefix and tail of a message for these queue groups (`a b c`) at the peer, from those of a plain one."""
    words = tail[: tail.index(b"\r")].split(b" ")
    if len(words) == 2 + prefix.startswith(b"H"):
        return b"%b+ %b %b " % (prefix, words[0], queues), tail[len(words[0]) + 1 :]
    return b"%b| %b " % (prefix, queues), tail


def shown_subject(reply: bytes) -> tuple[bytes, bytes] | None:
    """The reply and the subject to show, out of the reply of a JetStream delivery that came over a route."""
    if not reply.startswith(_ACK) or b"@" not in reply:
        return None
    dots = 0
    for at, byte in enumerate(reply):
        if byte == 46:
            dots += 1
        elif byte == 64 and dots >= _ACK_DOTS:
            return (reply[:at], reply[at + 1 :]) if at + 1 < len(reply) else None
    return None


def remote_prefix(sub: Subscription, subject: bytes, *, headers: bool = False) -> bytes:
    """`RMSG <account> <subject> `, or HMSG."""
    assert isinstance(sub, RemoteSubscription)
    return (b"HMSG " if headers else b"RMSG ") + sub.account + b" " + subject + b" "
