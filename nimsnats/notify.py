"""What a service manager is told of this process: systemd's notification protocol (sd_notify(3)).

Owns: the datagrams and where they go. When what is sent is `process`'s decision. Without a service manager every call
does nothing. A message that cannot be delivered is never a reason to stop: it is reported once.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Final

_SOCKET: Final = "NOTIFY_SOCKET"
_WATCHDOG_INTERVAL: Final = "WATCHDOG_USEC"
_WATCHDOG_PROCESS: Final = "WATCHDOG_PID"
_MOST_WAITING: Final = 64
"""Messages kept for a manager that does not read; then the oldest goes."""


class Notify:
    """The line to the service manager.

    `address` is a path, `@name` for a socket in the abstract namespace, or empty for none. `watchdog` is how long, in
    seconds, the service manager waits for a sign of life before it kills us; 0 when it does not watch.
    `monotonic_ns` is CLOCK_MONOTONIC, which the manager compares with its own.
    """

    def __init__(
        self,
        address: str = "",
        watchdog: float = 0.0,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        log: logging.Logger | None = None,
    ) -> None:
        self.watchdog = watchdog if address else 0.0
        self._address = b"\0" + os.fsencode(address[1:]) if address.startswith("@") else os.fsencode(address)
        self._monotonic_ns = monotonic_ns
        self._log = log or logging.getLogger("nimsnats")
        self._socket: socket.socket | None = None
        self._status = ""
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._has_failed = False

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ, pid: int | None = None) -> Notify:
        """What the service manager asks for, taken out of the environment: it is not meant for our children.

        `pid` is this process's; a watchdog that is meant for another process (WATCHDOG_PID) is none of ours.
        """
        address = environ.pop(_SOCKET, "")
        interval = environ.pop(_WATCHDOG_INTERVAL, "")
        watched = environ.pop(_WATCHDOG_PROCESS, "")
        is_ours = not watched or watched == str(os.getpid() if pid is None else pid)
        microseconds = int(interval) if is_ours and interval.isascii() and interval.isdigit() else 0
        if not address.startswith(("/", "@")):
            address = ""  # other transports (vsock) are for machines, not for services
        return cls(address, microseconds / 1e6)

    @property
    def listening(self) -> bool:
        """Whether there is a service manager at the other end."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """The start, or a reload, is complete."""
        self._status = status
        self._send("READY=1", f"STATUS={_line(status)}")

    def status(self, text: str) -> None:
        """What we are at, in words for people; the same words twice are sent once."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={_line(text)}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it, whether it went well or not."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The stop begins."""
        self._status = status
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def extend(self, seconds: float) -> None:
        """The start or the stop goes on: wait at least `seconds` from now before giving it up."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        if self.flush():  # a late sign of life says nothing: it is not kept
            self._send("WATCHDOG=1")

    def flush(self) -> bool:
        """Try again to send what the manager's queue had no room for; whether there is nothing left.

        The queue is short (ten messages by the kernel's default) and a manager may be busy; the loop does not wait.
        """
        while self._waiting:
            if not self._sent(self._waiting[0]):
                return False
            self._waiting.popleft()
        return True

    def close(self) -> None:
        """Hang up. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        self._waiting.append("\n".join(assignments).encode())
        self.flush()

    def _sent(self, message: bytes) -> bool:
        """Hand one message over; false when there is no room for it now."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendto(message, self._address)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                self._log.warning("The service manager cannot be told %s: %s", message.decode(), error.strerror)
        return True


def _line(text: str) -> str:
    """One line: a line feed would begin another assignment."""
    return " ".join(text.split())
