"""One subscription: who wants which subject, under which sid or by which handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from nimsnats.broker.client import ClientConnection

    Handler: TypeAlias = Callable[[bytes, bytes, bytes, bytes, ClientConnection | None], "bool | None"]
    """(subject, reply, header block or b"", payload, origin). False means: as if this subscription did not exist."""


class Subscription:
    """A client's subscription (`client` and `sid` set) or an internal one (`handler` set)."""

    __slots__ = ("client", "delivered", "handler", "limit", "queue", "sid", "subject")

    def __init__(
        self,
        subject: bytes,
        queue: bytes = b"",
        sid: bytes = b"",
        client: ClientConnection | None = None,
        handler: Handler | None = None,
    ) -> None:
        self.subject = subject
        self.queue = queue
        self.sid = sid
        self.client = client
        self.handler = handler
        self.delivered = 0
        self.limit = 0
        """Auto-unsubscribe after that many messages, counted from the start; 0 means never."""
