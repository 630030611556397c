"""Queues at other nodes that are full: what nodes tell each other about it, and the clients here that are held for it.

Owns the subject `$NIMS.SLOW` and the notices on it. A notice names an account, a queue group of a stream's
subscriptions and for how long it counts: whoever publishes here to that group over a route is held (`brake`) until the
notice is taken back or has run out, so that nothing depends on the last word arriving. Nodes that do not listen there,
older ones and core peers, are sent nothing: of what their clients publish too fast, what there is no room for is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from nimsnats.broker.brake import Brake
from nimsnats.protocol.json import BadJson, loads

if TYPE_CHECKING:
    import asyncio

    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.connection import Connection
    from nimsnats.broker.server import Broker
    from nimsnats.broker.subscription import Subscription

SUBJECT: Final = b"$NIMS.SLOW"
LEASE: Final = 0.5
"""Seconds that a notice counts."""
_AGAIN: Final = LEASE / 4
"""Seconds after which a notice that still holds is repeated."""
_LONGEST: Final = 10.0
"""Seconds for which a notice is believed at most."""
_MOST: Final = 10_000
"""Full queues elsewhere that are remembered."""


class _Full:
    """A full queue elsewhere: who is held for it, and when the notice of it runs out."""

    __slots__ = ("brake", "timer")

    def __init__(self, brake: Brake, timer: asyncio.TimerHandle) -> None:
        self.brake = brake
        self.timer = timer


class RouteBrakes:
    """The notices of one node, in both directions."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.slowed: dict[tuple[bytes, bytes], _Full] = {}
        """Full queues elsewhere, by account and queue group."""
        self._told: dict[tuple[str, str], float] = {}
        """When we told of a queue here that is full."""
        self._listening: Subscription | None = None

    def listen(self) -> None:
        """Hear the notices of other nodes."""
        self._listening = self._broker.system_account.subscribe(SUBJECT, self._hear, routed=True)

    def close(self) -> None:
        """Hear no more notices and hold nobody for those that came."""
        if self._listening is not None:
            self._broker.system_account.unsubscribe(self._listening)
            self._listening = None
        for key in list(self.slowed):
            self._forget(key)

    def tell(self, account: str, group: str, full: bool) -> None:
        """Tell the other nodes that a queue here is full, unless they have just heard it, or has room again."""
        key = (account, group)
        now = self._broker.runtime.monotonic()
        if full and now - self._told.get(key, -LEASE) < _AGAIN:
            return
        if full:
            self._told[key] = now
        else:
            self._told.pop(key, None)
        notice = {
            "server": self._broker.server_id,
            "account": account,
            "group": group,
            "seconds": LEASE if full else 0,
        }
        self._broker.system_account.publish(SUBJECT, json.dumps(notice).encode())

    def slow(self, account: bytes, groups: Iterable[bytes], publisher: Connection | None) -> None:
        """A message from `publisher` goes to these queue groups of a peer, while some are full."""
        if publisher is not None:
            for group in groups:
                full = self.slowed.get((account, group))
                if full is not None:
                    full.brake.hold(publisher)

    def _hear(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> None:
        del subject, reply, headers, origin
        notice = _read(payload)
        if notice is None:
            self._broker.log.warning("A notice of a full queue was not understood: %.200r", payload)
            return
        server, key, seconds = notice
        if server == self._broker.server_id:
            return
        if seconds <= 0:
            self._forget(key)
            return
        runtime = self._broker.runtime
        timer = runtime.call_later(min(seconds, _LONGEST), self._forget, key)
        known = self.slowed.get(key)
        if known is not None:
            known.timer.cancel()
            known.timer = timer
            known.brake.moved(room=False)
        elif len(self.slowed) < _MOST:
            self.slowed[key] = _Full(Brake(runtime, self._broker.stats), timer)
        else:
            timer.cancel()

    def _forget(self, key: tuple[bytes, bytes]) -> None:
        """A notice is taken back, or has run out."""
        known = self.slowed.pop(key, None)
        if known is not None:
            known.timer.cancel()
            known.brake.release()


def _read(payload: bytes) -> tuple[str, tuple[bytes, bytes], float] | None:
    """Server, account and queue group, seconds; None when it is no notice."""
    try:
        found: Any = loads(payload)
        server, account, group, seconds = (found[name] for name in ("server", "account", "group", "seconds"))
    except (BadJson, TypeError, KeyError):
        return None
    if not all(isinstance(text, str) for text in (server, account, group)):
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return server, (account.encode("utf-8", "replace"), group.encode("utf-8", "replace")), seconds
