"""Who waits for introductions at the cluster port, and who goes where too many do.

Owns the places of connections that others have opened and that are no routes yet. A server introduces itself within a
few round trips, so whoever has waited longest for nothing gives way: a stranger who holds connections open keeps no
server out, however soon he opens others in their place.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from nimsnats.source import source_of

if TYPE_CHECKING:
    from nimsnats.broker.route import RouteConnection

_MOST: Final = 256
_MOST_EACH: Final = 64
"""The same from one source, so that one alone costs the others nothing."""


class Strangers:
    """Those of one route table, the oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[RouteConnection, str] = {}

    def admit(self, newcomer: RouteConnection) -> RouteConnection | None:
        """Count one more; returns who has to go for it, which is somebody of its own source or of the one with most.

        One that has proven the cluster's secret goes only where nobody else is left to go.
        """
        source = source_of(newcomer.ip)
        self._waiting[newcomer] = source
        counts = Counter(self._waiting.values())
        if counts[source] <= _MOST_EACH and len(self._waiting) <= _MOST:
            return None
        crowded = source if counts[source] > _MOST_EACH else counts.most_common(1)[0][0]
        waiting = [route for route, its in self._waiting.items() if its == crowded]
        return next((route for route in waiting if not route.member), waiting[0])

    def forget(self, route: RouteConnection) -> None:
        """It is a route now, or has ended."""
        self._waiting.pop(route, None)
