"""A client's connection: what each verb of the client protocol does.

Owns CONNECT and authentication of one client, its subscriptions, publishing, keep-alive. Framing is `protocol.parser`,
bytes are `connection`, receivers are `account`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from nimsnats.broker import reserved, trace
from nimsnats.broker.account import Account, InvalidSubject, Lines
from nimsnats.broker.msgtrace import destination, dispatch
from nimsnats.broker.plan import Internal, Lane, Plan
from nimsnats.broker.publisher import Publisher
from nimsnats.broker.reasons import Reason
from nimsnats.broker.subscription import Subscription
from nimsnats.broker.trace import TRACE, quoted, readable
from nimsnats.broker.turns import Halt
from nimsnats.protocol.connect import BadConnect, ConnectOptions, parse_connect, parse_object
from nimsnats.protocol.parser import AcksTaker, Failure, Parser, Way
from nimsnats.protocol.subject import is_literal

if TYPE_CHECKING:
    from nimsnats.broker.auth import Identity
    from nimsnats.broker.connection import Connection
    from nimsnats.broker.server import Broker
    from nimsnats.broker.tls import TlsOptions
    from nimsnats.protocol.acks import AckRun

_OK: Final = b"+OK\r\n"
_PONG: Final = b"PONG\r\n"
_PING: Final = b"PING\r\n"
_FIRST_PING: Final = 2.0
"""Seconds after CONNECT until the first PING, which measures the round trip."""
_RTT_AGE: Final = 3600 * 10**9
"""Seconds after which the round trip is measured anew even on a busy connection."""
_AT_ONCE: Final = 256
"""Subscriptions that are given back before one looks at how long it has taken."""
_NO_LINES: Final[Lines] = {}
"""Stays empty: connections that need every message looked at know no control line."""
_FAILURES: Final = {
    Failure.UNKNOWN: Reason.PROTOCOL_VIOLATION,
    Failure.VIOLATION: Reason.PROTOCOL_VIOLATION,
    Failure.CONTROL_LINE: Reason.MAX_CONTROL_LINE,
    Failure.PAYLOAD: Reason.MAX_PAYLOAD,
    Failure.AUTHORIZATION: Reason.AUTHENTICATION_FAILURE,
}


class ClientConnection(Publisher):
    """One client, and the `Commands` of its parser."""

    __slots__ = (
        "_connected", "_first_pong", "_ping_sent", "auth_task", "echo", "headers", "identity", "kind", "lines",
        "local", "no_responders", "options", "pings_out", "plain", "rtt", "subs", "trace", "trusted", "verbose",
    )  # fmt: skip

    def __init__(self, broker: Broker, cid: int, *, local: bool = False, trusted: Identity | None = None) -> None:
        super().__init__(broker, cid)
        options = broker.options
        self.parser: Parser[Lane] = Parser(self, options.max_payload, options.max_control_line)
        self.kind = "Client"
        self.local = local
        self.trusted = trusted
        """As whom a connection of the program's own is let in, without credentials."""
        self.headed = None
        self.options = ConnectOptions()
        self.identity: Identity | None = None
        self.account: Account = broker.global_account
        self.subs: dict[bytes, Subscription] = {}
        self.lines: Lines = _NO_LINES
        self.verbose = True
        self.echo = True
        self.headers = False
        self.no_responders = False
        self.plain = False
        """Whether runs may be used: nothing has to be said or checked for each single message."""
        self.trace = options.trace
        self.rtt = 0.0
        """Seconds; 0 until it has been measured."""
        self.pings_out = 0
        self._ping_sent = 0
        self._connected = False
        self._first_pong = False
        self.auth_task: asyncio.Task[None] | None = None
        """A slow check of credentials; ends with the connection, the broker awaits it when it stops."""

    # -- life ---------------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """Greet the client with INFO, before or after it has changed to TLS, and wait for its first words."""
        broker = self.broker
        self.log(logging.DEBUG, "Client connection created")
        tls = broker.options.tls
        if tls is not None and tls.handshake_first and not self.local:
            if not broker.descriptors.admit(self.transport):
                self.close(Reason.MAX_CONNECTIONS)
                return
            broker.clients[self.cid] = self
            self._secure(tls, self._greet)
        else:
            self._greet()

    def _greet(self) -> None:
        broker = self.broker
        tls = broker.options.tls
        self._say(broker.info_line(self))
        others = len(broker.clients) - (self.cid in broker.clients)
        full = 0 <= broker.options.max_connections <= others
        if not self.local and (full or not broker.descriptors.admit(self.transport)):
            self._error("maximum connections exceeded", Reason.MAX_CONNECTIONS)
            return
        broker.clients[self.cid] = self
        if tls is None or tls.handshake_first or self.local:
            self._await_connect()
        else:
            self._secure(tls, self._await_connect)

    def _secure(self, tls: TlsOptions, ready: Callable[[], None]) -> None:
        assert self.broker.tls is not None
        self.upgrade(self.broker.tls, tls.timeout, ready)

    def handshake_failed(self, why: str) -> None:
        """See `Connection.handshake_failed`."""
        self.log(logging.ERROR, "TLS handshake error: %s", why)

    def _await_connect(self) -> None:
        broker = self.broker
        if self.closed:
            return
        auth = broker.authenticator
        if auth.required:
            self.parser.awaiting_connect = True
            broker.keepalive.set(self, broker.options.auth_timeout)
            return
        assert auth.default is not None
        self._bind(auth.default)
        broker.keepalive.set(self, broker.options.ping_interval)

    def ended(self) -> None:
        """Give back subscriptions, timers and the place among the clients."""
        broker = self.broker
        broker.keepalive.cancel(self)
        broker.deadlines.cancel(self)
        if self.auth_task is not None:
            self.auth_task.cancel()
            self.auth_task = None
        self._leave(list(reversed(self.subs.values())))
        self.account.clients.pop(self.cid, None)
        if self._connected:
            broker.tell(lambda listener: listener.disconnected, self)
        broker.forget(self)
        self.subs = {}
        self.lines = _NO_LINES
        self.headed = None
        self.options = ConnectOptions()  # passwords and signatures are of no use any more

    def _leave(self, subs: list[Subscription]) -> None:
        """Give subscriptions back, from the last of the list on, as many at a time as others can wait for."""
        slices = self.broker.slices
        end = slices.end() if len(subs) > _AT_ONCE else 0
        while subs:
            for sub in reversed(subs[-_AT_ONCE:]):
                self.account.remove(sub)
            del subs[-_AT_ONCE:]
            if subs and slices.over(end):
                slices.later(partial(self._leave, subs))
                return

    def fail(self, failure: Failure, detail: str) -> None:
        """The parser gave up."""
        self.log(logging.ERROR, "%s", detail)
        if failure is Failure.AUTHORIZATION:
            self._refuse()
        elif failure.value:
            self._error(failure.value, _FAILURES[failure])
        else:
            self.close(_FAILURES[failure])

    def _error(self, text: str, reason: Reason) -> None:
        self._say(f"-ERR '{text}'\r\n".encode())
        self.close(reason)

    def _say(self, data: bytes) -> None:
        if self.trace:
            self.log(TRACE, "->> [%s]", readable(data.strip()))
        self.send(data)

    # -- CONNECT ------------------------------------------------------------------------------------------------

    def connect(self, arg: bytes) -> None:
        """Read the options and authenticate; again on a repeated CONNECT, which drops the subscriptions."""
        if self.trace:
            self.log(TRACE, "<<- [CONNECT]")
        try:
            parse_connect(arg, self.options)
        except BadConnect as error:
            self.log(logging.ERROR, "%s", error)
            self.close(Reason.PROTOCOL_VIOLATION)
            return
        self._relabel()
        if not self.rtt:  # an estimate, until the first PING is answered
            self.rtt = max(self.broker.runtime.time_ns() - self.start_ns, 1) / 1e9
        let_in_early = self.broker.authenticator.required and not self.parser.awaiting_connect
        if self._connected or let_in_early:
            self._drop_all()
        if self.options.account or self.options.new_account:
            self._refuse()
            return
        proven = self.trusted or self.broker.authenticator.authenticate(self.options, self.ip)
        if isinstance(proven, Awaitable):
            self.parser.paused = True
            self.halt(Halt.LOGIN)
            self.auth_task = self.broker.runtime.spawn(self._decide(proven), f"authenticate cid:{self.cid}")
        else:
            self._admit(proven)

    async def _decide(self, proven: Awaitable[Identity | None]) -> None:
        """Wait for a slow check, then go on with the input that has been held back."""
        try:
            identity = await proven
        except Exception as error:  # ours: nobody is let in because of it
            self.broker.runtime.fence.caught(self._decide, error)
            identity = None
        self.auth_task = None
        if self.closed:
            return
        self._admit(identity)
        if self.closed:
            return
        self.go_on(Halt.LOGIN)
        self.resume()

    def _admit(self, identity: Identity | None) -> None:
        options = self.options
        if identity is None:
            self._refuse()
            return
        self.parser.awaiting_connect = False
        self._bind(identity)
        if options.protocol not in (0, 1):
            self._error("invalid client protocol", Reason.BAD_PROTOCOL_VERSION)
            return
        self.headers = options.headers and self.broker.options.headers
        if options.no_responders and not self.headers:
            self._error("no responders requires headers support", Reason.NO_RESPONDERS_HEADERS)
            return
        self.verbose = options.verbose
        self.parser.strict = options.pedantic
        self.echo = options.echo
        self.no_responders = options.no_responders
        self.plain = not (self.verbose or options.pedantic or self.trace) and self.echo
        if not self.plain:
            self.lines = _NO_LINES
        else:
            self.lines = self.account.lines if self.headers else self.account.plain_lines
        if not self._connected:
            self._connected = True
            interval = min(_FIRST_PING, self.broker.options.ping_interval)
            self._schedule_ping(interval + self.broker.runtime.random.random() * interval / 5)
            self.broker.tell(lambda listener: listener.connected, self)
        if self.verbose:
            self._say(_OK)

    def _bind(self, identity: Identity) -> None:
        account = self.broker.account(identity.account)
        if account is not self.account:
            self._drop_all()
            self.account.clients.pop(self.cid, None)
            self.account = account
        self.identity = identity
        account.clients[self.cid] = self

    def _refuse(self) -> None:
        options = self.options
        who = (
            f" - User {quoted(options.user)}" if options.user else ' - Token "[REDACTED]"' if options.auth_token else ""
        )
        self.log(logging.ERROR, "authentication error%s", who)
        self.broker.tell(lambda listener: listener.refused, self)
        self._error("Authorization Violation", Reason.AUTHENTICATION_FAILURE)

    def _relabel(self) -> None:
        """What the client calls itself becomes part of its log lines, once."""
        options = self.options
        parts = [f"v{options.version}" if options.version else "", options.lang, options.name]
        if not self._connected and any(parts):
            self.label += " - " + quoted(":".join(part for part in parts if part))

    def early(self) -> bool:
        """See `Commands.early`: a client without credentials is let in when there is a no_auth_user."""
        default = self.broker.authenticator.default
        if default is None:
            return False
        self.parser.awaiting_connect = False
        self._bind(default)
        return True

    @property
    def name(self) -> str:
        """See `Publisher.name`."""
        return self.options.name or ""

    @property
    def lang(self) -> str:
        """The language that the client is written in, as it says."""
        return self.options.lang

    @property
    def version(self) -> str:
        """The version of the client's library, as it says."""
        return self.options.version

    @property
    def user(self) -> str:
        """As whom it was let in, as monitoring shows it."""
        return self.identity.user if self.identity is not None else ""

    @property
    def sub_count(self) -> int:
        """How many subscriptions it has."""
        return len(self.subs)

    def known_as(self) -> ClientConnection | None:
        """See `Publisher.known_as`."""
        return self

    def plan_for(self, account: Account, subject: bytes) -> Plan:
        """See `Publisher.plan_for`."""
        return account.plan(subject)

    # -- publishing ---------------------------------------------------------------------------------------------

    def route(self, subject: bytes, headers: bool, reply: bytes) -> Way[Lane] | None:
        """See `Commands.route`."""
        if not self.plain:
            return None
        plan = self.account.known_plan(subject)
        if plan is None:
            return None
        self.parser.weight = plan.weight
        if reply and (plan.empty or (reply[:7] != b"_INBOX." and reply.startswith(reserved.REPLY))):
            return None
        return plan.header_way if headers else plan.way

    def rows(self, subject: bytes) -> Lane | None:
        """See `Commands.rows`. A handler that takes rows answers all of them: no 503 comes into question."""
        plan = self.account.known_plan(subject) if self.plain else None
        lane = None if plan is None or plan.way is None else plan.way[0]
        return lane if isinstance(lane, Internal) and lane.rows is not None else None

    def acks(self, run: AckRun) -> AcksTaker | None:
        """See `Commands.acks`."""
        take = self.account.acks(run) if self.plain else None
        if take is None:
            return None

        def count(seqs: list[int], text: bytes) -> None:
            self.in_msgs += len(seqs)
            self.in_bytes += run.size * len(seqs)
            take(seqs, text)

        return count

    def announced(self, subject: bytes) -> None:
        """See `Commands.announced`: pedantic clients hear of a bad subject before the payload is read."""
        if not is_literal(subject):
            self._say(b"-ERR 'Invalid Publish Subject'\r\n")

    def message(self, subject: bytes, reply: bytes, header: int, data: bytes, start: int, end: int) -> None:
        """One message by the long way: handlers, queue groups, limits, first use of a subject, talkative clients. An
        error of ours costs that message."""
        try:
            self._message(subject, reply, header, data, start, end)
        except Exception as error:
            self.account.failed(self.message, subject, reply, error)

    def _message(self, subject: bytes, reply: bytes, header: int, data: bytes, start: int, end: int) -> None:
        self.in_msgs += 1
        self.in_bytes += end - start
        if self.trace:
            trace.published(self, subject, reply, header, data[start:end])
        if subject.startswith(reserved.PUBLISH):
            self._deny(b'Publish to "%b"' % subject, f'Publish Violation - Subject "{readable(subject)}"')
            return
        if reply and reply.startswith(reserved.REPLY):
            self._deny(b'Publish with Reply of "%b"' % reply, f'Publish Violation - Reply "{readable(reply)}"')
            return
        if self.verbose:
            self._say(_OK)
        account = self.account
        plan = account.plan(subject)
        self.parser.left -= plan.weight
        split = start + header if header > 0 else start
        headers, payload = data[start:split], data[split:end]
        if headers and self.broker.tracer is not None and destination(headers):
            reached = dispatch(self, account, plan, (subject, reply, headers, payload), self)
        else:
            reached = account.dispatch(plan, subject, reply, headers, payload, self)
        if reply and not reached:
            self.unanswered(subject, reply)

    def unanswered(self, subject: bytes, reply: bytes) -> None:
        """Tell a requester that nobody listens: a 503 on its own plain subscription to the reply subject."""
        if not self.no_responders:
            return
        for found in self.account.interest.match(reply):
            for sub in found.plain:
                if sub.client is self:
                    text = b"NATS/1.0 503\r\nNats-Subject: " + subject + b"\r\n\r\n"
                    self._say(b"HMSG %b %b %d %d\r\n%b\r\n" % (reply, sub.sid, len(text), len(text), text))
                    return

    def accept(self, sub: Subscription, prefix: bytes, tail: bytes, size: int, origin: Connection | None) -> bool:
        """Queue one message for `sub`; False when this connection does not take it."""
        if self.closed or (origin is self and not self.echo):
            return False
        limit = sub.limit
        if limit and sub.delivered >= limit:
            return False
        sub.delivered += 1
        self.out_msgs += 1
        self.out_bytes += size
        if not self.queued:
            self.broker.outbox.mark(self)
        self.out.append(prefix)
        self.out.append(tail)
        self.queued += len(prefix) + len(tail)
        if self.trace:
            trace.delivered(self, prefix, tail)
        if limit and sub.delivered >= limit:
            self._drop(sub)
        if self.queued > self.brake:
            self.overfull(origin)
        return True

    def _deny(self, what: bytes, log: str) -> None:
        self.log(logging.ERROR, "%s", log)
        self._say(b"-ERR 'Permissions Violation for %b'\r\n" % what)

    # -- subscribing --------------------------------------------------------------------------------------------

    def subscribe(self, subject: bytes, queue: bytes, sid: bytes) -> None:
        """SUB. A sid that is taken keeps its first subscription."""
        if self.trace:
            self.log(TRACE, "<<- [SUB %s]", readable(b" ".join(part for part in (subject, queue, sid) if part)))
        if reserved.is_ours(subject, queue):
            self._deny_subscription(subject, queue, sid)
            return
        limit = self.broker.options.max_subscriptions
        if 0 < limit <= len(self.subs) and sid not in self.subs:
            self.log(logging.ERROR, "maximum subscriptions exceeded")
            self._say(b"-ERR 'maximum subscriptions exceeded'\r\n")
            return
        self.active()
        if sid not in self.subs:
            sub = Subscription(subject, queue, sid, client=self)
            try:
                self.account.add(sub)
            except InvalidSubject:
                self._say(b"-ERR 'Invalid Subject'\r\n")
                return
            self.subs[sid] = sub
        if self.verbose:
            self._say(_OK)

    def _deny_subscription(self, subject: bytes, queue: bytes, sid: bytes) -> None:
        what, log = b'Subscription to "%b"' % subject, f'Subscription Violation - Subject "{readable(subject)}"'
        if queue:
            what, log = what + b' using queue "%b"' % queue, log + f', Queue: "{readable(queue)}"'
        self._deny(what, f"{log}, SID {readable(sid)}")

    def unsubscribe(self, sid: bytes, limit: int) -> None:
        """UNSUB: at once, or after `limit` messages counted from the start of the subscription."""
        if self.trace:
            self.log(TRACE, "<<- [UNSUB %s]", readable(sid))
        self.active()
        sub = self.subs.get(sid)
        if sub is not None:
            if limit > sub.delivered:
                sub.limit = limit
                self.account.limited(sub)
            else:
                self._drop(sub)
        if self.verbose:
            self._say(_OK)

    def _drop(self, sub: Subscription) -> None:
        if self.subs.get(sub.sid) is sub:
            del self.subs[sub.sid]
            self.account.remove(sub)

    def _drop_all(self) -> None:
        for sub in self.subs.values():
            self.account.remove(sub)
        self.subs.clear()

    # -- keep-alive ---------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Answer, and after the first PING that follows CONNECT tell the client which account it is in."""
        if self.trace:
            self.log(TRACE, "<<- [PING]")
        self.last_in = self.broker.runtime.monotonic()
        self._say(_PONG)
        if self._connected and not self._first_pong:
            self._first_pong = True
            if self.options.protocol >= 1:
                self._say(self.broker.info_line(self, connected=True))

    def tell_info(self) -> None:
        """Send a changed INFO, if the client understands one that it did not ask for."""
        if self._first_pong and self.options.protocol >= 1:
            self._say(self.broker.info_line(self, connected=True))

    def send_away(self) -> None:
        """Tell this client that it should go to another server."""
        self._say(self.broker.info_line(self, connected=True, leave=True))

    def pong(self) -> None:
        """The client is alive."""
        if self.trace:
            self.log(TRACE, "<<- [PONG]")
        self.pings_out = 0
        if self._ping_sent:
            self.rtt = max(self.broker.runtime.boot_time_ns() - self._ping_sent, 1) / 1e9

    def timer(self) -> None:
        """This connection's deadline passed: authentication is late, or it is time for a PING."""
        if self.parser.awaiting_connect:
            self.log(logging.DEBUG, "Authentication Timeout")
            self._error("Authentication Timeout", Reason.AUTHENTICATION_TIMEOUT)
            return
        runtime = self.broker.runtime
        options = self.broker.options
        if self.halts & Halt.BRAKE:  # its PONG may wait behind what is not read
            self._schedule_ping(options.ping_interval)
            return
        idle = runtime.monotonic() - self.last_in
        now = runtime.boot_time_ns()  # uvloop's own clock counts milliseconds: too coarse for a round trip
        stale_rtt = not self.rtt or now - self._ping_sent > _RTT_AGE
        if idle >= options.ping_interval or stale_rtt:
            if self.pings_out + 1 > options.ping_max:
                self.log(logging.DEBUG, "Stale Client Connection - Closing")
                self.broker.stats.stale_connections += 1
                self._error("Stale Connection", Reason.STALE)
                return
            self.pings_out += 1
            self._ping_sent = now
            self._say(_PING)
        self._schedule_ping(options.ping_interval)

    def _schedule_ping(self, delay: float) -> None:
        self.broker.keepalive.set(self, delay)

    # -- the rest -----------------------------------------------------------------------------------------------

    def info(self, arg: bytes) -> None:
        """Clients may send INFO; it is checked for being JSON and means nothing."""
        try:
            parse_object(arg)
        except BadConnect as error:
            self.log(logging.ERROR, "%s", error)
            self.close(Reason.PROTOCOL_VIOLATION)

    def error(self, text: bytes) -> None:
        """A client that reports an error is done."""
        self.log(logging.ERROR, "Client Error %s", readable(text))
        self.close(Reason.PARSE_ERROR)
