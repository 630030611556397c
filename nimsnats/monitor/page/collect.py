"""Asks all nodes of the cluster what they have to say, over the system account, and keeps their latest answers.

Owns the asking: one request that every node hears, and a subscription for the answers. A node that does not answer is
known by what others say of it and by what it said last; it never holds up the rest for long. Nothing is asked while
nobody looks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nimsnats.identity import nuid
from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.page.facts import EXAMPLE, fits, nodez
from nimsnats.monitor.page.merge import Answer, overview
from nimsnats.monitor.view import NodeView
from nimsnats.protocol.json import loads

if TYPE_CHECKING:
    from nimsnats.broker.subscription import Subscription

_ALL: Final = b"$SYS.REQ.SERVER.PING.NODEZ"
_STOPS: Final = b"$SYS.SERVER.*.SHUTDOWN"
_PERIOD: Final = 0.9
"""Seconds that an overview serves; then all nodes are asked again. Less than what browsers get events at."""
_PATIENCE: Final = 0.4
"""Seconds that the first look waits for answers."""
_REMEMBERED: Final = 120.0
"""Seconds after which a node that nobody names any more is forgotten, unless it has stopped in order: then at once."""
_MOST_NODES: Final = 256
_FLOWS: Final = 10
"""Answers over which the forest's rates are taken: where events are seconds apart, a second shows none or too many."""


@dataclass(slots=True)
class _Known:
    """A node that has answered. `heard` is when, on the monotonic clock; `previous` its answer before the latest.

    `flows` is what its answers of the last seconds said of the forest.
    """

    latest: JsonObject
    heard: float
    previous: JsonObject | None = None
    flows: deque[JsonObject] = field(default_factory=lambda: deque(maxlen=_FLOWS))
    farewell: bool = False
    """It has said that it stops."""


class Collector:
    """The cluster as seen from one node. `close` at the end."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        self._runtime = view.broker.runtime
        self._known: dict[str, _Known] = {}
        self._inbox: Subscription | None = None
        self._farewells: Subscription | None = None
        self._answered = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self._asked = float("-inf")
        self._built = float("-inf")
        self._overview: JsonObject = {}
        self._refused = False

    async def overview(self) -> JsonObject:
        """What is known now, at most a second old; not to be changed. See `merge.overview` for its shape."""
        if self._asking is None and self._runtime.monotonic() - self._asked >= _PERIOD:
            self._asking = self._runtime.spawn(self._ask(), "status page")
            self._asking.add_done_callback(self._done)
        if self._asking is not None:
            await asyncio.shield(self._asking)
        return self._overview

    def close(self) -> None:
        """Ask no more. Idempotent."""
        if self._asking is not None:
            self._asking.cancel()
        for subscription in (self._inbox, self._farewells):
            if subscription is not None:
                self._view.broker.system_account.unsubscribe(subscription)
        self._inbox = self._farewells = None

    def _done(self, task: asyncio.Task[None]) -> None:
        self._asking = None

    async def _ask(self) -> None:
        before, self._asked = self._asked, self._runtime.monotonic()
        expected = self._expected(before)
        self._publish()
        try:
            async with asyncio.timeout(_PATIENCE):
                while any(self._age(name) > self._runtime.monotonic() - self._asked for name in expected):
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            pass  # whoever is late is shown as silent
        self._build()

    def _publish(self) -> None:
        account = self._view.broker.system_account
        if self._inbox is None:
            subject = f"_INBOX.{nuid(self._runtime.random)}".encode()
            self._inbox = account.subscribe(subject, self._receive, routed=True)
            self._farewells = account.subscribe(_STOPS, self._receive_farewell, routed=True)
        account.publish(_ALL, b"", reply=self._inbox.subject)

    def _expected(self, before: float) -> list[str]:
        """Peers that will answer at once: connected nodes of our kind, less those that left a question of just now
        (`before`, on the monotonic clock) without an answer."""
        table = self._view.broker.routes
        connected = list(table.connected()) if table is not None else []
        if self._asked - before > 3 * _PERIOD:
            return connected
        return [name for name in connected if name not in self._known or self._known[name].heard >= before]

    def _age(self, name: str) -> float:
        """Seconds since a node's latest answer."""
        known = self._known.get(name)
        return self._runtime.monotonic() - known.heard if known is not None else float("inf")

    def _receive(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: object) -> bool | None:
        """An answer, whenever it comes. What is no answer is refused, once in the log."""
        try:
            data: Any = loads(payload)["data"]
        except (ValueError, KeyError, TypeError):
            data = None
        if not fits(data, EXAMPLE) or (data["name"] not in self._known and len(self._known) >= _MOST_NODES):
            if not self._refused:
                self._refused = True
                log = logging.getLogger("nimsnats.monitor")
                log.warning("An answer for the status page makes no sense: a node of another version?")
            return None
        if data["name"] != self._view.broker.server_name:
            self._take(data)
        return None

    def _take(self, data: JsonObject) -> None:
        known = self._known.get(data["name"])
        if known is None:
            known = self._known[data["name"]] = _Known(data, self._runtime.monotonic())
        elif known.latest["now"] != data["now"]:
            known.flows.append({key: known.latest[key] for key in ("now", "flow")})
            known.previous, known.latest = known.latest, data
        known.heard, known.farewell = self._runtime.monotonic(), False
        self._answered.set()

    def _receive_farewell(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: object
    ) -> bool | None:
        """A node stops in order. It is away as long as somebody counts on it; then it has gone for good."""
        try:
            known = self._known.get(loads(payload)["server"]["name"])
        except (ValueError, KeyError, TypeError):
            return None  # whatever another server publishes there
        if known is not None:
            known.farewell = True
        return None

    def _build(self) -> None:
        own = nodez(self._view)
        self._take(own)
        named = {own["name"]}.union(own["known"], (route["name"] for route in own["routes"]))
        for name in self._known.keys() - named:
            if self._known[name].farewell or self._age(name) > _REMEMBERED:
                del self._known[name]
        answers = [
            Answer(one.latest, one.previous, self._age(name), one.flows[0] if one.flows else None)
            for name, one in self._known.items()
        ]
        self._overview = overview(self._view, own, answers)
