"""What is remembered of clients that are gone: what `/connz` shows of them, and nothing of what they held.

Owns the records and their bounds: a number (`max_closed_clients`), and bytes, because names, certificates and
subscriptions are as long as clients make them. It knows no live connection once `ClosedClient.of` has returned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nimsnats.broker.subscription import Subscription

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.reasons import Reason
    from nimsnats.broker.tls import Secured

MOST_BYTES: Final = 32 * 1024 * 1024
"""Bytes of all records together, by estimate, beyond which the oldest are forgotten."""
MOST_LISTED: Final = 64 * 1024
"""Bytes of one client's subscriptions that stay listed, by estimate; further ones are counted."""
_RECORD: Final = 1024
_SUBSCRIPTION: Final = 256
"""What a record and a subscription in it take without their texts."""


@dataclass(slots=True, eq=False)
class ClosedClient:
    """One client's record; attributes mean what they mean in a `ClientConnection`."""

    cid: int
    kind: str
    ip: str
    port: int
    account: Account
    user: str
    name: str
    """What it called itself, its language, the library's version."""
    lang: str
    version: str
    secured: Secured | None
    start_ns: int
    stop_ns: int
    last_ns: int
    reason: Reason | None
    rtt: float
    stalls: int
    in_msgs: int
    in_bytes: int
    out_msgs: int
    out_bytes: int
    subs: dict[bytes, Subscription]
    sub_count: int
    size: int
    """Bytes, by estimate."""

    @property
    def pending(self) -> int:
        """Nothing waits any more."""
        return 0

    @property
    def closed(self) -> bool:
        """It is."""
        return True

    @classmethod
    def of(cls, client: ClientConnection) -> ClosedClient:
        """The record of a connection that has just ended."""
        options, secured = client.options, client.secured
        subs, listed = _listed(client)
        texts = (client.user, options.name, options.lang, options.version)
        size = _RECORD + listed + sum(4 * len(text) for text in texts)  # a text takes up to four bytes a character
        size += len(secured.certificate) if secured is not None else 0
        return cls(
            client.cid, client.kind, client.ip, client.port, client.account, *texts, secured,
            client.start_ns, client.stop_ns, client.last_ns, client.reason, client.rtt, client.stalls,
            client.in_msgs, client.in_bytes, client.out_msgs, client.out_bytes, subs, client.sub_count, size,
        )  # fmt: skip


def _listed(client: ClientConnection) -> tuple[dict[bytes, Subscription], int]:
    """The first subscriptions of a client, up to the bound, and their bytes."""
    subs: dict[bytes, Subscription] = {}
    size = 0
    for sid, sub in client.subs.items():
        size += _SUBSCRIPTION + len(sub.subject) + len(sub.queue) + len(sid)
        if size > MOST_LISTED:
            break
        kept = subs[sid] = Subscription(sub.subject, sub.queue, sid)
        kept.delivered, kept.limit = sub.delivered, sub.limit
    return subs, size


class ClosedClients:
    """The latest records, oldest first."""

    def __init__(self, most: int, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._records: deque[ClosedClient] = deque()
        self.size = 0
        """Bytes of all records, by estimate."""

    def add(self, record: ClosedClient) -> None:
        """Remember one more, and forget the oldest if that is too many or too much."""
        self._records.append(record)
        self.size += record.size
        while self._records and (len(self._records) > self._most or self.size > self._most_bytes):
            self.size -= self._records.popleft().size

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[ClosedClient]:
        return iter(self._records)

    def __getitem__(self, at: int) -> ClosedClient:
        return self._records[at]
