"""Taking published messages into a stream, and acknowledging them when they are durable.

Owns the subscriptions on the stream's subjects and the messages that wait for the next batch. The hot path of the
product: messages wait in columns, as they come from the connection when many come at once, and everything else is done
per batch. One batch is proposed in a tick, and while two are on their way to the disk, what arrives waits for the next:
batches grow with the load and an idle stream answers at once.

A replica that does not lead takes messages of its own clients, too, and sends them to the leader batch by batch
(`relay.py`). While nobody leads, they wait for a moment instead of being refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Final, cast

from nimsnats.broker.answers import publish_numbered
from nimsnats.jetstream import errors
from nimsnats.jetstream.admission import Duplicate
from nimsnats.jetstream.api.decode import encode
from nimsnats.jetstream.batch import BadBatch, Batch
from nimsnats.jetstream.clock import SECOND, format_duration
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.content import Outcome, Publication
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.expiry import parse_ttl
from nimsnats.jetstream.relay import Passenger
from nimsnats.jetstream.routed import publishers_group
from nimsnats.jetstream.stream import Stream
from nimsnats.jetstream.waiting import MAX_BATCH, MAX_BATCH_BYTES, Waiting
from nimsnats.protocol.headers import LINE, header_block, header_value, with_headers, without_header, without_status
from nimsnats.protocol.subject import has_empty_token
from nimsnats.raft.machine import NotLeader

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.brake import Brake
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.subscription import Subscription
    from nimsnats.jetstream.relay import Place, Relay

MAX_FLYING: Final = 2
"""Entries on their way to the disk before arrivals wait for a bigger batch."""
MAX_TRAVELLING: Final = 2
"""The same for batches on their way to the leader and back."""
QUEUE_MESSAGES: Final = 256 * 1024
QUEUE_BYTES: Final = 128 * 1024 * 1024
"""Waiting for the disk, or for the leader. Above these, publishes are refused (429), as in nats-server."""
FULL_MESSAGES: Final = 24 * 1024
FULL_BYTES: Final = 32 * 1024 * 1024
"""Waiting from which on publishers are slowed down."""
ROOM_MESSAGES: Final = 16 * 1024
ROOM_BYTES: Final = 16 * 1024 * 1024
"""Waiting below which they go on: enough for the next batches."""
_LEADERLESS: Final = 2.5
"""Seconds that messages wait for a leader before their publishers are told that there is none."""
_AGAIN: Final = 0.05
"""Seconds after which messages that wait for a leader are tried again."""
_ANSWERED: Final = 5.0
"""Seconds within which the leader answers a batch, or will not."""
_FAREWELL: Final = 1.0
"""The same for one that leads no more."""
_NO_LEADER: Final = b"NATS/1.0 503\r\n\r\n"


class _Flight(Passenger):
    """A batch between proposal and commit, with the messages that it is made of and whose replies are due."""

    __slots__ = ("count", "ingest", "messages", "replies", "sent")

    def __init__(self, ingest: Ingest, batch: Batch, messages: Waiting, *, answered: bool) -> None:
        super().__init__(batch)
        self.ingest = ingest
        self.messages = messages
        self.replies = messages.replies if answered and any(messages.replies) else None
        self.count = len(batch)
        self.sent = 0.0

    def stored(self, first: int) -> None:
        """Acknowledge all of it."""
        self.ingest.landed(self)
        if self.replies is not None:
            self.ingest.acknowledge(self.replies, range(first, first + self.count))

    def decided(self, outcomes: Sequence[Outcome]) -> None:
        """Answer each message by itself."""
        self.ingest.landed(self)
        if self.replies is not None:
            self.ingest.answer(self.replies, outcomes)

    def refused(self, error: Exception) -> None:
        """Tell everybody that nothing was stored."""
        self.ingest.landed(self)
        if self.replies is not None:
            told = error if isinstance(error, ApiError) else errors.STREAM_STORE_FAILED(err=error)
            self.ingest.answer(self.replies, [told] * self.count)

    def elsewhere(self) -> None:
        """Try again."""
        self.ingest.returned(self)


class Ingest:
    """The way into one stream; with a `relay`, also where another node leads it. `group` is its group's name, `brake`
    slows its publishers."""

    def __init__(
        self,
        stream: Stream,
        account: Account,
        brake: Brake,
        *,
        domain: str = "",
        relay: Relay | None = None,
        group: str = "",
    ) -> None:
        self._stream = stream
        self._account = account
        self._brake = brake
        self._relay = relay
        self._place: Place = (account.name, stream.name, group)
        self._runtime = stream.runtime
        self._domain = domain
        self._subscriptions: dict[str, Subscription] = {}
        self._pending = Waiting()
        self._scheduled = False
        self._flying = 0
        self._travelling: dict[_Flight, None] = {}
        """Batches on their way to the leader, oldest first."""
        self._lingering: dict[_Flight, None] = {}
        """Batches that went to the leader before; it may still answer."""
        self._returned: list[_Flight] = []
        """Batches that did not meet it; they go again once those behind them are back, too."""
        self._watching = False
        self._leader = ""
        self._leaderless = 0.0
        """Since when messages wait for a leader; 0 while there is one."""
        self._routed = False
        self._closed = False
        self._last_time = 0
        self._prefix = self._ack_prefix()
        self.full: Callable[[], ApiError | None] = _room
        """Asked before a batch is proposed: why nothing may be stored now (set by the engine)."""

    def _ack_prefix(self) -> bytes:
        fields: dict[str, str] = {"stream": self._stream.name}
        if self._domain:
            fields["domain"] = self._domain
        return encode(fields)[:-1] + b',"seq":'

    # Coming in

    def listen(self) -> None:
        """Subscribe to what the stream's configuration says, no more and no less. Only the leader's subscriptions are
        told to other servers."""
        leading = self._stream.leading
        serving = not self._closed and (leading or self._relay is not None)
        wanted = dict.fromkeys(self._stream.config.subjects if serving else ())
        for subject in [subject for subject in self._subscriptions if subject not in wanted or leading != self._routed]:
            self._account.unsubscribe(self._subscriptions.pop(subject))
        self._routed = leading
        for subject in wanted:
            if subject not in self._subscriptions:
                group = publishers_group(self._stream.name)
                self._subscriptions[subject] = self._account.subscribe(
                    subject.encode(), self.receive, group,
                    routed=leading, rows=self.receive_rows, stream=self._stream.name,
                )  # fmt: skip

    def close(self) -> None:
        """Take no more messages. Batches on their way are still answered."""
        self._closed = True
        self.listen()
        self._nobody()

    def reopen(self) -> None:
        """Take messages again, after `close`."""
        self._closed = False
        self.listen()

    def receive(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> None:
        """One message of a matching subject."""
        pending = self._pending
        if not pending.payloads:
            self._schedule()
        try:
            pending.subjects.append(subject)
            pending.replies.append(reply)
            pending.headers.append(headers)
            pending.payloads.append(payload)
            pending.size += len(subject) + len(reply) + len(headers) + len(payload)
        except Exception:
            pending.realign()
            raise
        if pending.size > FULL_BYTES or len(pending.payloads) > FULL_MESSAGES:
            self._crowded(1, origin)

    def receive_rows(
        self, subject: bytes, replies: list[bytes], payloads: list[bytes], origin: ClientConnection | None
    ) -> None:
        """Many messages of one subject and one size."""
        count = len(payloads)
        pending = self._pending
        if not pending.payloads:
            self._schedule()
        try:
            pending.subjects += [subject] * count
            pending.replies += replies
            pending.headers += [b""] * count
            pending.payloads += payloads
            pending.size += count * (len(subject) + len(payloads[0])) + sum(map(len, replies))
        except Exception:
            pending.realign()
            raise
        if pending.size > FULL_BYTES or len(pending.payloads) > FULL_MESSAGES:
            self._crowded(count, origin)

    def _crowded(self, count: int, origin: ClientConnection | None) -> None:
        """Much waits, and `count` more have come: slow their publisher down, and refuse those for which there is no
        room at all, in as many steps as these are."""
        self._brake.hold(origin)
        pending = self._pending
        over = len(pending) - QUEUE_MESSAGES
        if pending.size > QUEUE_BYTES:
            over = max(over, ceil((pending.size - QUEUE_BYTES) / max(1, len(pending.payloads[-1]))))
        if over > 0:
            self._refuse(pending.drop_last(min(over, count)), errors.STREAM_TOO_MANY_REQUESTS())

    def _eased(self) -> None:
        """Something has left what waits: publishers who are held for it go on when that is not much any more."""
        pending = self._pending
        self._brake.moved(room=pending.size <= ROOM_BYTES and len(pending) <= ROOM_MESSAGES)

    def _schedule(self) -> None:
        if not self._scheduled and self._may_send():
            self._scheduled = True
            self._runtime.call_soon(self._flush)

    def _may_send(self) -> bool:
        if self._returned or self._lingering:  # these come first, if they come back
            return False
        return self._flying < MAX_FLYING and len(self._travelling) < MAX_TRAVELLING

    def _flush(self) -> None:
        self._scheduled = False
        while self._pending and self._may_send():
            pending = self._pending
            if len(pending) <= MAX_BATCH and pending.size <= MAX_BATCH_BYTES:
                self._pending = Waiting()
            else:
                pending = pending.first(pending.cut())
            if not self._send(pending):
                pending.extend(self._pending)
                self._pending = pending
                self._wait_for_leader()
                return
            self._leaderless = 0.0
            self._eased()

    def _send(self, messages: Waiting) -> bool:
        """Make a batch of these and propose it, here or where the leader is. False when there is no leader."""
        stream = self._stream
        if not stream.leading and self._relay is None:
            return False
        refusal = self.full() if stream.leading else None
        if refusal is not None:
            self._refuse(messages.replies, refusal)
            return True
        try:
            headers = self._prepare(stream.config, messages.headers) if any(messages.headers) else None
            batch = Batch(self._now(), messages.subjects, messages.payloads, headers)
            if stream.leading:
                batch.told = stream.tell()
            data = batch.encode()
        except Exception as error:
            self._runtime.fence.caught(self._send, error)
            return self._send_singly(messages)
        flight = _Flight(self, batch, messages, answered=not stream.config.no_ack)
        return self._propose(flight, data) if stream.leading else self._pass_on(flight, data)

    def _send_singly(self, messages: Waiting) -> bool:
        """No batch can be made of all these: whoever's message is to blame hears so, the others' are stored."""
        if len(messages) == 1:
            self._refuse(messages.replies, errors.STREAM_STORE_FAILED(err="internal error"))
            return True
        while messages:
            one = messages.first(1)
            if not self._send(one):
                messages.put_back(one)
                return False
        return True

    def _now(self) -> int:
        self._last_time = max(self._runtime.time_ns(), self._last_time, self._stream.store.last_time)
        return self._last_time

    def _propose(self, flight: _Flight, data: bytes) -> bool:
        try:
            self._stream.propose_batch(flight, data)
        except NotLeader:
            return False
        self._flying += 1
        return True

    # Where another node leads

    def _pass_on(self, flight: _Flight, data: bytes) -> bool:
        assert self._relay is not None
        leader = self._stream.group.leader
        if not leader or not self._relay.send(leader, self._place, flight, data):
            return False
        self._leader = leader
        self._travelling[flight] = None
        flight.sent = self._runtime.monotonic()
        if not self._watching:
            self._watching = True
            self._runtime.call_later(_ANSWERED, self._watch)
        return True

    def _watch(self) -> None:
        """Forget batches without an answer: what became of them nobody will tell."""
        assert self._relay is not None
        late = self._runtime.monotonic() - _ANSWERED
        lost = [flight for flight in (*self._travelling, *self._lingering) if flight.sent <= late]
        self._relay.forget(lost)
        for flight in lost:
            self._arrived(flight)
        self._watching = bool(self._travelling or self._lingering)
        if self._watching:
            self._runtime.call_later(_ANSWERED, self._watch)

    def _arrived(self, flight: _Flight) -> bool:
        """A batch travels no longer. False for one that was proposed here."""
        if flight in self._travelling:
            del self._travelling[flight]
        elif flight in self._lingering:
            del self._lingering[flight]
        else:
            return False
        self._take_back()
        if self._pending:
            self._schedule()
        return True

    def relayed(self, data: bytes, remember: Callable[[Batch], Publication]) -> bool:
        """Propose a batch that another replica has taken. False when this node does not lead. Raises BadBatch."""
        stream = self._stream
        if not stream.leading:
            return False
        batch = Batch.decode(data)
        columns = batch.offsets is not None or batch.times is not None or batch.base
        if batch.expire or columns or batch.told or len(batch) > MAX_BATCH:
            raise BadBatch("batch that no client has published")
        if any(map(has_empty_token, batch.table)):
            raise BadBatch("subject that no stream has")
        refusal = self.full()
        if refusal is not None:
            remember(batch).decided([refusal] * len(batch))
            return True
        try:
            stream.propose_batch(remember(batch), batch.stamp(self._now(), data))
        except NotLeader:
            return False
        return True

    def leader_changed(self) -> None:
        """Another member leads, or none. What follows the batches that travel to the one before waits for their
        answers, because what comes back is sent again, in front of it; not for long, and not at all for a leader that
        cannot be reached."""
        if self._stream.leading or self._stream.group.leader != self._leader:
            if self._travelling:
                assert self._relay is not None
                patience = _FAREWELL if self._relay.reaches(self._leader) else 0
                self._runtime.call_later(patience, self._part, list(self._travelling))
            self._lingering |= self._travelling
            self._travelling.clear()
            self._take_back()
        if self._pending:
            self._schedule()

    def _part(self, flights: Sequence[_Flight]) -> None:
        """The leader of before has not answered these, and will not: what became of them nobody can tell. Publishers
        hear so, and need not wait for their time-outs."""
        assert self._relay is not None
        gone = [flight for flight in flights if flight in self._lingering]
        self._relay.forget(gone)
        for flight in gone:
            flight.refused(errors.CLUSTER_NOT_AVAIL())

    def returned(self, flight: _Flight) -> None:
        """A batch has not met the leader; those behind it will not either."""
        self._returned.append(flight)
        self._arrived(flight)
        self._take_back()

    def _take_back(self) -> None:
        """Once nothing travels, put what has returned in front of what waits."""
        if self._returned and not self._travelling and not self._lingering:
            messages = Waiting()
            for flight in self._returned:
                messages.extend(flight.messages)
            messages.extend(self._pending)
            self._pending = messages
            self._returned.clear()
            self._wait_for_leader()

    def _wait_for_leader(self) -> None:
        """Nobody leads, as far as this node can tell: try again in a moment, and not for ever."""
        now = self._runtime.monotonic()
        self._leaderless = self._leaderless or now
        if self._closed or now - self._leaderless > _LEADERLESS:
            self._leaderless = 0.0
            self._nobody()
        elif not self._scheduled:
            self._scheduled = True
            self._runtime.call_later(_AGAIN, self._flush)

    def _nobody(self) -> None:
        """Tell those who wait that nobody takes their messages."""
        refused, self._pending = self._pending, Waiting()
        self._brake.release()
        for reply in filter(None, refused.replies):
            self._account.publish(reply, headers=_NO_LEADER)

    def _prepare(self, config: StreamConfig, blocks: Sequence[bytes]) -> Sequence[bytes]:
        """Header blocks as they are stored: without a status text, short TTLs raised where markers need it."""
        headers: Sequence[bytes] = blocks
        if not all(block.startswith(LINE) for block in blocks if block):
            headers = [without_status(block) for block in blocks]
        least = config.subject_delete_marker_ttl
        if least and config.max_msgs_per_subject != 1:
            headers = [_raise_ttl(block, least) if b"\r\nNats-TTL:" in block else block for block in headers]
        return headers

    # Going out

    def landed(self, flight: _Flight) -> None:
        """A batch is committed or dropped; the next may go."""
        if not self._arrived(flight):
            self._flying -= 1
            if self._pending:
                self._schedule()

    def acknowledge(self, replies: Sequence[bytes], seqs: Sequence[int]) -> None:
        """Acknowledge messages that were stored under these sequences."""
        publish_numbered(self._account, replies, self._prefix, seqs)

    def answer(self, replies: Sequence[bytes], outcomes: Sequence[Outcome]) -> None:
        """Answer messages one by one, or together when all were stored."""
        if set(map(type, outcomes)) == {int}:
            self.acknowledge(replies, cast("Sequence[int]", outcomes))
            return
        publish, prefix = self._account.publish, self._prefix
        for reply, outcome in zip(replies, outcomes, strict=True):
            if not reply:
                continue
            if isinstance(outcome, int):
                publish(reply, b"%b%d}" % (prefix, outcome))
            elif isinstance(outcome, Duplicate):
                publish(reply, b'%b%d,"duplicate": true}' % (prefix, outcome.seq))
            else:
                publish(reply, self._error(outcome))

    def _error(self, error: ApiError) -> bytes:
        return encode({"error": error.body(), "stream": self._stream.name, "seq": 0})

    def _refuse(self, replies: Sequence[bytes], error: ApiError) -> None:
        if self._stream.config.no_ack or not any(replies):
            return
        body = self._error(error)
        headers = b"NATS/1.0 429 Too Many Requests\r\n\r\n" if error.code == 429 else b""
        for reply in replies:
            if reply:
                self._account.publish(reply, body, headers=headers)


def _room() -> ApiError | None:
    return None


def _raise_ttl(block: bytes, least: int) -> bytes:
    """The block with a `Nats-TTL` of at least `least` nanoseconds."""
    value = header_value(block, b"Nats-TTL")
    if value is None:
        return block
    try:
        ttl = parse_ttl(value)
    except ApiError:
        return block
    if not 0 < ttl < least:
        return block
    return with_headers(without_header(block, b"Nats-TTL"), ((b"Nats-TTL", b"%d" % (least // SECOND)),))


class Markers(Publication):
    """Delete markers that the stream itself publishes where a key has run out. Nobody waits for an answer."""

    __slots__ = ()

    @classmethod
    def at(cls, now: int, subjects: Sequence[bytes], ttl: int) -> Markers:
        """One marker for each subject, expiring everything that is due at `now` first."""
        block = header_block(
            (
                (b"Nats-Marker-Reason", b"MaxAge"),
                (b"Nats-TTL", format_duration(ttl).encode()),
                (b"Nats-Rollup", b"sub"),
            )
        )
        count = len(subjects)
        return cls(Batch(now, subjects, [b""] * count, [block] * count, expire=True))
