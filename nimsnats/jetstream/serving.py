"""A stream in service on this node: its state machine, its way in, and the timer that proposes what has run out.

Owns the glue between `stream.py` (replicated, knows no clock) and the node: subscriptions follow leadership and
configuration, expiry follows the wall clock and is proposed, never done.
"""

from __future__ import annotations

import asyncio
from typing import Final

from nimsnats.jetstream import search
from nimsnats.jetstream.clock import SECOND
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.kinds import STREAM_EXPIRE
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.publish import Ingest, Markers
from nimsnats.jetstream.stream import Stream
from nimsnats.raft.machine import NotLeader

_LONGEST: Final = 3600.0
_GRACE: Final = 0.02
"""Seconds added to each expiry, so that messages which run out together go in one entry."""


class ServedStream:
    """One stream, from opening its group to closing it. `group_name` is the name of its group."""

    def __init__(self, stream: Stream, group_name: str, *, domain: str = "") -> None:
        self.stream = stream
        self.group_name = group_name
        self.ingest = Ingest(stream, stream.account, domain=domain)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0
        self._expiring = False
        stream.on_leadership = self._leadership
        stream.on_config = self._configured
        stream.on_change = self._arm

    def _leadership(self, leading: bool) -> None:
        del leading
        self.ingest.listen()
        self._expiring = False
        self._arm()

    def _configured(self, before: StreamConfig) -> None:
        if before.subjects != self.stream.config.subjects:
            self.ingest.listen()
        self._arm()

    async def close(self, *, deleted: bool = False) -> None:
        """Take no more messages and stop the consumers."""
        self.ingest.close()
        self.stream.leading = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self.stream.close(deleted=deleted)

    # Expiry

    def _next_due(self) -> int:
        """When the next message runs out, in nanoseconds since the epoch; 0 for never."""
        stream = self.stream
        due = stream.expiry.next_at()
        store = stream.store
        if stream.config.max_age and store.messages:
            oldest = store.first_seq
            while oldest in stream.expiry.never:
                oldest = search.next_live(store, oldest + 1)
            found = search.describe(store, oldest) if oldest else None
            if found is not None:
                aged = found[1] + stream.config.max_age
                due = min(due, aged) if due else aged
        return due

    def _arm(self) -> None:
        """Have the timer go off when the next message runs out, unless it goes off earlier anyway."""
        stream = self.stream
        if self._expiring or not stream.leading:
            return
        if not stream.config.max_age and not stream.expiry.next_at():
            return
        due = self._next_due()
        if not due or (self._timer is not None and self._due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        delay = max(0.0, (due - stream.runtime.time_ns()) / SECOND) + _GRACE
        self._timer = stream.runtime.call_later(min(delay, _LONGEST), self._expire)

    def _expire(self) -> None:
        self._timer = None
        stream = self.stream
        if not stream.leading:
            return
        now = stream.runtime.time_ns()
        due = self._next_due()
        if not due or due > now:
            self._arm()
            return
        self._expiring = True
        subjects = self._last_of_subjects(now) if stream.config.subject_delete_marker_ttl else []
        try:
            if subjects:
                markers = Markers.at(now, subjects, stream.config.subject_delete_marker_ttl)
                stream.propose_batch(markers, markers.batch.encode())
            else:
                stream.propose(STREAM_EXPIRE, pack({"now": now}))
        except NotLeader:
            self._expiring = False
            return
        stream.runtime.call_later(_GRACE, self._expired)

    def _expired(self) -> None:
        """Look again. Should the entry not be applied yet, proposing it twice does no harm."""
        self._expiring = False
        self._arm()

    def _last_of_subjects(self, now: int) -> list[bytes]:
        """Subjects that have no message left after expiry at `now` and whose last one leaves a marker."""
        stream = self.stream
        store = stream.store
        gone = {seq for seq in stream.expiry.due(now) if stream.live(seq)}
        if stream.config.max_age:
            end = search.seq_at_time(store, now - stream.config.max_age + 1)
            seq = search.next_live(store, 0)
            while 0 < seq < end:
                if seq not in stream.expiry.never:
                    gone.add(seq)
                seq = search.next_live(store, seq + 1)
        marked: dict[bytes, None] = {}
        for seq in sorted(gone):
            found = search.describe(store, seq)
            if found is None or store.index.last(found[0]) != seq or seq in stream.expiry.silent:
                continue
            if all(other in gone for other in store.index.seqs(found[0])):
                marked[found[0]] = None
        return list(marked)
