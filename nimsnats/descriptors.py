"""File descriptors: how many this process may have open, and how many of them clients may take.

Owns the soft limit and the reserve. At the limit nothing that opens a file or takes a connection works, so clients stop
before it: the kernel gives a new descriptor the lowest free number, hence a client whose descriptor has the number n
says that n others are open, whoever holds them.
"""

from __future__ import annotations

import logging
import resource
import sys
from asyncio import BaseTransport
from typing import Final

_RESERVE: Final = 64
_SMALLEST_RESERVE: Final = 16
_UNLIMITED: Final = sys.maxsize
_FEWEST: Final = 32
"""Descriptors without which a server does not get as far as saying in its log what it lacks."""


def soft_limit() -> int:
    """Most descriptors that this process may have open now."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the soft limit to the hard one, as Go programs do. What the system refuses stays as it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return


def shortage() -> str:
    """Why this process cannot even start; empty where it can."""
    limit = soft_limit()
    if limit >= _FEWEST:
        return ""
    return (
        f"this process may have only {limit} files open, and needs {_FEWEST} at the very least (LimitNOFILE, ulimit -n)"
    )


def reserve_of(limit: int) -> int:
    """How many descriptors clients leave to storage, log, HTTP and other nodes: an eighth, 16 to 64."""
    return min(max(limit // 8, _SMALLEST_RESERVE), _RESERVE)


class Descriptors:
    """What one broker's clients may take of `limit` descriptors, by default those of this process."""

    def __init__(self, log: logging.Logger, limit: int | None = None) -> None:
        self.limit = soft_limit() if limit is None else limit
        self.reserve = reserve_of(self.limit)
        self.refused = 0
        """Clients that were sent away for want of descriptors."""
        self._log = log
        self._told = False

    @property
    def clients(self) -> int:
        """Descriptors that clients can have at the very most."""
        return max(self.limit - self.reserve, 0)

    @property
    def http(self) -> int:
        """HTTP connections at the very most."""
        return max(self.limit // 4, 1)

    def spares(self, transport: BaseTransport | None) -> bool:
        """Whether there is one for another server that dials us: half of the reserve is for them."""
        sock = transport.get_extra_info("socket") if transport is not None else None
        return sock is None or sock.fileno() < self.limit - self.reserve // 2

    def admit(self, transport: BaseTransport | None) -> bool:
        """Whether a new client may stay. The log hears when it begins that they may not, and when it ends."""
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None:
            return True
        number: int = sock.fileno()
        if number < self.clients:
            if self._told and number < self.clients - self.reserve:
                self._told = False
                self._log.info("Descriptors are free again, clients are admitted")
            return True
        self.refused += 1
        if not self._told:
            self._told = True
            self._log.error(
                "Clients are refused: %d of %d file descriptors are open, and %d are kept for storage and other nodes; "
                "raise the limit (LimitNOFILE, ulimit -n)",
                *(number, self.limit, self.reserve),
            )
        return False
