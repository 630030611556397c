"""One client that sends a heavy request, or many at once, and waits until all is answered.

Owns the socket of the asker. Answers are counted by how often the inbox's name comes by. It gives up after a given
time; of many requests it also ends when the server answers a PING at once but sends nothing more for some seconds,
because servers drop requests.
"""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from typing import Final

from benchmarks.observer import Wait
from benchmarks.wire import Address, Connection
from benchmarks.workers import Signals

INBOX: Final = "_INBOX.q"
_MARK: Final = b"MSG "
_READ: Final = 512 * 1024
_SILENCE: Final = 4.0
_SHORT: Final = 0.05
_AT_ONCE: Final = 0.2
_PONG: Final = b"PONG\r\n"
_SAMPLE: Final = 300


@dataclass(frozen=True, slots=True)
class Answered:
    """How long it took until the last answer, how many came, and the beginning of the first one."""

    wait: Wait
    replies: int
    sample: bytes


class _Asker:
    """The state of one exchange."""

    def __init__(self, connection: Connection, data: bytes, mark: bytes) -> None:
        self.socket = connection.socket
        self.socket.setblocking(False)
        self.view = memoryview(data + b"PING\r\n")
        self.replies = 0
        self.pongs = 0
        self.sample = b""
        self.ended = False
        self._mark = mark
        self._kept = b""

    def write(self) -> None:
        """Hand the kernel what it takes."""
        try:
            self.view = self.view[self.socket.send(self.view) :]
        except BlockingIOError:
            return
        except OSError:
            self.ended = True

    def read(self) -> None:
        """Count what has come."""
        try:
            data = self.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return
        self.replies += (self._kept + data).count(self._mark)
        self.pongs += (self._kept[1 - len(_PONG) :] + data).count(_PONG)
        self._kept = (self._kept + data)[1 - len(self._mark) :]
        if len(self.sample) < _SAMPLE:
            self.sample += data[:_SAMPLE]


def ask(
    signals: Signals, address: Address, data: bytes, expected: int, patience: float, mark: str, before: bytes
) -> Answered:
    """Worker: send `data` and wait for `expected` answers whose subject starts with `mark`, and for a PONG.

    `before` is sent first, and not measured.
    """
    with Connection(address, timeout=max(30.0, patience)) as connection:
        connection.send(f"SUB {INBOX}.* q\r\n".encode() + before)
        connection.flush()
        signals.ready()
        asker = _Asker(connection, data, _MARK + mark.encode())
        began = time.perf_counter()
        ended, still = _exchange(asker, expected, began + patience)
        wait = Wait()
        wait.add(ended - began, still=still)
        return Answered(wait, asker.replies, asker.sample)


def _exchange(asker: _Asker, expected: int, deadline: float) -> tuple[float, bool]:
    """When the last answer came; True when time ran out before."""
    poll = select.poll()
    poll.register(asker.socket, select.POLLIN | select.POLLOUT)
    last = still = time.perf_counter()
    probes, probed = 0, 0.0
    silence = _SILENCE if expected > 1 else deadline - last
    while True:
        events = poll.poll(_SHORT * 1000)
        now = time.perf_counter()
        for _, ready in events:
            if ready & select.POLLOUT and asker.view:
                asker.write()
                if not asker.view:
                    poll.modify(asker.socket, select.POLLIN)
            if ready & (select.POLLIN | select.POLLHUP):
                before = (asker.replies, asker.pongs and 1)
                asker.read()
                if before != (asker.replies, asker.pongs and 1):
                    last = still = now
        if asker.ended or (asker.pongs and asker.replies >= expected):
            return last, False
        if now > deadline:
            return now, True
        if probed and asker.pongs > probes:
            if now - probed < _AT_ONCE and last < probed:
                return last, False
            probed, still = 0.0, now
        elif not probed and not asker.view and asker.pongs > probes and now - still > silence:
            asker.socket.send(b"PING\r\n")
            probes, probed = probes + 1, now
