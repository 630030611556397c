"""Another client on every node, in a process of its own: how long its PINGs and its new connections wait.

Owns one event loop of non-blocking sockets: on each node a connection that sends its next PING a few milliseconds after
the last PONG, and one that is opened anew, greeted and closed again. What has not been answered when the observer is
stopped counts with the time that it has waited so far, and is marked as open.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from benchmarks.outcome import OPEN
from benchmarks.wire import Address, Connection
from benchmarks.workers import Crew, Signals, Worker

INTERVAL: Final = 0.004
"""Seconds from a PONG to the next PING."""
_CALLING: Final = 0.05
"""Seconds from one greeting to the next connection."""
_HASTE: Final = -15
_PINGS: Final = "wait"
_GREETINGS: Final = "greeting"
_NODES: Final = "abc"


@dataclass(slots=True)
class Wait:
    """The longest of some waits in seconds; `open` when it had not ended."""

    seconds: float = 0.0
    open: bool = False

    def add(self, seconds: float, *, still: bool = False) -> None:
        """Count one wait."""
        if seconds > self.seconds:
            self.seconds, self.open = seconds, still

    def values(self, key: str) -> dict[str, float]:
        """As a round's values."""
        return {key: self.seconds, key + OPEN: 1.0} if self.open else {key: self.seconds}


@dataclass(slots=True)
class Seen:
    """What an observer has found on each node, and how many PINGs were answered."""

    pings: list[Wait] = field(default_factory=list[Wait])
    greetings: list[Wait] = field(default_factory=list[Wait])
    answered: int = 0

    def values(self) -> dict[str, float]:
        """The longest waits of all nodes together, and of each one where there are several."""
        values: dict[str, float] = {"samples": float(self.answered)}
        for key, waits in ((_PINGS, self.pings), (_GREETINGS, self.greetings)):
            if len(waits) > 1:
                for node, wait in zip(_NODES, waits, strict=True):
                    values |= wait.values(f"{key}.{node}")
            values |= max(waits, key=lambda wait: wait.seconds, default=Wait()).values(key)
        return values


class _Pinger:
    """A client that sends PING after PING."""

    def __init__(self, address: Address, selector: selectors.BaseSelector) -> None:
        self.wait = Wait()
        self.answered = 0
        self.connection = Connection(address, timeout=30)
        self.connection.socket.setblocking(False)
        selector.register(self.connection.socket, selectors.EVENT_READ, self)
        self.sent = 0.0
        self.due = 0.0

    def tick(self, now: float) -> None:
        """Send the next PING when it is due."""
        if not self.sent and now >= self.due:
            self.sent = now
            self.connection.socket.send(b"PING\r\n")

    def readable(self) -> None:
        """Take what has come: a PONG ends a wait, a PING is answered."""
        data = self.connection.socket.recv(65536)
        now = time.perf_counter()
        if not data:
            raise ConnectionError("the server closed the observer's connection")
        if b"PING" in data:
            self.connection.socket.send(b"PONG\r\n")
        if b"PONG" in data and self.sent:
            self.wait.add(now - self.sent)
            self.answered += 1
            self.sent, self.due = 0.0, now + INTERVAL

    def close(self, now: float) -> None:
        """Count a PING that is still unanswered."""
        if self.sent:
            self.wait.add(now - self.sent, still=True)
        self.connection.close()


class _Caller:
    """A client that connects, waits for the greeting, and goes."""

    def __init__(self, address: Address, selector: selectors.BaseSelector) -> None:
        self.wait = Wait()
        self._address = address
        self._selector = selector
        self._socket: socket.socket | None = None
        self._began = 0.0
        self._due = 0.0

    def tick(self, now: float) -> None:
        """Open the next connection when it is due."""
        if self._socket is None and now >= self._due:
            self._began = now
            self._socket = socket.socket()
            self._socket.setblocking(False)
            self._socket.connect_ex(self._address)
            self._selector.register(self._socket, selectors.EVENT_READ, self)

    def readable(self) -> None:
        """The greeting has come."""
        assert self._socket is not None
        data = self._socket.recv(65536)
        now = time.perf_counter()
        if not data.startswith(b"INFO"):
            raise ConnectionError(f"the server greeted the observer with {data[:40]!r}")
        self.wait.add(now - self._began)
        self._drop()
        self._due = now + _CALLING

    def close(self, now: float) -> None:
        """Count a connection that is still not greeted."""
        if self._socket is not None:
            self.wait.add(now - self._began, still=True)
            self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None


def observe(signals: Signals, addresses: Sequence[Address], greetings: bool = True) -> Seen:
    """Worker: the longest waits at each of `addresses` until stopped."""
    try:
        os.nice(_HASTE)  # so that it is the server that is late, and not the observer
    except PermissionError:
        pass  # only the superuser may hurry; the other server's figures have then the same delays
    selector = selectors.DefaultSelector()
    pingers = [_Pinger(address, selector) for address in addresses]
    callers = [_Caller(address, selector) for address in addresses] if greetings else []
    signals.ready()
    looked = 0.0
    while True:
        now = time.perf_counter()
        if now - looked > 0.02:
            looked = now
            if signals.stopped():
                break
        for client in (*pingers, *callers):
            client.tick(now)
        for key, _ in selector.select(INTERVAL / 2):
            key.data.readable()
    now = time.perf_counter()
    for client in (*pingers, *callers):
        client.close(now)
    answered = sum(pinger.answered for pinger in pingers)
    return Seen([pinger.wait for pinger in pingers], [caller.wait for caller in callers], answered)


class Observation:
    """A running observer; `end` stops it and returns what it has seen."""

    def __init__(self, worker: Worker[Seen]) -> None:
        self._worker = worker

    def end(self) -> Seen:
        """Stop looking."""
        self._worker.stop()
        return self._worker.result(10)


@contextmanager
def observing(addresses: Sequence[Address], greetings: bool = True) -> Generator[Observation]:
    """An observer that looks while the block runs."""
    with Crew() as crew:
        worker = crew.start(observe, addresses, greetings)
        worker.wait_ready(40)
        yield Observation(worker)
