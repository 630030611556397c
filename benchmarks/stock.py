"""A server that has much stored before it is measured: many subjects, a key-value bucket, one stream with a consumer.

Owns the filling of streams with messages whose subjects differ, and a server that is brought back to calm between two
measurements, by a restart with its store where waiting does not help.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.scenario import Settings
from benchmarks.servers import Kind, Server
from benchmarks.wire import Address, Connection, WireError
from benchmarks.workers import Crew, Signals

STREAM: Final = "STOCK"
GROUPS: Final = 1000
BUCKET: Final = "KV_BIG"
KEYS: Final = 100_000
_WINDOW: Final = 4000
_BATCH: Final = 500
_FILLING: Final = 600.0
_SHORT: Final = 0.1
_MANY: Final = 100_000
"""Consumers of the stock: nats-server allows fewer where a stream does not say it."""
_QUIET: Final = 3


def subject(n: int) -> str:
    """The subject of the stock's n-th message: one of a thousand groups, then a token of its own."""
    return f"stock.{n % GROUPS}.{n}"


def key(n: int) -> str:
    """The subject of the bucket's n-th key."""
    return f"$KV.BIG.k.{n % 100}.{n}"


def fill(signals: Signals, address: Address, name: Callable[[int], str], count: int, size: int = 32) -> None:
    """Worker: publish `count` messages, each under the subject that `name` gives it, acknowledged in a window."""
    payload = b"x" * size
    with Connection(address, timeout=60) as connection:
        connection.send(b"SUB _INBOX.stock.* 1\r\n")
        connection.flush()
        signals.ready()
        sock = connection.socket
        sent = lines = 0
        while lines // 2 < count:
            while sent < count and sent - lines // 2 <= _WINDOW - _BATCH:
                last = min(sent + _BATCH, count)
                numbers = range(sent, last)
                sock.sendall(b"".join(_publish(name(n), payload) for n in numbers))
                sent = last
            data = sock.recv(512 * 1024)
            if not data:
                raise ConnectionError("the server closed the filler's connection")
            lines += data.count(b"\n")


def _publish(name: str, payload: bytes) -> bytes:
    return b"PUB %b _INBOX.stock.1 %d\r\n%b\r\n" % (name.encode(), len(payload), payload)


def stored(address: Address, config: dict[str, Any], name: Callable[[int], str], count: int) -> None:
    """Make a stream and fill it."""
    with Connection(address, timeout=30) as connection:
        connection.api(f"STREAM.CREATE.{config['name']}", {"storage": "file", **config})
    with Crew() as crew:
        filler = crew.start(fill, address, name, count)
        filler.wait_ready()
        filler.result(_FILLING)


def calm(server: Server, patience: float) -> None:
    """Wait until PINGs and API requests are answered at once; a server that does not come to that is started anew."""
    deadline = time.perf_counter() + patience
    quiet = 0
    try:
        with Connection(server.address, timeout=patience) as connection:
            while quiet < _QUIET and time.perf_counter() < deadline:
                began = time.perf_counter()
                connection.flush()
                connection.api("INFO")  # what a server does beside its connections delays only the API
                quiet = quiet + 1 if time.perf_counter() - began < _SHORT else 0
                time.sleep(_SHORT)
    except (OSError, WireError):
        quiet = 0
    if quiet < _QUIET:
        server.kill()
        server.start()


class Stocked(Server):
    """A server under test that gets its stock when it is first measured, because how much is a setting."""

    def __init__(self, kind: Kind, base: Path | None = None) -> None:
        super().__init__(kind, base)
        self._stocked = False

    def stock(self, settings: Settings) -> None:
        """Store the stock once: `settings.subjects` subjects, and the bucket's keys."""
        if self._stocked:
            return
        config: dict[str, Any] = {"name": STREAM, "subjects": ["stock.>"], "allow_direct": True, "max_consumers": _MANY}
        stored(self.address, config, subject, settings.subjects)
        bucket: dict[str, Any] = {"name": BUCKET, "subjects": ["$KV.BIG.>"], "allow_direct": True}
        bucket |= {"max_msgs_per_subject": 1, "discard": "new", "allow_rollup_hdrs": True}
        stored(self.address, bucket, key, KEYS)
        self._stocked = True
