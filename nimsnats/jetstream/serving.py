"""A stream in service on this node: its state machine, its way in, and the timer that proposes what has run out.

Owns the glue between `stream.py` (replicated, knows no clock) and the node: subscriptions follow leadership and
configuration, expiry follows the wall clock and is proposed, never done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from nimsnats.broker.subscription import indifferent
from nimsnats.jetstream import search
from nimsnats.jetstream.clock import SECOND
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.kinds import STREAM_CONFIG, STREAM_EXPIRE
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.publish import Ingest, Markers
from nimsnats.jetstream.replicas import Replicas
from nimsnats.jetstream.stream import Stream
from nimsnats.raft.machine import Group, NotLeader

if TYPE_CHECKING:
    from nimsnats.broker.brake import Brake
    from nimsnats.broker.subscription import Subscription
    from nimsnats.jetstream.api.dispatch import ApiDispatcher
    from nimsnats.jetstream.meta import StreamRecord
    from nimsnats.jetstream.relay import Relay

_LONGEST: Final = 3600.0
_BEHIND: Final = 256
"""Entries that a replica under load may have to apply and still counts as current."""
_GRACE: Final = 0.02
"""Seconds added to each expiry, so that messages which run out together go in one entry."""
_AGAIN: Final = 1.0
"""Seconds until expiry is tried again that has made an error."""


class ServedStream:
    """One stream, from opening its group to closing it. `group_name` is the name of its group.

    `record` is its line in the catalogue: while this node leads, configuration and members follow it. `brake` slows its
    publishers. With `shared`, the account's dispatcher, other nodes have clients of this stream, and are told what only
    its leader answers; with a `relay`, clients of this node can publish while another node leads.
    """

    def __init__(
        self,
        stream: Stream,
        record: StreamRecord,
        brake: Brake,
        *,
        domain: str = "",
        shared: ApiDispatcher | None = None,
        relay: Relay | None = None,
    ) -> None:
        self.stream = stream
        self.record = record
        self.group_name = record.group
        self.ingest = Ingest(stream, stream.account, brake, domain=domain, relay=relay, group=record.group)
        self.replicas: Replicas | None = None
        self.on_led: Callable[[bool], None] | None = None
        """Called when this node begins (True) or ceases to lead the stream while it is open."""
        self.settled = asyncio.Event()
        """Set while this node leads and the group has the configuration and the members of the catalogue."""
        self.failure: BaseException | None = None
        """Why the catalogue's configuration could not be taken over."""
        self._domain = domain
        self._shared = shared
        self._beacons: list[Subscription] = []
        self._proposed: dict[str, Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._lasting = 0
        """When the timer goes off; the oldest message that can grow too old, or a lower sequence."""
        self._expiring = False
        stream.on_leadership = self._leadership
        stream.on_config = self._configured
        stream.on_change = self._stored

    def opened(self, group: Group, *, adopt: bool = False) -> None:
        """The stream's group is open; `adopt` takes the configuration that it holds itself for the right one."""
        if adopt and self.stream.configured:
            self.record.config = self.stream.config.to_stored()
        stream = self.stream
        self.replicas = Replicas(group, lambda: self.record.members, stream.runtime, stream.log)
        stream.opened(group)
        group.on_leader = self.ingest.leader_changed
        self.ingest.listen()

    def _leadership(self, leading: bool) -> None:
        self._proposed = None
        if leading:
            self.review()
        elif self.replicas is not None:
            self.replicas.review()
        self.ingest.listen()
        self.announce()
        self._expiring, self._lasting = False, 0
        self._arm()
        if self.on_led is not None:
            self.on_led(leading)

    def follow(self, record: StreamRecord) -> None:
        """The catalogue says something new about this stream."""
        self.record = record
        self.review()

    def review(self) -> None:
        """Propose what the catalogue says and the stream does not; done by the leader, before it takes messages."""
        stream, record = self.stream, self.record
        if not stream.leading or self.replicas is None:
            self.settled.clear()
            return
        if not stream.configured:
            self._propose({"config": record.config, "created": record.created})
        elif stream.config != StreamConfig.from_stored(record.config):
            self._propose({"config": record.config})
        if stream.configured and stream.config == StreamConfig.from_stored(record.config):
            self.replicas.review()
            self.settled.set()
        else:
            self.settled.clear()

    def _propose(self, fields: dict[str, Any]) -> None:
        if fields == self._proposed:
            return
        done: asyncio.Future[Any] = self.stream.runtime.loop.create_future()
        done.add_done_callback(self._decided)
        try:
            self.stream.propose(STREAM_CONFIG, pack(fields), done)
        except NotLeader:
            done.cancel()
            return
        self._proposed = fields

    def _decided(self, done: asyncio.Future[Any]) -> None:
        """A proposed configuration was applied, or refused: the disk is full, or leadership is lost."""
        self.failure = None if done.cancelled() else done.exception()
        if self.failure is not None:
            self._proposed = None
            self.settled.set()

    @property
    def current(self) -> bool:
        """Whether this replica knows its leader and has applied nearly everything of whose commit it has heard."""
        group = self.stream.group
        return bool(group.leader) and max(group.committed, group.announced) - group.applied <= _BEHIND

    @property
    def ready(self) -> bool:
        """Whether this node leads the stream as the catalogue has it, with all its members."""
        return self.settled.is_set() and self.replicas is not None and self.replicas.complete.is_set()

    def announce(self) -> None:
        """Tell the other nodes, if there are any, which subjects only the leader answers. For acknowledgements the
        account's own wide subscriptions do the work: these only attract what is published elsewhere."""
        dispatcher = self._shared
        if dispatcher is None:
            return
        account, name = self.stream.account, self.stream.name.encode()
        for beacon in self._beacons:
            account.unsubscribe(beacon)
        self._beacons.clear()
        if not self.stream.leading or not dispatcher.several():
            return
        forms = [b"$JS.ACK.%b.>", b"$JS.FC.%b.>", *((b"$JS.ACK.*.*.%b.>",) if self._domain else ())]
        self._beacons = [account.subscribe(form % name, _attract, routed=True, acks=indifferent) for form in forms]
        for form in (b"CONSUMER.MSG.NEXT.%b.*", b"DIRECT.GET.%b", b"DIRECT.GET.%b.>"):
            subject = b"$JS.API." + form % name
            self._beacons.append(account.subscribe(subject, dispatcher.attracted, routed=True))

    def _configured(self, before: StreamConfig) -> None:
        self.review()
        if before.subjects != self.stream.config.subjects:
            self.ingest.listen()
        self._arm()

    async def close(self, *, deleted: bool = False) -> None:
        """Take no more messages and stop the consumers."""
        self.ingest.close()
        self.stream.leading = False
        self.announce()
        if self.replicas is not None:
            await self.replicas.close()
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
            oldest = search.next_live(store, self._lasting)
            while oldest in stream.expiry.never:
                oldest = search.next_live(store, oldest + 1)
            self._lasting = oldest or store.last_seq + 1
            found = search.describe(store, oldest) if oldest else None
            if found is not None:
                aged = found[1] + stream.config.max_age
                due = min(due, aged) if due else aged
        return due

    def _stored(self) -> None:
        """Messages were stored: only one with a TTL of its own can run out before those that are waited for."""
        due = self.stream.expiry.next_at()
        if self._timer is None or (due and due < self._due):
            self._arm()

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
        try:
            self._propose_expiry()
        except Exception as error:
            self.stream.runtime.fence.caught(self._propose_expiry, error)
            self._expiring = False
            self._due = self.stream.runtime.time_ns()
            self._timer = self.stream.runtime.call_later(_AGAIN, self._expire)

    def _propose_expiry(self) -> None:
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


def _attract(*message: object) -> bool:
    """The handler of a subscription that is only there to be announced: it takes nothing."""
    del message
    return False
