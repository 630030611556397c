"""Message tracing (ADR-41): a message with a `Nats-Trace-Dest` header tells there which way it took through here.

Owns which messages are traced, the events of one message, and its delivery with events along the way. What a report
looks like and who publishes it is the `Tracer`'s, set by whoever can describe the server; without one nothing is
traced. Receivers come from the same `Plan` as those of any other message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from nimsnats.broker import reserved
from nimsnats.broker.account import Outgoing
from nimsnats.broker.plan import Plan, Target
from nimsnats.broker.subscription import StreamSubscription, Subscription
from nimsnats.identity import nuid
from nimsnats.protocol.headers import header_value, with_headers, without_header
from nimsnats.protocol.json import loads
from nimsnats.protocol.subject import is_literal

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.publisher import Publisher
    from nimsnats.broker.route import RouteConnection

DESTINATION: Final = b"Nats-Trace-Dest"
_ONLY: Final = b"Nats-Trace-Only"
_HOP: Final = b"Nats-Trace-Hop"
_DISABLED: Final = b"trace disabled"
_TRUE: Final = frozenset({b"1", b"true", b"on"})
_MARK: Final = b"\r\n" + DESTINATION + b":"
_END: Final = b"\r\n\r\n"
_SMALL: Final = 512
"""Bytes of an average piece up to which it is cheaper to search all of it."""
_CLIENT: Final = 0
_ROUTER: Final = 1
_SUPPORTING: Final = 3
"""`proto` of peers that trace what they are sent."""
_ANSWERED: Final = 5.0
"""Seconds after which a stream's answer is not waited for any longer."""
_API: Final = b"$JS.API."

Event = dict[str, Any]
"""One step, in nats-server's keys; `ts` is nanoseconds since the epoch."""


@dataclass(slots=True)
class Report:
    """What became of one message here: `header` is its header block, `size` header and payload, in bytes."""

    account: Account
    destination: bytes
    header: bytes
    size: int
    events: list[Event] = field(default_factory=list[Event])
    hops: int = 0
    """To how many peers the message went, each by a number of its own."""


Tracer = Callable[[Report], None]


def suspected(pieces: list[bytes], size: int) -> bool:
    """Whether a message of a run with headers may want to be traced; `size` is that of all their payloads.

    Small ones are searched together. Of large ones only the headers are: each piece is at most control line, headers
    and payload of one message.
    """
    if size < len(pieces) * _SMALL:
        return _MARK in b"".join(pieces)
    return any(piece.find(_MARK, 0, piece.find(_END)) >= 0 for piece in pieces)


def destination(block: bytes) -> bytes:
    """Where a message's trace goes to; empty when it wants none."""
    if block.find(_MARK) < 0 or not block.endswith(_END):
        return b""
    found = header_value(block, DESTINATION) or b""
    return found if found != _DISABLED and is_literal(found) and not found.startswith(reserved.PUBLISH) else b""


def dispatch(
    publisher: Publisher,
    account: Account,
    plan: Plan,
    message: tuple[bytes, bytes, bytes, bytes],
    origin: ClientConnection | None,
) -> int:
    """Deliver a message (subject, reply, header block, payload) that names a destination, and report; the number of
    receivers, those that would have got it included."""
    subject, reply, block, payload = message
    report = Report(account, destination(block), block, len(block) + len(payload))
    now = publisher.broker.runtime.time_ns
    report.events.append({"type": "in", "ts": now(), **_who(publisher), "acc": account.name, "subj": _text(subject)})
    traced = _Traced(account, plan, subject, reply, block, payload, origin, report, publisher)
    reached = account.hand_out(plan, traced)
    reached += sum(traced.hand_over(sub) for sub in plan.handlers)
    traced.done()
    return reached


class _Traced(Outgoing):
    """A message on its way that notes where it goes. With `Nats-Trace-Only` it only would go there."""

    __slots__ = ("_hop", "_only", "_open", "_publisher", "report")

    def __init__(
        self,
        account: Account,
        plan: Plan,
        subject: bytes,
        reply: bytes,
        headers: bytes,
        payload: bytes,
        origin: ClientConnection | None,
        report: Report,
        publisher: Publisher,
    ) -> None:
        super().__init__(account, plan, subject, reply, headers, payload, origin)
        self.report = report
        self._publisher = publisher
        self._only = (header_value(headers, _ONLY) or b"").lower() in _TRUE
        self._hop = header_value(headers, _HOP) or b""
        self._open = 1
        """What has still to be heard of: the end of the dispatch, and streams."""

    def note(self, step: str, /, **fields: Any) -> Event:
        """Add an event; what is empty is left out."""
        event: Event = {"type": step, "ts": self._publisher.broker.runtime.time_ns()}
        event.update((key, value) for key, value in fields.items() if value not in ("", None))
        self.report.events.append(event)
        return event

    def done(self) -> None:
        """One of the things to be heard of has been heard of."""
        self._open -= 1
        tracer = self._publisher.broker.tracer
        if not self._open and tracer is not None:
            try:
                tracer(self.report)
            except Exception as error:
                self._account.fence.caught(tracer, error)

    def offer(self, target: Target) -> bool:
        """See `Outgoing.offer`."""
        sub, _ = target
        client = sub.client
        if client is None:
            return self.hand_over(sub)
        error = _obstacle(client, sub, self.origin)
        taken = not error and (self._only or super().offer(target))
        self.note("eg", **_who(client), sub=_text(sub.subject), queue=_text(sub.queue), error=error)
        return taken

    def hand_over(self, sub: Subscription) -> bool:
        """Give the message to a handler inside the server, as one that is not traced any further."""
        stream = sub.stream if isinstance(sub, StreamSubscription) else ""
        if stream:
            self._store(stream, sub)
            return True
        taken = self._only or self.call(sub, self._muted())
        if self.subject.startswith(_API):
            system = self._publisher.broker.system_account.name
            self.note("si", acc=system, **{"from": _text(self.subject)}, to=_text(self.subject))
        return taken

    def for_route(self, route: RouteConnection) -> Outgoing | None:
        """See `Outgoing.for_route`: each peer gets a number of its own, by which its report is known."""
        report = self.report
        supported = route.peer is not None and route.peer.proto >= _SUPPORTING
        if not supported:
            error = "remote does not support message tracing"
            text = f"Not delivered because {error}"
            if not self._only:
                text = f"Message delivered but {error} so no trace event generated from there"
            self.note("eg", **_who(route), error=text)
            return None if self._only else self
        report.hops += 1
        hop = b"%b.%d" % (self._hop, report.hops) if self._hop else b"%d" % report.hops
        self.note("eg", **_who(route), hop=_text(hop))
        block = with_headers(without_header(self.headers, _HOP), ((_HOP, hop),))
        return Outgoing(self._account, None, self.subject, self.reply, block, self.payload, self.origin)

    def _muted(self) -> bytes:
        """The headers with the destination taken back: what is stored must not be traced again."""
        block = self.headers
        start = block.find(_MARK) + len(_MARK)
        return b"%b %b%b" % (block[:start], _DISABLED, block[block.find(b"\r\n", start) :])

    def _store(self, stream: str, sub: Subscription) -> None:
        """Let a stream have the message, and learn from its acknowledgement what became of it."""
        assert sub.handler is not None
        event = self.note("js", stream=stream, subject=_text(self.subject))
        if self._only:
            return
        account, broker, reply = self.report.account, self._publisher.broker, self.reply
        inbox = f"_INBOX.{nuid(broker.runtime.random)}".encode()
        self._open += 1

        def answered(subject: bytes, _: bytes, headers: bytes, payload: bytes, origin: object) -> None:
            finish(_refusal(payload))
            if reply:
                account.publish(reply, payload, headers=headers)

        def finish(error: str) -> None:
            timer.cancel()
            account.unsubscribe(waiting)
            event["ts"] = broker.runtime.time_ns()
            if error:
                del event["subject"]
                event["error"] = error
            self.done()

        waiting = account.subscribe(inbox, answered)
        timer = broker.runtime.call_later(_ANSWERED, finish, "no answer from the stream, which may have stored it")
        try:
            sub.handler(self.subject, inbox, self._muted(), self.payload, self.origin)
        except Exception as error:
            account.failed(sub.handler, self.subject, inbox, error)


def _who(connection: Publisher) -> Event:
    """A connection in an event."""
    kind = _ROUTER if connection.ID == "rid" else _CLIENT
    named = {"name": connection.name} if connection.name else {}
    return {"kind": kind, "cid": connection.cid, **named}


def _obstacle(client: ClientConnection, sub: Subscription, origin: ClientConnection | None) -> str:
    """Why a client will not take a message; empty when it will."""
    if client.closed:
        return "Not delivered because client is closed"
    if origin is client and not client.echo:
        return "Not delivered because of no echo"
    if sub.limit and sub.delivered >= sub.limit:
        return "Not delivered because auto-unsubscribe exceeded"
    return ""


def _refusal(answer: bytes) -> str:
    """What a stream's acknowledgement says against a message."""
    try:
        said: Any = loads(answer)
    except ValueError:
        return ""
    if not isinstance(said, dict):
        return ""
    fields = cast("dict[str, Any]", said)
    error = fields.get("error")
    if isinstance(error, dict):
        return str(cast("dict[str, Any]", error).get("description", ""))
    return "msgid is duplicate" if fields.get("duplicate") else ""


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def header_fields(block: bytes) -> dict[str, list[str]]:
    """A header block by names, which keep their spelling, in alphabetical order as Go writes them."""
    found: dict[str, list[str]] = {}
    for name, value in _lines(block.split(b"\r\n")[1:]):
        found.setdefault(name, []).append(value)
    return dict(sorted(found.items()))


def _lines(lines: Iterable[bytes]) -> Iterable[tuple[str, str]]:
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            yield _text(name), _text(value.strip(b" \t"))
