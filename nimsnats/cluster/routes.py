"""What the cluster needs of the layer that connects nodes. An interface only; the broker's routes implement it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

RouteListener = Callable[[str, str, bool], None]
"""(node name, its cluster address, up): a peer has its first route, or has lost its last."""


class Routes(Protocol):
    """Connections to other nodes' cluster ports.

    Peers are known by the name that they introduce themselves with. Only nodes that can hold replicas are reported: a
    nats-server that stands in the mesh as a core peer is not.
    """

    def add_route(self, address: str) -> None:
        """Connect to `host:port` and keep trying, with back-off. Idempotent."""
        ...

    def remove_route(self, address: str) -> None:
        """Stop trying; a connection that is up stays until it ends. Harmless for an unknown address."""
        ...

    def connected(self) -> Mapping[str, str]:
        """Peers whose route is up: name -> address. Inbound and gossiped routes count, whoever dialled."""
        ...

    def instance(self, name: str) -> str:
        """The data directory behind a connected peer, "" where it is not known."""
        ...

    def watch(self, listener: RouteListener) -> Callable[[], None]:
        """Call `listener` on every change, from the event loop; returns what ends that."""
        ...
