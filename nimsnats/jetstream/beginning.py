"""When a replica may begin here that storage does not have, and with whom.

Owns the rule that keeps a starting node from beginning anew, and empty, what it has long handed on: its catalogue may
be older than what it knew last, so nothing begins before it is current. Streams that have to wait for that wait here,
and are looked at again as soon as it is. Why founders may begin at all stands at `StreamRecord`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from nimsnats.jetstream.meta import Key, StreamRecord

if TYPE_CHECKING:
    from nimsnats.jetstream.engine import JetStream

_SOON: Final = 0.02
"""Seconds until the catalogue is looked at again while streams wait for it."""


class Beginning:
    """Of one node. `close` ends the waiting."""

    def __init__(self, engine: JetStream) -> None:
        self._engine = engine
        self._current = ""
        """The catalogue's group, once it is known to be current."""
        self._waiting: dict[Key, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def may(self, record: StreamRecord) -> bool:
        """Whether a replica may be open here: storage has it, or the catalogue is current."""
        return self._is_current() or record.group in self._engine.host.recorded_groups()

    def _is_current(self) -> bool:
        group = self._engine.meta.group
        if self._current != group.name and group.current and not group.impaired:
            self._current = group.name
        return self._current == group.name

    def founders(self, record: StreamRecord) -> list[str] | None:
        """Who begins a stream's group, if nothing of it is recorded here: all founders of one that is born whole, this
        node, or another (we join)."""
        me = self._engine.host.member
        if me in record.founders and me not in record.left:
            return record.founders
        begins = not record.members or record.founder == me
        if begins and not self._engine.ended.remembered(record):
            return None
        others = [member for member in (record.founder, *record.members) if member not in ("", me)]
        return others[:1] or ["-"]

    def postpone(self, key: Key) -> None:
        """Look at this stream again when the catalogue is current."""
        self._waiting[key] = None
        if self._timer is None:
            self._timer = self._engine.runtime.call_later(_SOON, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._is_current():
            waiting, self._waiting = self._waiting, {}
            for key in waiting:
                try:
                    self._engine.follow(key)
                except Exception as error:
                    self._engine.runtime.fence.caught(self._engine.follow, error)
                    self.postpone(key)
        else:
            self._timer = self._engine.runtime.call_later(_SOON, self._look)

    def close(self) -> None:
        """Look at nothing again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
