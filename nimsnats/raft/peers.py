"""The other nodes, as a host sees them: what is to be sent to each, and when each was last heard of.

Owns the outboxes (one frame a peer and turn of the loop), the incarnations, and the count of what was refused.
It does not look into messages.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from nimsnats.raft.transport import Transport, node_of
from nimsnats.raft.wire import Item, encode, weight
from nimsnats.runtime import Runtime

_FRAME_BYTES: Final = 4 << 20
_OLD_LIFE: Final = 10.0
"""Seconds for which a peer's earlier process is not listened to, once a later one has spoken."""
_UNKNOWN_GROUP: Final = "message for an unknown group"
_NEWS: Final = 5.0
"""Seconds that the news of a group that was created, or has gone, may take to be here, or there."""
_MOST_UNKNOWN: Final = 1024


@dataclass(slots=True)
class Peer:
    """One other member node."""

    name: str
    heard: float = -1.0
    """When a frame last came, on the loop's clock; negative for never."""
    lost: bool = False
    suspect: bool = False
    """The way there has broken, and nothing was heard since."""
    incarnation: int = 0
    sent: bool = False
    """Something went out since the last heartbeat."""
    outbox: dict[str, list[Item]] = field(default_factory=dict[str, list[Item]])
    size: int = 0


class Peers:
    """All other nodes that share a group with this one."""

    def __init__(self, member: str, runtime: Runtime, log: logging.Logger, way: Callable[[], Transport | None]) -> None:
        self._member = member
        self._runtime = runtime
        self._log = log
        self._way = way
        self._incarnation = runtime.time_ns()
        self._peers: dict[str, Peer] = {}
        self._full: dict[str, Peer] = {}
        self.refused: Counter[str] = Counter()
        """Frames and messages that were not accepted, by reason."""
        self._told: set[str] = set()
        self._unknown: dict[tuple[str, str], tuple[float, float]] = {}
        """(peer, group that is not here): when it was first and last spoken of, without a pause in between."""

    def get(self, name: str) -> Peer:
        """The peer of this name."""
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = Peer(name)
        return peer

    def post(self, name: str, group: str, item: Item) -> None:
        """Send an item with this turn's frame."""
        peer = self.get(name)
        if not self._full:
            self._runtime.call_soon(self.flush)
        self._full[name] = peer
        peer.outbox.setdefault(group, []).append(item)
        peer.size += weight(item)
        if peer.size >= _FRAME_BYTES:
            self._send(peer)

    def flush(self) -> None:
        """Send what was posted: one frame a peer."""
        full, self._full = self._full, {}
        for peer in full.values():
            if peer.outbox:
                try:
                    self._send(peer)
                except Exception as error:  # as a frame that was lost on its way
                    self._runtime.fence.caught(self._send, error)

    def greet(self, names: Iterable[str]) -> None:
        """Let these peers hear of us if they have not since the last call."""
        for peer in map(self.get, names):
            if not peer.sent:
                self._send(peer)
            peer.sent = False

    def _send(self, peer: Peer) -> None:
        groups, peer.outbox, peer.size, peer.sent = list(peer.outbox.items()), {}, 0, True
        transport = self._way()
        if transport is not None:
            transport.send(peer.name, encode(self._member, peer.name, self._incarnation, groups))

    def heard(self, name: str, incarnation: int) -> bool | None:
        """A frame has come. None: from a process that has ended since; True: the peer is new, back, or
        started anew."""
        peer, now = self.get(name), self._runtime.monotonic()
        if incarnation < peer.incarnation and now - peer.heard < _OLD_LIFE:
            return None
        back = peer.lost or peer.incarnation != incarnation
        peer.heard, peer.lost, peer.suspect, peer.incarnation = now, False, False, incarnation
        return back

    def suspect(self, node: str) -> None:
        """The way to a node has broken: it is likely to be gone."""
        for peer in self._peers.values():
            if node_of(peer.name) == node:
                peer.suspect = True

    def silent(self, patience: float, least: float) -> list[str]:
        """Peers that have not been heard of for `patience` seconds, suspects for `least`, since the last call said
        they were there."""
        now = self._runtime.monotonic()
        gone = [
            peer
            for peer in self._peers.values()
            if not peer.lost and now - peer.heard > (least if peer.suspect else patience)
        ]
        for peer in gone:
            peer.lost = True
        return [peer.name for peer in gone]

    def silence(self, name: str) -> float:
        """Seconds since the peer was heard of."""
        peer = self._peers.get(name)
        return float("inf") if peer is None or peer.heard < 0 else self._runtime.monotonic() - peer.heard

    def refuse(self, peer: str, reason: str, detail: str = "") -> None:
        """Count something that was not accepted; the log hears of it once a peer and reason."""
        self.refused[reason] += 1
        key = f"{peer[:64]} {reason}"
        if key not in self._told and len(self._told) < 1024:
            self._told.add(key)
            self._log.warning(
                "Refused from %s: %s%s", peer[:64] or "an unknown peer", reason, detail and f" ({detail})"
            )

    def refuse_unknown(self, peer: str, group: str) -> None:
        """Refuse and count a message for a group that is not here. The members of a group hear of it one after the
        other, so this is worth a warning only if the same peer goes on about it for longer than `_NEWS`."""
        now, key = self._runtime.monotonic(), (peer, group)
        first, last = self._unknown.pop(key, (now, now))
        if now - last > _NEWS:
            first = now
        while len(self._unknown) >= _MOST_UNKNOWN:
            del self._unknown[next(iter(self._unknown))]  # the one that was silent for longest
        self._unknown[key] = first, now
        if now - first > _NEWS:
            self.refuse(peer, _UNKNOWN_GROUP, group[:64])
            return
        self.refused[_UNKNOWN_GROUP] += 1
        if first == now:
            self._log.debug("Refused from %s: %s, so far (%s)", peer[:64], _UNKNOWN_GROUP, group[:64])
