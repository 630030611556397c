"""A connection that messages come from: what happens to a run of them.

Owns the run path into the receivers' output queues, the same for clients and for routes. Which way a message goes is in
`plan`, what a single message meets is in `account`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nimsnats.broker.connection import Connection
from nimsnats.broker.msgtrace import destination, dispatch, suspected
from nimsnats.broker.plan import Fanout, Group, Headed, Internal, Lane, Plan

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.client import ClientConnection

_CHUNK: Final = 4096
"""Average message size from which a run is queued message by message instead of being joined."""


class Publisher(Connection):
    """One connection that publishes."""

    __slots__ = ("account", "headed")

    account: Account
    """Whose draws choose members of queue groups; for a client, the account that it is in."""
    headed: Headed | None
    """The lane of messages with headers to here, once there are any."""

    def run(self, lane: Lane, pieces: list[bytes], size: int) -> None:
        """See `Commands.run`: one receiver gets the pieces as they are, several share one piece per prefix."""
        if isinstance(lane, Connection):
            count = len(pieces) >> 1
            try:
                if lane.paused:  # what has to wait waits as one object, not as thousands
                    pieces = [b"".join(pieces)]
                self._give(lane, pieces, sum(map(len, pieces)), count, size)
            except Exception as error:
                lane.output_broke(error)
        elif isinstance(lane, Fanout):
            count = len(pieces) - 1
            for prefix, members in lane.groups:
                if size < count * _CHUNK:
                    shared = [prefix.join(pieces)]
                else:
                    shared = [piece for tail in pieces[1:] for piece in (prefix, tail)]
                length = sum(map(len, shared))
                for receiver, sub in members:
                    sub.delivered += count
                    try:
                        self._give(receiver, shared, length, count, size)
                    except Exception as error:
                        receiver.output_broke(error)
        elif isinstance(lane, Headed):
            self._headed(lane, pieces, size)
            return
        else:
            count = len(pieces) - 1
            if isinstance(lane, Group):
                self._share(lane, pieces)
            else:
                self._call(lane, pieces)
        self.in_msgs += count
        self.in_bytes += size

    def rows(self, subject: bytes) -> Lane | None:
        """See `Commands.rows`: not wanted, unless a kind of connection says otherwise."""
        del subject
        return None

    def run_rows(self, lane: Lane, replies: list[bytes], payloads: list[bytes], size: int) -> None:
        """See `Commands.run_rows`."""
        assert isinstance(lane, Internal) and lane.rows is not None
        count = len(replies)
        lane.delivered += count
        try:
            lane.rows(lane.subject, replies, payloads, self.known_as())
        except Exception as error:
            # how many of them were taken nobody knows, so none is handed over again
            for reply in replies:
                lane.account.failed(lane.rows, lane.subject, reply, error)
        self.in_msgs += count
        self.in_bytes += count * size

    def _share(self, lane: Group, pieces: list[bytes]) -> None:
        """Each message of a run goes to one member of a queue group, whoever is drawn."""
        members = lane.members
        count = len(members)
        draw = self.account.draw
        for tail in pieces[1:]:
            first = draw(count)
            payload = len(tail) - tail.find(10) - 3
            for step in range(count):
                sub, receiver, prefix = members[(first + step) % count]
                try:
                    if receiver.accept(sub, prefix, tail, payload, self):
                        break
                except Exception as error:
                    receiver.output_broke(error)

    @property
    def name(self) -> str:
        """What the connection calls itself, perhaps nothing."""
        raise NotImplementedError

    def known_as(self) -> ClientConnection | None:
        """The client that messages come from; None for those of peers."""
        raise NotImplementedError

    def plan_for(self, account: Account, subject: bytes) -> Plan:
        """The receivers of a message from here for plain subscriptions."""
        raise NotImplementedError

    def _headed(self, lane: Headed, pieces: list[bytes], size: int) -> None:
        """A run of messages with headers, and perhaps some among them that want to be traced."""
        inner = lane.lane
        if self.broker.tracer is None or not suspected(pieces, size):
            self.run(inner, pieces, size)
            return
        step = 2 if isinstance(inner, Connection) else 1
        for at in range(1, len(pieces), step):
            tail = pieces[at + step - 1]
            reply, block, payload = unpacked(tail, headers=True)
            if destination(block):
                self.in_msgs += 1
                self.in_bytes += len(block) + len(payload)
                self.broker.runtime.fence.run(self._trace, lane, pieces[at], reply, block, payload)
            else:
                self.run(inner, [b"", *pieces[at : at + step]], len(block) + len(payload))

    def _trace(self, lane: Headed, prefix: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        """Deliver one message of a run that wants to be traced; `prefix` as in `_receivers`."""
        account, plan = self._receivers(lane, prefix)
        try:
            dispatch(self, account, plan, (plan.subject, reply, block, payload), self.known_as())
        except Exception as error:
            account.failed(dispatch, plan.subject, reply, error)

    def _receivers(self, lane: Headed, prefix: bytes) -> tuple[Account, Plan]:
        """Whose a message of a run is, and its plan; `prefix` is what a single receiver would get before it."""
        if lane.account is not None and lane.plan is not None:
            return lane.account, lane.plan
        _, first, second, *_ = prefix.split(b" ")
        receiver = lane.lane
        assert isinstance(receiver, Publisher)
        client = receiver.known_as()
        if client is None:  # a peer: HMSG account subject
            return self.account, self.plan_for(self.account, second)
        sub = client.subs.get(second)
        if sub is not None:
            sub.delivered -= 1  # the parser has counted the message as one of a run
        return client.account, self.plan_for(client.account, first)

    def _call(self, lane: Internal, pieces: list[bytes]) -> None:
        """Each message of a run goes to a handler inside the server. What it raises costs that one message."""
        subject, handler, headers = lane.subject, lane.handler, lane.headers
        origin = self.known_as()
        rest = iter(pieces)
        next(rest)
        tail = reply = b""
        while True:
            try:
                for tail in rest:  # goes on behind the message that made an error
                    reply, block, payload = unpacked(tail, headers)
                    if handler(subject, reply, block, payload, origin) is False and reply:
                        self.unanswered(subject, reply)
                return
            except Exception as error:
                asker = reply if tail.startswith(reply + b" ") else b""  # else of the message before
                lane.account.failed(handler, subject, asker, error)

    def unanswered(self, subject: bytes, reply: bytes) -> None:
        """Nobody has taken a request from here."""
        del subject, reply

    def _give(self, receiver: Connection, pieces: list[bytes], length: int, count: int, size: int) -> None:
        receiver.out_msgs += count
        receiver.out_bytes += size
        receiver.out += pieces
        if not receiver.queued:
            self.broker.outbox.mark(receiver)
        receiver.queued += length
        if receiver.queued > receiver.brake:
            receiver.overfull(self)


def unpacked(tail: bytes, headers: bool) -> tuple[bytes, bytes, bytes]:
    """Reply, header block and payload out of `[reply ][header size ]size CRLF … CRLF`."""
    end = tail.find(10)
    words = tail[: end - 1].split(b" ")
    start = end + 1
    block = b""
    if headers:
        start += int(words[-2])
        block = tail[end + 1 : start]
    return words[0] if len(words) == 2 + headers else b"", block, tail[start:-2]
