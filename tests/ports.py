"""Ports for servers which must be told theirs before they start, or come back on the same one."""

from __future__ import annotations

import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000
_claims: dict[int, socket.socket] = {}
"""Held until this process ends, so that nobody else who asks here is given the same port."""


def free_port() -> int:
    """A loopback port that nobody listens on and that nobody but the caller will.

    It is none of those that the kernel gives to outgoing connections and to who asks for port 0: such a one may be
    taken in the moment between its search and its use. Other test processes keep off by a claim, which is an abstract
    socket of the port's name: it belongs to the same network namespace as the port, and the kernel removes it.
    """
    highest = int(_RANGE.read_text().split()[0])
    for port in range(_LOWEST, highest):
        if port not in _claims and _is_claimed(port):
            return port
    raise RuntimeError(f"no port between {_LOWEST} and {highest} is free")


def _is_claimed(port: int) -> bool:
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0nimsnats-test-port-{port}")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        claim.close()
        return False
    _claims[port] = claim
    return True
