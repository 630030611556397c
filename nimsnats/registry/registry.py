"""The `Registry` interface: who the peers of a node are, and that this node is alive.

Owns: the abstract class that the cluster works with, and the values that it hands out. Implementations live beside it:
`morpheus` over HTTP, `local` on a directory in the same process, `memory` for tests. Nothing here touches the network.

Rules that every implementation keeps, and that `tests/registry/test_contract.py` runs on each of them:

- `register` either succeeds or raises, but from then on the object owns a heartbeat loop that keeps trying, so that a
  registry which is down today knows the node tomorrow.
- After `register`, the own name never appears in `get_peers` or in an event.
- `watch_peers` begins with one `added` per peer present (less those it is told are known), survives outages silently,
  and ends only when it is closed. A peer whose endpoint changes is `removed` and then `added`.
- An outage produces no events: peers are `removed` only when the registry answers and does not list them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Literal, Self

from nimsnats.registry.lease import Lease
from nimsnats.registry.node import NodeInfo


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """A change that concerns peers (never this node itself)."""

    type: Literal["added", "removed"]
    node: NodeInfo


@dataclass(frozen=True, slots=True)
class Listing:
    """One complete answer of the registry, this node's own entry included.

    `requested_ns` is boot time (`Runtime.boot_time_ns`) just before the request was sent: what the listing shows was
    true at some moment after it. `index` is the registry's revision, where it has one. `skipped` are the names of
    entries that are left out of `nodes`: not valid, or second ones of a name; "" stands for one whose name is unknown.
    """

    requested_ns: int
    nodes: tuple[NodeInfo, ...]
    index: int | None = None
    skipped: frozenset[str] = frozenset()

    def find(self, name: str) -> NodeInfo | None:
        """The entry of that name, if it is listed."""
        return next((node for node in self.nodes if node.name == name), None)

    def may_hide(self, name: str) -> bool:
        """Whether an entry of that name may be among those that were skipped."""
        return not self.skipped.isdisjoint(("", name))


@dataclass(slots=True)
class RegistryStatus:
    """What health pages and metrics show of the connection to the registry.

    `connected`: the latest request was answered. `registered`: as far as the registry has told us, our entry is in it.
    `failures`: requests that failed since the latest answer. `watch` is how changes arrive: "", "local", "sse",
    "long-poll" or "poll". `note` is what an operator should know although it works.
    """

    url: str
    connected: bool = False
    registered: bool = False
    last_error: str = ""
    last_success: datetime | None = None
    failures: int = 0
    watch: str = ""
    note: str = ""


class Registry(ABC):
    """One node's access to one service of a registry. Build it, use it as an async context manager or `close` it."""

    status: RegistryStatus
    lease: Lease

    @abstractmethod
    async def register(self, info: NodeInfo) -> None:
        """Announce this node and keep announcing it. Again with other values: replaces them.

        Raises `RegistryError` when the first attempt fails; the attempts go on in the background all the same.
        """

    @abstractmethod
    async def deregister(self) -> None:
        """Stop the heartbeats and take the node's entry away. Harmless without a registration.

        Raises `RegistryError` if the registry could not be told; then the entry expires by itself.
        """

    @abstractmethod
    async def list_nodes(self) -> Listing:
        """Ask now for everything registered, this node included. Raises `RegistryError`."""

    @abstractmethod
    def watch_peers(self, known: Iterable[NodeInfo] = ()) -> AsyncGenerator[PeerEvent]:
        """Peers as they are, then as they come and go, for ever.

        Whoever has asked `get_peers` before passes the answer as `known`: then the events begin with the difference,
        and a peer that left in between is not kept for ever.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop everything this object started, without deregistering. Idempotent."""

    @property
    @abstractmethod
    def name(self) -> str:
        """This node's name, or "" before `register`."""

    async def get_peers(self) -> list[NodeInfo]:
        """Ask now for the registered peers, without this node. Raises `RegistryError`."""
        listing = await self.list_nodes()
        return [node for node in listing.nodes if node.name != self.name]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
