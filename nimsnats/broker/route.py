"""A connection to another server: what each verb of the route protocol does.

Owns the handshake in both directions, the peer's interest, its messages, keep-alive. Framing is `protocol.route`, which
peers are welcome and what they are told of each other is `route_table`, receivers are `account`.

The side that dialled sends CONNECT, INFO and PING once it has seen the peer's INFO, and takes the route as accepted
from the first word that only an accepted route gets: so a peer that will refuse us is never reported as connected.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Final

from nimsnats.broker import reserved, route_handshake
from nimsnats.broker.account import InvalidSubject, Outgoing
from nimsnats.broker.msgtrace import destination, dispatch
from nimsnats.broker.plan import Lane, Plan
from nimsnats.broker.publisher import Publisher
from nimsnats.broker.reasons import Reason
from nimsnats.broker.route_groups import inside
from nimsnats.broker.route_outward import marked, shown_subject
from nimsnats.broker.subscription import RemoteSubscription, Subscription
from nimsnats.broker.trace import quoted, readable
from nimsnats.protocol.connect import BadConnect
from nimsnats.protocol.parser import AcksTaker, Failure, Line, Way
from nimsnats.protocol.route import RouteParser
from nimsnats.protocol.route_info import RouteConnect, RouteInfo

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.connection import Connection
    from nimsnats.broker.route_account import AccountRouting
    from nimsnats.broker.route_dial import Solicitation
    from nimsnats.broker.route_proof import RouteProof
    from nimsnats.broker.route_table import RouteTable
    from nimsnats.protocol.acks import AckRun

_PONG: Final = b"PONG\r\n"
_PING: Final = b"PING\r\n"
_FIRST_PING: Final = 1.0
"""Seconds after registration until the first PING, which measures the round trip."""
_LINES: Final = 16
"""How much longer control lines may be than those of clients."""
_BRAKE: Final = 8 * 1024 * 1024
"""Bytes waiting for a peer from which on publishers are slowed down: what comes behind them must not be late."""
_LARGEST: Final = 64 * 1024 * 1024
"""Bytes of a message that are taken at least; what servers send each other is not bound by max_payload."""
_STRANGERS_LARGEST: Final = 4096
"""Bytes of a message that are taken from who is not known yet: enough to say what it has done wrong."""
_NAME_SHOWN: Final = 256
"""Characters of a name that log lines show."""
_STRANGE_KEPT: Final = 10_000
"""Subscriptions in accounts that do not exist here, kept for the case that they will."""
_DEDICATED: Final = b"Not possible to have a dedicated route for account"
"""What a nats-server says that has tried to open a second route for its system account: no reason to worry."""
_FAILURES: Final = {
    Failure.UNKNOWN: Reason.PROTOCOL_VIOLATION,
    Failure.VIOLATION: Reason.PROTOCOL_VIOLATION,
    Failure.CONTROL_LINE: Reason.MAX_CONTROL_LINE,
    Failure.PAYLOAD: Reason.MAX_PAYLOAD,
    Failure.AUTHORIZATION: Reason.AUTHENTICATION_FAILURE,
}


class Stage(Enum):
    """How far the handshake is: nothing agreed; we have proven the secret and wait for the same; we have introduced
    ourselves; registered."""

    GREETING = 0
    CHALLENGED = 1
    OFFERED = 2
    UP = 3


class RouteConnection(Publisher):
    """One connection to a peer, and the `RouteCommands` of its parser. `dial` is set when we dialled."""

    KIND: ClassVar[str] = "Router"
    ID: ClassVar[str] = "rid"
    STALLS: ClassVar[bool] = False  # it carries everybody's messages: one slow client must not hold up all of them

    __slots__ = (
        "_doubted", "_held", "_ping_sent", "_strange", "contexts", "dial", "gone", "headers", "lines", "member", "peer",
        "pings_out", "proof", "rtt", "stage", "subs", "table",
    )  # fmt: skip

    def __init__(self, table: RouteTable, dial: Solicitation | None = None) -> None:
        super().__init__(table.broker, table.broker.next_id())
        options = table.broker.options
        self.table = table
        self.dial = dial
        self.parser = RouteParser(self, _STRANGERS_LARGEST, _LINES * options.max_control_line)
        self.account = table.broker.system_account
        self.lines: dict[bytes, Line[Lane]] = table.core_lines
        self.headed = None
        self.stage = Stage.GREETING
        self.peer: RouteInfo | None = None
        self.proof: RouteProof | None = None
        """Set where the peer has to prove the cluster's secret, or has done so."""
        self.member = False
        """Whether the peer may speak of the cluster's inner affairs; see `route_handshake`."""
        self.contexts = table.tls
        """What the connection begins with, whatever is renewed later."""
        self.headers = True
        self._measure()
        self.subs: dict[tuple[bytes, bytes, bytes], RemoteSubscription] = {}
        """The peer's interest by account, subject and queue."""
        self._strange: dict[tuple[bytes, bytes, bytes], int] = {}
        self.gone = asyncio.Event()
        self.rtt = 0.0
        """Seconds; 0 until it has been measured."""
        self.pings_out = 0
        self._ping_sent = 0
        self._doubted = False
        self._held = 0

    @property
    def name(self) -> str:
        """What the peer calls itself; its address before it has said so."""
        return self.peer.server_name if self.peer is not None else f"{self.ip}:{self.port}"

    @property
    def most(self) -> int:
        """Most bytes that may wait: more than for a client, because a route that is cut costs everybody."""
        return self.broker.options.max_pending * 2

    # -- life ---------------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """Who was dialled introduces itself first."""
        self._notice_cuts()
        self.table.opened(self)
        self.log(logging.DEBUG, "Route connection created")
        if self.dial is None and not self.broker.descriptors.spares(self.transport):
            self.close(Reason.MAX_CONNECTIONS)
            return
        tls = self.contexts
        if tls is None:
            self._greet()
        elif self.dial is None:
            self.upgrade(tls.listening, tls.timeout, self._greet)
        else:
            self.upgrade(tls.dialling, tls.timeout, self._greet, self.dial.tls_name)

    def _notice_cuts(self) -> None:
        """Have the kernel end the connection when the peer's machine has acknowledged nothing for a while (RFC 5482).
        Otherwise it repeats what it has sent at intervals that double: a way that was cut for seconds would be used
        again only as many seconds after it has healed, while a new connection would be up at once."""
        option: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)  # not everywhere
        found: socket.socket | None = self.transport.get_extra_info("socket") if self.transport is not None else None
        if option is not None and found is not None:
            found.setsockopt(socket.IPPROTO_TCP, option, int(self.table.options.cut_after * 1000))

    def _greet(self) -> None:
        """There is a limited time for introductions from now on."""
        if self.closed:
            return
        self.table.timers.set(self, self.table.options.auth_timeout)
        if self.dial is None:
            self.parser.awaiting_connect = True
            route_handshake.greet(self)

    def handshake_failed(self, why: str) -> None:
        """See `Connection.handshake_failed`."""
        self.table.complain(self, f"TLS route handshake error: {why}")

    def ended(self) -> None:
        """Give back the peer's interest and the place in the table."""
        self.broker.deadlines.cancel(self)
        try:
            self.table.forget(self)
        finally:
            self.gone.set()

    def drop_interest(self) -> None:
        """The peer's interest counts no longer."""
        for sub in self.subs.values():
            self.table.routings[sub.account].account.remove(sub)
        self.subs.clear()
        self._strange.clear()

    def fail(self, failure: Failure, detail: str) -> None:
        """The parser gave up."""
        if failure.value:
            self.refuse(failure.value, _FAILURES[failure], detail)
        else:
            self.table.complain(self, detail)
            self.close(_FAILURES[failure])

    def refuse(self, text: str, reason: Reason, detail: str = "") -> None:
        """Tell the peer why, and end the connection."""
        self.table.complain(self, detail or text)
        self.send(f"-ERR '{text}'\r\n".encode("utf-8", "replace"))
        self.close(reason)

    # -- handshake ----------------------------------------------------------------------------------------------

    def connect(self, arg: bytes) -> None:
        """CONNECT: only a peer that has dialled us says it, once; whatever comes later means nothing."""
        if self.dial is not None or not self.parser.awaiting_connect:
            return
        try:
            options = RouteConnect.parse(arg)
        except BadConnect as error:
            self.fail(Failure.VIOLATION, str(error))
            return
        route_handshake.connected(self, options)

    def info(self, arg: bytes) -> None:
        """INFO: the peer introduces itself, or tells of a newcomer, or of its own end."""
        try:
            info = RouteInfo.parse(arg)
        except BadConnect as error:
            self.fail(Failure.VIOLATION, str(error))
            return
        if self.stage is Stage.CHALLENGED:
            route_handshake.proven(self, info)
            return
        if self.peer is not None:
            self.table.heard(self, info)
            return
        self.peer = info
        self.headers = info.headers
        self.label += " - " + quoted(info.server_name[:_NAME_SHOWN])
        if self.dial is None:
            route_handshake.introduced(self, info)
        else:
            route_handshake.answered(self, info)

    def challenged(self) -> None:
        """We prove the secret, and nothing but the peer's proof comes into question next."""
        self.stage = Stage.CHALLENGED

    def offered(self) -> None:
        """We introduce ourselves."""
        self.stage = Stage.OFFERED
        self._trust()

    def _trust(self) -> None:
        """The peer is known: its messages may be as large as servers' messages are."""
        self.parser.max_payload = max(self.broker.options.max_pending, _LARGEST)

    def _accepted(self) -> bool:
        """Whether the peer may speak of interest and messages; its first word accepts a route that we dialled."""
        if self.stage is Stage.UP:
            return True
        if self.stage is Stage.OFFERED:
            self.table.register(self)
            return not self.closed
        self.fail(Failure.AUTHORIZATION, "spoke before its introduction")
        return False

    def early(self) -> bool:
        """See `Commands.early`."""
        return False

    # -- interest -----------------------------------------------------------------------------------------------

    def interested(self, account: bytes, subject: bytes, queue: bytes, weight: int) -> None:
        """RS+. An error of ours costs that subscription, not the route."""
        if self._accepted():
            try:
                self._interested(account, subject, queue, weight)
            except Exception as error:
                self.broker.runtime.fence.caught(self.interested, error)

    def _interested(self, account: bytes, subject: bytes, queue: bytes, weight: int) -> None:
        if not self.member and reserved.is_ours(subject, queue):
            self.table.complain(self, "interest in subjects or queue groups of nodes alone is ignored")
            return
        key = (account, subject, queue)
        routing = self.table.routings.get(account)
        if routing is None:
            if len(self._strange) < _STRANGE_KEPT:
                self._strange[key] = weight
            return
        known = self.subs.get(key)
        if known is not None:
            if known.weight != weight:
                known.weight = weight
                routing.account.limited(known)
            return
        sub = RemoteSubscription(account, subject, queue, weight, self)
        try:
            routing.account.add(sub)
        except InvalidSubject:
            self.table.complain(self, f"invalid subject {readable(subject)}")
            return
        self.subs[key] = sub

    def uninterested(self, account: bytes, subject: bytes, queue: bytes) -> None:
        """RS-."""
        if not self._accepted():
            return
        key = (account, subject, queue)
        self._strange.pop(key, None)
        sub = self.subs.pop(key, None)
        if sub is not None:
            try:
                self.table.routings[account].account.remove(sub)
            except Exception as error:
                self.broker.runtime.fence.caught(self.uninterested, error)

    def adopt(self, account: bytes) -> None:
        """An account that the peer has spoken of exists now."""
        for key in [key for key in self._strange if key[0] == account]:
            self.interested(*key, self._strange.pop(key))

    def known_as(self) -> ClientConnection | None:
        """See `Publisher.known_as`."""
        return None

    def plan_for(self, account: Account, subject: bytes) -> Plan:
        """See `Publisher.plan_for`."""
        assert account.routing is not None
        return account.routing.plan(subject, ())

    # -- messages from the peer ---------------------------------------------------------------------------------

    def arrival(
        self, account: bytes, subject: bytes, queues: tuple[bytes, ...], headers: bool, reply: bytes
    ) -> Way[Lane] | None:
        """See `RouteCommands.arrival`."""
        if self.stage is not Stage.UP or (reply[:1] == b"$" and shown_subject(reply) is not None):
            return None
        if not self.member:
            if subject.startswith(reserved.NODES) or reply.startswith(reserved.NODES):
                return None
            queues = inside(queues)
        routing = self.table.routings.get(account)
        plan = routing.known_plan(subject, queues) if routing is not None else None
        if plan is None:
            return None
        return plan.header_way if headers else plan.way

    def routed(
        self, account: bytes, subject: bytes, queues: tuple[bytes, ...], reply: bytes, header: int, body: bytes
    ) -> None:
        """RMSG and HMSG by the long way. An error of ours costs that message, not the route."""
        if not self._accepted():
            return
        self.in_msgs += 1
        self.in_bytes += len(body)
        routing = self.table.routings.get(account)
        if routing is not None:
            try:
                self._routed(routing, subject, queues, reply, header, body)
            except Exception as error:
                routing.account.failed(self.routed, subject, reply, error)

    def _routed(
        self, routing: AccountRouting, subject: bytes, queues: tuple[bytes, ...], reply: bytes, header: int, body: bytes
    ) -> None:
        if not self.member:
            if subject.startswith(reserved.NODES) or reply.startswith(reserved.NODES):
                self.table.complain(self, "messages that only nodes may send are dropped")
                return
            queues = inside(queues)
        plan = routing.plan(subject, queues)
        shown = shown_subject(reply) if reply[:1] == b"$" else None
        if shown is not None:
            reply, subject = shown
        block, payload = body[:header], body[header:]
        if block and self.broker.tracer is not None and destination(block):
            dispatch(self, routing.account, plan, (subject, reply, block, payload), None)
        else:
            routing.account.dispatch(plan, subject, reply, block, payload, None)
        if plan.stranded is not None:
            message = Outgoing(routing.account, plan, subject, reply, block, payload, None)
            plan.stranded.send(message, routing.account.draw, self)

    def acks(self, run: AckRun) -> AcksTaker | None:
        """See `Commands.acks`."""
        routing = self.table.routings.get(run.verb.split(b" ")[1]) if self.stage is Stage.UP else None
        take = routing.account.acks(run, onward=False) if routing is not None else None
        if take is None:
            return None

        def count(seqs: list[int], text: bytes) -> None:
            self.in_msgs += len(seqs)
            self.in_bytes += run.size * len(seqs)
            take(seqs, text)

        return count

    def pass_on(self, sub: RemoteSubscription, run: AckRun, count: int, text: bytes) -> None:
        """Send a client's acknowledgements to the peer as they came."""
        if self.closed:
            return
        sub.delivered += count
        self.out_msgs += count
        self.out_bytes += count * run.size
        self.send(text.replace(run.head, b"RMSG " + sub.account + b" " + run.head[len(run.verb) :]))

    # -- messages to the peer -----------------------------------------------------------------------------------

    def accept(self, sub: Subscription, prefix: bytes, tail: bytes, size: int, origin: Connection | None) -> bool:
        """Queue one message for a subscription of the peer, naming its queue; False when the route is closed."""
        if sub.queue:
            prefix, tail = marked(prefix, tail, sub.queue)
            brakes = self.table.brakes
            if brakes.slowed and isinstance(sub, RemoteSubscription):
                brakes.slow(sub.account, (sub.queue,), origin)
        return self.take(sub, prefix, tail, size, origin)

    def take(self, sub: Subscription, prefix: bytes, tail: bytes, size: int, origin: Connection | None) -> bool:
        """Queue one message as it is; False when the route is closed."""
        if self.closed:
            return False
        sub.delivered += 1
        self.out_msgs += 1
        self.out_bytes += size
        if not self.queued:
            self.broker.outbox.mark(self)
        self.out.append(prefix)
        self.out.append(tail)
        self.queued += len(prefix) + len(tail)
        if self.queued > self.brake:
            self.overfull(origin)
        return True

    def pause_writing(self) -> None:
        """See `Connection`; remembers how much the peer had still to take."""
        self._late = 0  # it has read since it was too slow the last time
        super().pause_writing()
        if self.transport is not None:
            self._held = self.transport.get_write_buffer_size()

    def _mark(self, held: int) -> int:
        return min(super()._mark(held), max(_BRAKE - held, 0))

    def write_deadline_passed(self) -> None:
        """A route is cut when nothing at all could be written within the deadline: it may be slow for long."""
        held = 0 if self.transport is None else self.transport.get_write_buffer_size()
        if not self.closed and held < self._held:
            self._held = held
            self.broker.deadlines.set(self, self.broker.options.write_deadline)
            return
        super().write_deadline_passed()

    # -- keep-alive ---------------------------------------------------------------------------------------------

    def up(self) -> None:
        """The table has registered this route."""
        self.stage = Stage.UP
        self._trust()
        if self.member:
            self.lines = self.table.lines
        self.table.timers.set(self, min(_FIRST_PING, self._interval()) * (1 + self.broker.runtime.random.random() / 5))

    def ping(self) -> None:
        """PING."""
        self.send(_PONG)

    def pong(self) -> None:
        """PONG: the peer is alive, and has accepted us."""
        if self.stage is Stage.OFFERED:
            self._accepted()
        self.pings_out = 0
        self._doubted = False
        if self._ping_sent:
            self.rtt = max(self.broker.runtime.boot_time_ns() - self._ping_sent, 1) / 1e9

    def timer(self) -> None:
        """The handshake took too long, or it is time for a PING."""
        if self.stage is not Stage.UP:
            self.refuse("Authentication Timeout", Reason.AUTHENTICATION_TIMEOUT)
            return
        if self._doubted or self.pings_out + 1 > self.broker.options.ping_max:
            self.broker.stats.stale_connections += 1
            self.refuse("Stale Connection", Reason.STALE)
            return
        self.ask()
        self.table.timers.set(self, self._interval())

    def doubt(self) -> None:
        """The peer is connecting anew: perhaps only this end of the connection is left, because an address has changed.
        Without an answer to a PING it ends soon."""
        if self.stage is Stage.UP and not self._doubted:
            self._doubted = True
            self.ask()
            self.table.timers.set(self, self.table.options.doubt)

    def ask(self) -> None:
        """Ask for a sign of life, or for the sign that we are accepted."""
        self.pings_out += 1
        self._ping_sent = self.broker.runtime.boot_time_ns()  # the loop's own clock counts milliseconds
        self.send(_PING)

    def _interval(self) -> float:
        return min(self.table.options.ping_interval, self.broker.options.ping_interval)

    # -- verbs of clients, which mean little here ---------------------------------------------------------------

    def route(self, subject: bytes, headers: bool, reply: bytes) -> Way[Lane] | None:
        """PUB: tolerated, without effect."""
        return None

    def announced(self, subject: bytes) -> None:
        """See `route`."""

    def message(self, subject: bytes, reply: bytes, header: int, data: bytes, start: int, end: int) -> None:
        """See `route`."""

    def subscribe(self, subject: bytes, queue: bytes, sid: bytes) -> None:
        """SUB: tolerated, without effect."""

    def unsubscribe(self, sid: bytes, limit: int) -> None:
        """UNSUB ends the connection."""
        self.fail(Failure.VIOLATION, "UNSUB on a route")

    def error(self, text: bytes) -> None:
        """A peer that reports an error is done."""
        if self.stage is Stage.CHALLENGED:
            self.table.complain(self, f"Route Error {readable(text)}: the peer refuses us; {route_handshake.SET_IT}")
        elif _DEDICATED not in text:
            self.table.complain(self, f"Route Error {readable(text)}")
        self.close(Reason.PARSE_ERROR)
