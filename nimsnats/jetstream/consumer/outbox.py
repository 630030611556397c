"""Deliveries that wait until it is durable that they were made.

A consumer with `max_deliver` promises never to deliver more often. What is sent before it is written down can be
forgotten in a crash, and is then delivered once too often under a number that was used before. So for such consumers
the entry comes first: messages wait here until it is applied, and whatever else the consumer says to its clients
(statuses, heartbeats, flow control) waits behind them. A crash in between costs an attempt that nobody saw.

Owns the order of what is sent. Lives on the leader only, and is forgotten with leadership.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nimsnats.broker.account import Account

MOST: Final = 4
"""Entries under way before the next messages are picked."""

Parcel = tuple[bytes, bytes, bytes, bytes, bytes]
"""To whom, shown subject, reply, headers, payload."""


class Outbox:
    """Of one consumer."""

    __slots__ = ("_account", "_messages", "_open", "_sealed")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._open: list[Parcel] = []
        """What no entry has been written for."""
        self._messages = False
        """Whether messages are among it."""
        self._sealed: deque[list[Parcel]] = deque()
        """What waits for its entry, oldest first."""

    @property
    def due(self) -> bool:
        """Whether an entry has to be written."""
        return self._messages

    @property
    def full(self) -> bool:
        """Whether enough is waiting."""
        return len(self._sealed) >= MOST

    def deliver(self, to: bytes, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> int:
        """Send a message once it is written down that it was; how many would get it now, as far as it matters."""
        if not self._account.has_interest(to):
            return 0
        self._open.append((to, subject, reply, headers, payload))
        self._messages = True
        return 1

    def say(self, to: bytes, headers: bytes, reply: bytes = b"") -> None:
        """Send something that need not be written down, after everything before it."""
        if self._open or self._sealed:
            self._open.append((to, to, reply, headers, b""))
        else:
            self._account.publish(to, b"", headers=headers, reply=reply)

    def seal(self) -> list[Parcel]:
        """An entry is written for everything up to here; what is to be sent when it is applied."""
        parcels, self._open, self._messages = self._open, [], False
        self._sealed.append(parcels)
        return parcels

    def release(self, parcels: list[Parcel]) -> None:
        """The entry for this was applied."""
        if not any(waiting is parcels for waiting in self._sealed):
            return  # of an earlier time as leader
        while True:
            first = self._sealed.popleft()
            self._send(first)
            if first is parcels:
                break
        if not self._sealed and not self._messages:
            rest, self._open = self._open, []
            self._send(rest)

    def _send(self, parcels: list[Parcel]) -> None:
        deliver = self._account.deliver
        for parcel in parcels:
            deliver(*parcel)

    def clear(self) -> None:
        """Nothing of it is sent: others decide what was delivered."""
        self._open, self._messages = [], False
        self._sealed.clear()
