"""The registry server's state: services, their nodes, and what changed in which order.

Owns: TTLs, revisions and the bounded history that watchers catch up from. A synchronous core: every method takes `now`
(seconds of any steady clock) and never touches network, disk or clock; `directory` drives it.

A node is alive until `deadline`; from that moment on it is gone for every caller, whether or not a timer has swept it
yet, and only a new registration brings it back. So a listing that misses a node proves that the node's next heartbeat
is refused, which is what makes the registry usable as a witness.

One revision counts for all services. It starts at the wall clock's milliseconds: a restarted server is ahead of every
index that its predecessor gave out, so a watcher that comes back with an old one gets a complete answer at once.
"""

from __future__ import annotations

import hmac
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from nimsnats.registry.errors import NameTakenError, RegistryFullError, UnknownNodeError
from nimsnats.registry.node import NodeInfo
from nimsnats.registry.registry import PeerEvent

HISTORY: Final = 512
"""Changes kept per service; a watcher that is further behind gets a full listing."""


@dataclass(frozen=True, slots=True)
class Change:
    """One event and the revision that it made."""

    index: int
    event: PeerEvent


@dataclass(slots=True)
class _Entry:
    info: NodeInfo
    deadline: float
    owner: str
    """Digest of the key without which nobody changes this entry; empty: registered by somebody who had none."""
    source: str
    """Where a registration came from that proved nothing; empty: from a member, or from before a restart."""


@dataclass(slots=True)
class _Service:
    index: int
    floor: int
    """Revision up to which history is no longer complete."""
    nodes: dict[str, _Entry] = field(default_factory=dict[str, _Entry])
    history: deque[Change] = field(default_factory=deque[Change])


class Catalog:
    """Services and their nodes. Not thread-safe, bounded by `max_services`, `max_nodes` (per service) and
    `max_per_source` (nodes that one stranger's address may add, in all services together).

    Of an entry that was registered with an `owner` (a digest of a key), nothing happens without it until it expires.
    """

    def __init__(
        self, first_index: int, ttl: float, *, max_services: int = 256, max_nodes: int = 1024, max_per_source: int = 64
    ) -> None:
        assert ttl > 0
        self.ttl = ttl
        self._index = first_index
        self._max_services = max_services
        self._max_nodes = max_nodes
        self._max_per_source = max_per_source
        self._sources: Counter[str] = Counter()
        self._services: dict[str, _Service] = {}

    def register(
        self,
        service: str,
        info: NodeInfo,
        now: float,
        at: datetime,
        ttl: float | None = None,
        *,
        owner: str = "",
        source: str = "",
    ) -> NodeInfo:
        """Insert or replace a node; returns the entry as listed from now on. Raises `RegistryFullError`, which only
        newcomers can meet, and `NameTakenError` where a living entry belongs to another owner.

        `at` becomes `registered_at`, unless the very same endpoint is alive: then this is only a late heartbeat and the
        node keeps its seniority.
        """
        self.expire(service, now)
        held = self._services.get(service) or self._open(service)
        entry = held.nodes.get(info.name)
        deadline = now + (self.ttl if ttl is None else ttl)
        if entry is not None:
            _check_owner(entry, owner)
            owner, source = owner or entry.owner, entry.source
        if entry is not None and entry.info.same_endpoint(info):
            entry.deadline, entry.owner = deadline, owner
            return entry.info
        if entry is None and source and self._sources[source] >= self._max_per_source:
            raise RegistryFullError(
                f"{source} has registered {self._max_per_source} nodes, the most from one address without a secret"
            )
        if entry is None and len(held.nodes) >= self._max_nodes:
            raise RegistryFullError(f"service {service!r} has {self._max_nodes} nodes, the most this registry keeps")
        if entry is not None:
            self._drop(held, entry)
        stamped = replace(info, registered_at=at)
        held.nodes[info.name] = _Entry(stamped, deadline, owner, source)
        if source:
            self._sources[source] += 1
        self._record(held, PeerEvent("added", stamped))
        return stamped

    def owner(self, service: str, name: str) -> str:
        """The digest of the key that an entry belongs to, if there is such an entry, and such a key."""
        held = self._services.get(service)
        entry = held.nodes.get(name) if held else None
        return entry.owner if entry else ""

    def restore(self, service: str, info: NodeInfo, now: float, owner: str = "") -> None:
        """Take in a node from the database, with a full TTL: nobody could send heartbeats while the server was away."""
        held = self._services.get(service) or self._open(service)
        held.nodes[info.name] = _Entry(info, now + self.ttl, owner, "")

    def heartbeat(self, service: str, name: str, instance: str, now: float, owner: str = "") -> NodeInfo:
        """Grant another TTL. Raises `UnknownNodeError`, or `NameTakenError` if `instance` is not the registered one."""
        self.expire(service, now)
        held = self._services.get(service)
        entry = held.nodes.get(name) if held else None
        if entry is None:
            raise UnknownNodeError(f"node {name!r} is not registered in service {service!r}")
        if instance and entry.info.instance and instance != entry.info.instance:
            raise _taken(entry)
        _check_owner(entry, owner)
        entry.deadline = now + self.ttl
        return entry.info

    def remove(self, service: str, name: str, now: float, instance: str = "", owner: str = "") -> bool:
        """Take a node away; False if it was not there. Raises `NameTakenError` if `instance` is not the registered one:
        what a node's former self asks for, late, does not concern the one that has its name now."""
        self.expire(service, now)
        held = self._services.get(service)
        entry = held.nodes.get(name) if held else None
        if held is None or entry is None:
            return False
        if instance and entry.info.instance and instance != entry.info.instance:
            raise _taken(entry)
        _check_owner(entry, owner)
        self._drop(held, entry)
        return True

    def expire(self, service: str, now: float) -> list[NodeInfo]:
        """Take away the nodes of one service whose time is up, and return them."""
        held = self._services.get(service)
        if held is None:
            return []
        gone = [entry for entry in held.nodes.values() if entry.deadline <= now]
        for entry in gone:
            self._drop(held, entry)
        return [entry.info for entry in gone]

    def next_deadline(self) -> float | None:
        """When the next node expires, if there is any."""
        deadlines = (entry.deadline for held in self._services.values() for entry in held.nodes.values())
        return min(deadlines, default=None)

    def nodes(self, service: str, now: float) -> tuple[list[NodeInfo], int]:
        """The living nodes, the longest registered first, and the revision that this answer shows."""
        self.expire(service, now)
        held = self._services.get(service)
        if held is None:
            return [], self._index
        listed = sorted((entry.info for entry in held.nodes.values()), key=lambda info: (info.registered_at, info.name))
        return listed, held.index

    def index(self, service: str) -> int:
        """The revision of a service's latest change."""
        held = self._services.get(service)
        return held.index if held else self._index

    def changes(self, service: str, since: int) -> list[Change] | None:
        """What happened after revision `since`, or None if only a full listing can tell."""
        held = self._services.get(service)
        if held is None or not held.floor <= since <= held.index:
            return None
        return [change for change in held.history if change.index > since]

    def services(self) -> dict[str, int]:
        """Names of the services that have nodes, with how many."""
        return {name: len(held.nodes) for name, held in sorted(self._services.items()) if held.nodes}

    def names(self) -> Iterable[str]:
        """Every service known, empty ones too."""
        return list(self._services)

    def _open(self, service: str) -> _Service:
        if len(self._services) >= self._max_services:
            for name in [name for name, held in self._services.items() if not held.nodes]:
                del self._services[name]
        if len(self._services) >= self._max_services:
            raise RegistryFullError(f"{self._max_services} services exist, the most this registry keeps")
        held = self._services[service] = _Service(self._index, self._index)
        return held

    def _drop(self, held: _Service, entry: _Entry) -> None:
        del held.nodes[entry.info.name]
        if entry.source:
            self._sources[entry.source] -= 1
            if not self._sources[entry.source]:
                del self._sources[entry.source]
        self._record(held, PeerEvent("removed", entry.info))

    def _record(self, held: _Service, event: PeerEvent) -> None:
        self._index += 1
        held.index = self._index
        held.history.append(Change(self._index, event))
        while len(held.history) > HISTORY:
            held.floor = held.history.popleft().index


def _check_owner(entry: _Entry, owner: str) -> None:
    """Raises `NameTakenError` where an entry belongs to somebody else."""
    if entry.owner and not hmac.compare_digest(entry.owner, owner):
        raise _taken(entry)


def _taken(entry: _Entry) -> NameTakenError:
    return NameTakenError(f"node {entry.info.name!r} is registered by another instance, at {entry.info.cluster_addr}")
