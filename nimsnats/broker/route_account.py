"""One account, seen from its routes: the interest that peers must be told of, and where messages from peers go.

Owns the counts behind RS+ and RS- (a subject is announced once, a queue group with its number of members) and the plans
of arriving messages, which end at this server. It knows no connection; what has to be said goes to `tell`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nimsnats.broker.plan import Lane, Plan
from nimsnats.broker.subscription import Subscription
from nimsnats.protocol.parser import Line

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.route_groups import GroupNames, OwnGroups, Tell

_PLANS_KEPT: Final = 16384
_SEEN_KEPT: Final = 8192

_Key = tuple[bytes, tuple[bytes, ...]]


class AccountRouting:
    """See the module. `lines` are the known control lines of all routes, which its changes of interest empty."""

    def __init__(
        self, account: Account, groups: OwnGroups, tell: Tell, lines: tuple[dict[bytes, Line[Lane]], ...]
    ) -> None:
        self.account = account
        self.name = account.name.encode()
        self._groups = groups
        self._tell = tell
        self._lines = lines
        self._plain: dict[bytes, int] = {}
        self._queues: dict[tuple[bytes, bytes], int] = {}
        self._plans: dict[_Key, Plan] = {}
        self._keys: dict[bytes, set[_Key]] = {}
        self._seen: set[_Key] = set()
        for sub in account.interest:
            if sub.routed:
                self._count(sub, 1)

    # -- what peers are told ------------------------------------------------------------------------------------

    def added(self, sub: Subscription) -> None:
        """A subscription that concerns peers has come."""
        count = self._count(sub, 1)
        if sub.queue:
            self._tell_weight(sub, count)
        elif count == 1:
            line = b"RS+ %b %b\r\n" % (self.name, sub.subject)
            self._tell(line, line)

    def removed(self, sub: Subscription) -> None:
        """A subscription that concerned peers has gone."""
        count = self._count(sub, -1)
        if sub.queue:
            self._tell_weight(sub, count)
        elif not count:
            line = b"RS- %b %b\r\n" % (self.name, sub.subject)
            self._tell(line, line)

    def everything(self, *, member: bool) -> list[bytes]:
        """The lines that a new peer is told."""
        lines = [b"RS+ %b %b\r\n" % (self.name, subject) for subject in self._plain]
        outside = self._groups.names.outside
        for (subject, queue), count in self._queues.items():
            lines.append(self._weight(subject, queue if member else outside(queue), count))
        return lines

    def renamed(self, before: GroupNames, now: GroupNames) -> bytes:
        """What core peers are told when our own groups have other names. The new ones come first: no message finds
        nobody, and one that meets both names comes here once."""
        begin: list[bytes] = []
        end: list[bytes] = []
        for (subject, queue), count in self._queues.items():
            old, new = before.outside(queue), now.outside(queue)
            if old != new:
                begin.append(self._weight(subject, new, count))
                end.append(self._weight(subject, old, 0))
        return b"".join(begin + end)

    def _tell_weight(self, sub: Subscription, count: int) -> None:
        outside = self._groups.names.outside(sub.queue)
        self._tell(self._weight(sub.subject, sub.queue, count), self._weight(sub.subject, outside, count))

    def _weight(self, subject: bytes, queue: bytes, count: int) -> bytes:
        if not count:
            return b"RS- %b %b %b\r\n" % (self.name, subject, queue)
        return b"RS+ %b %b %b %d\r\n" % (self.name, subject, queue, count)

    def _count(self, sub: Subscription, change: int) -> int:
        if sub.queue:
            key = (sub.subject, sub.queue)
            count = self._queues.get(key, 0) + change
            if count:
                self._queues[key] = count
            else:
                del self._queues[key]
            return count
        count = self._plain.get(sub.subject, 0) + change
        if count:
            self._plain[sub.subject] = count
        else:
            del self._plain[sub.subject]
        return count

    # -- what peers send ----------------------------------------------------------------------------------------

    def known_plan(self, subject: bytes, queues: tuple[bytes, ...]) -> Plan | None:
        """The plan of messages that have come before, with its ways worked out; None for any other."""
        return self._plans.get((subject, queues))

    def plan(self, subject: bytes, queues: tuple[bytes, ...]) -> Plan:
        """The receivers here of a message for plain subscriptions and `queues`. Kept from the second use on."""
        key = (subject, queues)
        plan = self._plans.get(key)
        if plan is not None:
            return plan
        plan = Plan(subject, self.account.interest.match(subject), frozenset(queues))
        if key in self._seen:
            if len(self._plans) >= _PLANS_KEPT:
                self._forget()
            plan.build_ways(self.account)
            self._plans[key] = plan
            self._keys.setdefault(subject, set()).add(key)
        else:
            if len(self._seen) >= _SEEN_KEPT:
                self._seen.clear()
            self._seen.add(key)
        return plan

    def changed(self, subject: bytes, *, everything: bool) -> None:
        """Interest changed in one literal subject, or in any number of them."""
        if everything:
            if self._plans:
                self._forget()
            return
        keys = self._keys.pop(subject, None)
        if keys is not None:
            for key in keys:
                del self._plans[key]
            self._forget_lines()

    def _forget(self) -> None:
        self._plans.clear()
        self._keys.clear()
        self._forget_lines()

    def _forget_lines(self) -> None:
        for lines in self._lines:
            lines.clear()
