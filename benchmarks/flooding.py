"""Load generators that wait for nobody: publishers that send pre-built bytes as fast as a socket takes them.

Owns the sockets of the flood and the clock of its own PINGs, which stand between its messages: how long one takes to
come back is what a publisher notices. A flood ends by itself after a given time, however the server behaves.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.observer import Wait
from benchmarks.wire import Address, Connection
from benchmarks.workers import Signals

Chunks = Sequence[tuple[bytes, int]]
"""What is sent in turn: bytes, and how many messages they hold."""
_CHUNK: Final = 64 * 1024
_PINGS: Final = 40
"""How many PINGs stand between the messages of one connection."""
_TURN: Final = 0.25
_TRICKLE: Final = 16 * 1024
_TRICKLING: Final = 0.02


@dataclass(frozen=True, slots=True)
class Flooded:
    """How a flood went: messages handed to the kernel, seconds until the last PONG, and the longest wait for one.

    `left` says that the server ended a connection; `open` waits mean that time ran out.
    """

    sent: int
    seconds: float
    own: Wait
    left: bool


class _Sender:
    """One connection of a flood."""

    def __init__(self, address: Address, chunks: Chunks, prelude: bytes, unread: bool) -> None:
        self.connection = Connection(address, timeout=30)
        if prelude:
            self.connection.send(prelude)
            self.connection.flush()
        self.connection.socket.setblocking(False)
        self.sent = 0
        self.left = False
        self.waiting: deque[float] = deque()
        self._chunks = chunks
        self._unread = unread
        self._at = 0
        self._every = max(1, len(chunks) // _PINGS)
        self._view = memoryview(b"")

    @property
    def socket(self) -> socket.socket:
        return self.connection.socket

    @property
    def sending(self) -> bool:
        """Something is left to send."""
        return not self.left and (bool(self._view) or self._at < len(self._chunks))

    @property
    def done(self) -> bool:
        """Everything is sent, and answered where the answers are read."""
        return self.left or (not self.sending and not self.waiting)

    def write(self) -> None:
        """Hand the kernel what it takes of one chunk."""
        if not self._view:
            data, _ = self._chunks[self._at]
            self._at += 1
            self._view = memoryview(data + b"PING\r\n" if self._asks() else data)
        try:
            self._view = self._view[self.socket.send(self._view) :]
        except BlockingIOError:
            return
        except OSError:
            self.left = True
            return
        if not self._view:
            self.sent += self._chunks[self._at - 1][1]
            if self._asks():
                self.waiting.append(time.perf_counter())

    def read(self, longest: Wait) -> None:
        """Take what the server sends; every PONG ends the oldest wait."""
        try:
            data = self.socket.recv(_CHUNK * 4)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.left = True
            return
        now = time.perf_counter()
        if b"PING\r\n" in data and not self._view:
            self.socket.send(b"PONG\r\n")
        for _ in range(data.count(b"PONG\r\n")):
            longest.add(now - self.waiting.popleft())

    def _asks(self) -> bool:
        return not self._unread and (self._at % self._every == 0 or self._at == len(self._chunks))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a flood sends: `build` makes the chunks of each of `connections`; `unread` leaves replies in the socket."""

    build: Callable[[int, int], Chunks]
    count: int
    connections: int = 1
    prelude: bytes = b""
    unread: bool = False


def flood(signals: Signals, address: Address, plan: Plan, patience: float) -> None:
    """Worker: send the plan's messages until the last PONG is there, or for `patience` seconds.

    Says a second time that it is ready, with what it has `Flooded`, and stays connected until it is stopped: with the
    connection a server may drop replies that it still has to write.
    """
    share = plan.count // plan.connections
    chunks = [plan.build(number * share, share) for number in range(plan.connections)]
    senders = [_Sender(address, each, plan.prelude, plan.unread) for each in chunks]
    signals.ready()
    own = Wait()
    began = time.perf_counter()
    _drive(senders, plan.unread, began + patience, own)
    now = time.perf_counter()
    for sender in senders:
        for since in sender.waiting:
            own.add(now - since, still=True)
    left = any(sender.left for sender in senders)
    signals.ready(Flooded(sum(sender.sent for sender in senders), now - began, own, left))
    signals.wait_stopped(2 * patience)
    for sender in senders:
        sender.connection.close()


def _drive(senders: Sequence[_Sender], unread: bool, deadline: float, own: Wait) -> None:
    poll = select.poll()
    by_descriptor = {sender.socket.fileno(): sender for sender in senders}
    heard = 0 if unread else select.POLLIN
    for descriptor in by_descriptor:
        poll.register(descriptor, heard | select.POLLOUT)
    while by_descriptor and time.perf_counter() < deadline:
        for descriptor, ready in poll.poll(_TURN * 1000):
            sender = by_descriptor[descriptor]
            if ready & select.POLLOUT and sender.sending:
                sender.write()
                if not sender.sending:
                    poll.modify(descriptor, heard)
            if ready & (select.POLLIN | select.POLLHUP | select.POLLERR):
                sender.read(own)
            if sender.done:
                poll.unregister(descriptor)
                del by_descriptor[descriptor]


def chunks(messages: Sequence[bytes]) -> Chunks:
    """Messages packed into pieces of the size of one write."""
    packed: list[tuple[bytes, int]] = []
    size = first = 0
    for at, message in enumerate(messages):
        size += len(message)
        if size >= _CHUNK or at == len(messages) - 1:
            packed.append((b"".join(messages[first : at + 1]), at + 1 - first))
            size, first = 0, at + 1
    return packed


def listen(signals: Signals, address: Address, subject: str, slow: bool) -> int:
    """Worker: bytes that a subscriber has received when it is stopped and nothing more comes.

    A `slow` one reads less than it is sent, and does not wait for the rest.
    """
    total = 0
    with Connection(address) as connection:
        connection.send(f"SUB {subject} 1\r\n".encode())
        connection.flush()
        signals.ready()
        connection.socket.settimeout(_TURN)
        while not slow or not signals.wait_stopped(_TRICKLING):
            try:
                data = connection.socket.recv(_TRICKLE if slow else _CHUNK * 8)
            except TimeoutError:
                if signals.stopped():
                    break
                continue
            except OSError:
                break  # cut off as a slow consumer
            if not data:
                break
            total += len(data)
    return total
