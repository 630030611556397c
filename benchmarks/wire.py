"""A blocking NATS connection that knows just enough of the protocol to set a measurement up.

Owns one socket. It parses messages only outside of measurements (`next_message`); during one the load generators use
`socket` and `pending` directly.
"""

from __future__ import annotations

import json
import socket
from typing import Any, Final, NamedTuple, Self

Address = tuple[str, int]

_CONNECT: Final = (
    b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1,'
    b'"lang":"bench","version":"1.0.0","name":"benchmarks"}\r\nPING\r\n'
)


class WireError(Exception):
    """The server closed the connection, reported an error, or answered something unexpected."""


class Message(NamedTuple):
    """One delivered message; `header` is the raw header block or empty."""

    subject: bytes
    reply: bytes
    header: bytes
    payload: bytes


class Connection:
    """A connected client. `timeout` in seconds bounds every blocking call on the socket."""

    def __init__(self, address: Address, timeout: float = 10.0) -> None:
        self.socket = socket.create_connection(address, timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pending = bytearray()
        self._inboxes = 0
        info = self._line()
        if not info.startswith(b"INFO "):
            raise WireError(f"expected INFO, got {info[:80]!r}")
        self.info: dict[str, Any] = json.loads(info[5:])
        self.socket.sendall(_CONNECT)
        self._until_pong()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; safe to repeat."""
        self.socket.close()

    def send(self, data: bytes | bytearray) -> None:
        """Send raw protocol bytes."""
        self.socket.sendall(data)

    def flush(self) -> None:
        """Wait until the server has processed everything sent so far."""
        self.socket.sendall(b"PING\r\n")
        self._until_pong()

    def request(self, subject: str, body: bytes = b"") -> bytes:
        """One request on a fresh inbox; returns the payload. Raises WireError on a status reply (503 …)."""
        self._inboxes += 1
        sid = f"r{self._inboxes}"
        inbox = f"_INBOX.bench.{id(self)}.{self._inboxes}"
        self.send(f"SUB {inbox} {sid}\r\nPUB {subject} {inbox} {len(body)}\r\n".encode() + body + b"\r\n")
        message = self.next_message()
        self.send(f"UNSUB {sid}\r\n".encode())
        if message.header.startswith(b"NATS/1.0 ") and not message.payload:
            raise WireError(f"{subject}: {message.header.splitlines()[0].decode()}")
        return message.payload

    def api(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A JetStream API request. Raises WireError with the server's error text."""
        answer = json.loads(self.request(f"$JS.API.{subject}", json.dumps(body).encode() if body else b""))
        if "error" in answer:
            raise WireError(f"{subject}: {answer['error']}")
        return answer

    def next_message(self) -> Message:
        """The next MSG or HMSG; answers PING and skips INFO, +OK and PONG."""
        while True:
            line = self._line()
            verb, _, rest = line.partition(b" ")
            args = rest.split()
            if verb == b"MSG":
                payload = self._exactly(int(args[-1]))
                return Message(args[0], args[2] if len(args) == 4 else b"", b"", payload)
            if verb == b"HMSG":
                block, size = self._exactly(int(args[-1])), int(args[-2])
                return Message(args[0], args[2] if len(args) == 5 else b"", block[:size], block[size:])
            self._control(line)

    def _control(self, line: bytes) -> None:
        if line == b"PING":
            self.socket.sendall(b"PONG\r\n")
        elif line.startswith(b"-ERR"):
            raise WireError(line.decode())

    def _until_pong(self) -> None:
        while (line := self._line()) != b"PONG":
            if line.startswith((b"MSG", b"HMSG")):
                raise WireError(f"unexpected message: {line!r}")
            self._control(line)

    def _line(self) -> bytes:
        while (end := self.pending.find(b"\r\n")) < 0:
            self._fill()
        line = bytes(self.pending[:end])
        del self.pending[: end + 2]
        return line

    def _exactly(self, size: int) -> bytes:
        while len(self.pending) < size + 2:
            self._fill()
        data = bytes(self.pending[:size])
        del self.pending[: size + 2]
        return data

    def _fill(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise WireError("the server closed the connection")
        self.pending += data
