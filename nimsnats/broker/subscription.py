"""One subscription: who wants which subject, under which sid, by which handler, or behind which route."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypedDict, Unpack

if TYPE_CHECKING:
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.route import RouteConnection

    Handler: TypeAlias = Callable[[bytes, bytes, bytes, bytes, ClientConnection | None], "bool | None"]
    """(subject, reply, header block or b"", payload, origin). False means: as if this subscription did not exist."""

    RowsHandler: TypeAlias = Callable[[bytes, list[bytes], list[bytes], ClientConnection | None], None]
    """(subject, replies, payloads, origin): many messages without headers, all asking for an answer, payloads of one
    size."""

    AcksHandler: TypeAlias = Callable[[bytes], Callable[[list[int]], None] | None]
    """What takes plain acknowledgements of `<stream>.<consumer>` as stream sequences; None: they come one by one."""


class _More(TypedDict):
    """Further arguments of an internal subscription."""

    routed: bool
    rows: RowsHandler | None
    acks: AcksHandler | None


class Subscription:
    """A client's subscription (`client` and `sid` set) or an internal one (`handler` set).

    `routed`: peers are told of it, so that their clients' messages come here; clients' subscriptions always are.
    """

    cost: ClassVar[int] = 0
    """How many control lines' work it is to handle a message, if that is much more than one (`Parser.left`)."""

    __slots__ = ("acks", "client", "delivered", "handler", "limit", "queue", "routed", "rows", "sid", "subject")

    def __init__(
        self,
        subject: bytes,
        queue: bytes = b"",
        sid: bytes = b"",
        client: ClientConnection | None = None,
        handler: Handler | None = None,
        routed: bool = False,
        rows: RowsHandler | None = None,
        acks: AcksHandler | None = None,
    ) -> None:
        self.subject = subject
        self.queue = queue
        self.sid = sid
        self.client = client
        self.handler = handler
        self.rows = rows
        """Takes what `handler` takes, many at once."""
        self.acks = acks
        """Names what takes acknowledgements, many at once."""
        self.routed = routed or client is not None
        self.delivered = 0
        self.limit = 0
        """Auto-unsubscribe after that many messages, counted from the start; 0 means never."""


class StreamSubscription(Subscription):
    """What a stream listens to; `stream` is its name, for traces."""

    __slots__ = ("stream",)

    def __init__(self, stream: str, subject: bytes, queue: bytes, handler: Handler, **more: Unpack[_More]) -> None:
        super().__init__(subject, queue, handler=handler, **more)
        self.stream = stream


class RequestSubscription(Subscription):
    """An internal one whose handler works off a request: one of these costs as much as many messages."""

    cost = 8

    __slots__ = ()


def nobody(seqs: list[int]) -> None:
    """Takes acknowledgements of a consumer that is not here: as if the subscription did not exist."""
    del seqs


def indifferent(consumer: bytes) -> Callable[[list[int]], None]:
    """The `acks` of a subscription that is only there for peers to see: it takes nothing, one by one or together."""
    del consumer
    return nobody


class RemoteSubscription(Subscription):
    """A peer's interest in a subject: neither client nor handler, but a route. `weight` counts its queue members."""

    __slots__ = ("account", "route", "weight")

    def __init__(self, account: bytes, subject: bytes, queue: bytes, weight: int, route: RouteConnection) -> None:
        super().__init__(subject, queue)
        self.account = account
        self.route = route
        self.weight = weight
