"""Which members hold a stream: as few replicas each as can be, and as many as wished for where there are nodes.

Owns the choice, made by the node that leads the catalogue. `num_replicas` above the number of nodes is a wish that is
fulfilled as nodes join. A memory stream has one replica: what a member forgets with its process it cannot vote about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.meta import Meta, StreamRecord


class Placement:
    """`nodes` are the members that can hold replicas, `away` tells whether one is silent, `me` is the one that
    chooses."""

    def __init__(
        self, meta: Callable[[], Meta], nodes: Callable[[], Sequence[str]], away: Callable[[str], bool], me: str
    ) -> None:
        self._meta = meta
        self._away = away
        self._nodes = nodes
        self._me = me

    def place(self, config: StreamConfig) -> list[str]:
        """Members for a new stream, its founder first."""
        nodes = self._by_load()
        count = self._count(config.num_replicas, config.storage, len(nodes))
        return nodes[:count] or [self._me]

    def replace(self, record: StreamRecord, config: StreamConfig) -> list[str]:
        """Members for an existing stream: those that it has, less the ones too many or gone, and new ones."""
        nodes = self._by_load()
        held = record.members or [self._me]
        kept = [member for member in held if member in nodes]
        if not kept:
            return list(held)  # whoever has its messages is away: nobody else can begin it again
        count = self._count(config.num_replicas, config.storage, len(nodes))
        kept.sort(key=lambda member: (self._away(member), member != self._me))
        chosen = kept[:count] + [node for node in nodes if node not in kept][: max(0, count - len(kept))]
        return held if set(chosen) == set(held) else chosen

    @staticmethod
    def _count(wished: int, storage: str, nodes: int) -> int:
        return 1 if storage == "memory" else max(1, min(wished, nodes))

    def _by_load(self) -> list[str]:
        """Nodes, those with the fewest replicas first; this one before others that have as few, silent ones last."""
        load = Counter(member for record in self._meta().streams.values() for member in record.members)
        return sorted(self._nodes(), key=lambda node: (self._away(node), load[node], node != self._me, node))
