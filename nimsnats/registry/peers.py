"""The peers that a watcher has reported, and what a new listing or event changes about them.

Owns: turning listings (the truth at one moment) and single events into the `added`/`removed` sequence that
`Registry.watch_peers` promises, whatever a registry repeats, reorders or leaves out. Pure; no clock, no network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nimsnats.registry.node import NodeInfo
from nimsnats.registry.registry import PeerEvent


class PeerSet:
    """What the consumer of one watch has been told so far. This node's own name is never part of it."""

    def __init__(self, known: Iterable[NodeInfo] = ()) -> None:
        self._nodes = {node.name: node for node in known}

    def listed(self, nodes: Iterable[NodeInfo], own_name: str) -> list[PeerEvent]:
        """A complete listing: everything that is not in it is gone. Of a name listed twice the first one counts."""
        current: dict[str, NodeInfo] = {}
        for node in nodes:
            if node.name != own_name:
                current.setdefault(node.name, node)
        gone = [node for name, node in self._nodes.items() if name not in current]
        events = [event for node in gone for event in self.removed(node.name)]
        for node in current.values():
            events.extend(self.added(node, own_name))
        return events

    def added(self, node: NodeInfo, own_name: str) -> Iterator[PeerEvent]:
        """One node is there; nothing follows if it was known just so."""
        if node.name == own_name:
            return
        known = self._nodes.get(node.name)
        if known is not None and known.same_endpoint(node):
            return
        if known is not None:
            yield PeerEvent("removed", known)
        self._nodes[node.name] = node
        yield PeerEvent("added", node)

    def removed(self, name: str) -> Iterator[PeerEvent]:
        """One node is gone; nothing follows if it was not known."""
        known = self._nodes.pop(name, None)
        if known is not None:
            yield PeerEvent("removed", known)
