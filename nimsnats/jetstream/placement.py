"""Which members hold a stream: as many replicas as wished for where there are nodes, on nodes with the wanted tags.

Owns the choice, made by the node that leads the catalogue. `num_replicas` above the number of nodes is a wish that is
fulfilled as nodes join, unless replicas are strict. Tags are not: a stream is refused that has no place. What a stream
already has it keeps, until an operator asks for something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.meta import Meta, StreamRecord
from nimsnats.raft.transport import node_of

EXCLUDED: Final = "!jetstream"
"""A server with this tag gets no streams (as in nats-server)."""


class NodeTags:
    """The tags of every node. `own` are this node's; what `others` does not know, for a node's name, is None."""

    def __init__(self, me: str, own: Sequence[str]) -> None:
        self._me = me
        self._own = frozenset(tag.lower() for tag in own)
        self.others: Callable[[str], Sequence[str] | None] = lambda name: None
        """Set by whoever knows the routes."""

    def of(self, member: str) -> frozenset[str] | None:
        """A member's tags; None while they are unknown."""
        if member == self._me:
            return self._own
        found = self.others(node_of(member))
        return None if found is None else frozenset(found)

    def missing(self, member: str, wanted: Iterable[str]) -> str:
        """The first wanted tag that a member lacks, or has although it is wanted not to (`!tag`); empty for none."""
        tags = self.of(member) or frozenset()
        for tag in wanted:
            word = tag.lower()
            if (word.removeprefix("!") in tags) == word.startswith("!"):
                return tag
        return ""


class Placement:
    """`nodes` are the members that can hold replicas, `away` tells whether one is silent, `tags` knows their tags;
    `cluster` is this cluster's name."""

    def __init__(
        self,
        meta: Callable[[], Meta],
        nodes: Callable[[], Sequence[str]],
        away: Callable[[str], bool],
        me: str,
        tags: NodeTags,
        *,
        cluster: str = "",
        unique_tag: str = "",
        strict: bool = False,
    ) -> None:
        self._meta = meta
        self._away = away
        self._nodes = nodes
        self._me = me
        self._tags = tags
        self._cluster = cluster
        self._unique_tag = unique_tag.lower()
        self._strict = strict

    def place(self, config: StreamConfig) -> list[str]:
        """Members for a new stream. Raises ApiError 10005."""
        return self._chosen(config, [], self._count(config))

    def first(self, members: Sequence[str], leader: Callable[[StreamRecord], str]) -> str:
        """Who of a new stream's members is to lead it first: the one that leads the fewest, silent ones last. `leader`
        knows the node that leads a stream, or ""."""
        if len(members) == 1:
            return members[0]
        led = Counter(leader(record) or node_of(record.founder) for record in self._meta().streams.values())
        return min(members, key=lambda member: (self._away(member), led[node_of(member)], member != self._me, member))

    def replace(
        self, record: StreamRecord, config: StreamConfig, *, asked: bool = False, keep: str = "", without: str = ""
    ) -> list[str]:
        """Members for an existing stream: those that it has, less the ones too many or gone, and new ones. All stay
        while too few of the others speak: a node that leaves does not leave its messages to the dead alone.

        `asked` when an operator wants this configuration: then the stream leaves nodes whose tags do not fit, and
        ApiError 10005 is raised where it has no place. `keep` is the node that leads it and stays if anyone does.
        `without` is a member that has to go.
        """
        nodes, count = self._nodes(), self._count(config)
        held = record.members or [self._me]
        present = [member for member in held if member in nodes]
        if not present:
            return list(held)  # whoever has its messages is away: nobody else can begin it again
        kept = [member for member in present if member != without]
        if asked:
            kept = [member for member in kept if self._suits(member, config)]
        if len(kept) == len(held) == count:
            return held
        if len(kept) > count:
            kept.sort(key=lambda member: (self._away(member), node_of(member) != keep, member != self._me))
            kept = kept[:count]
        try:
            chosen = self._chosen(config, kept, count, without)
        except ApiError:
            if asked:
                raise
            chosen = kept + self._more(config, kept, count, without)[0] or list(held)
        if not (asked or without) and self._mute(chosen):
            return held  # they could not even agree on this, and would be left with who may never come back
        return held if set(chosen) == set(held) else chosen

    def _mute(self, members: Sequence[str]) -> bool:
        """Whether too many of these are silent for a majority."""
        return 2 * sum(not self._away(member) for member in members) <= len(members)

    @staticmethod
    def complete(record: StreamRecord) -> bool:
        """Whether a stream has as many members as it wishes for, however many nodes there are."""
        return len(record.members) >= StreamConfig.from_stored(record.config).num_replicas

    def _count(self, config: StreamConfig) -> int:
        """Replicas that a stream can have now. Two in memory are worse than one: a member that is started anew has
        forgotten what it voted about, so that the other one could not go on without it."""
        count = config.num_replicas if self._strict else max(1, min(config.num_replicas, len(self._nodes())))
        return 1 if config.storage == "memory" and count == 2 else count

    def _chosen(self, config: StreamConfig, kept: Sequence[str], count: int, without: str = "") -> list[str]:
        """`kept` and new members, `count` in all. Raises ApiError 10005."""
        if len(kept) >= count:
            return list(kept)
        more, reasons = self._more(config, kept, count, without)
        if len(kept) + len(more) < count:
            raise errors.CLUSTER_NO_PEERS(err=", ".join(["no suitable peers for placement", *reasons]))
        return [*kept, *more]

    def _more(self, config: StreamConfig, kept: Sequence[str], count: int, without: str) -> tuple[list[str], list[str]]:
        """New members beside `kept`, at most `count` in all, and why others could not be."""
        wanted, found = config.placement.get("tags") or (), list[str]()
        if config.placement.get("cluster", "") not in ("", self._cluster):
            return [], []
        unmatched: set[str] = set()
        excluded = repeated = False
        taken = {tag for member in kept for tag in self._unique(member)}
        for node in self._by_load():
            if len(kept) + len(found) >= count:
                break
            if node in kept or node == without:
                continue
            tag = self._tags.missing(node, wanted)
            unique = self._unique(node)
            if EXCLUDED in (self._tags.of(node) or ()):
                excluded = True
            elif tag:
                unmatched.add(tag)
            elif self._unique_tag and (not unique or unique[0] in taken):
                repeated = True
            else:
                found.append(node)
                taken.update(unique)
        reasons = ["exclude tag set"] * excluded + ["server tag not unique"] * repeated
        if unmatched:
            reasons.append("tags not matched [" + ", ".join(f"'{tag}'" for tag in sorted(unmatched)) + "]")
        return found, reasons

    def _suits(self, member: str, config: StreamConfig) -> bool:
        """Whether a member may keep a stream; while its tags are unknown it may."""
        if config.placement.get("cluster", "") not in ("", self._cluster):
            return False
        return self._tags.of(member) is None or not self._tags.missing(member, config.placement.get("tags") or ())

    def _unique(self, member: str) -> list[str]:
        """The tags of a member that no other replica of a stream may have."""
        prefix = self._unique_tag
        return sorted(tag for tag in self._tags.of(member) or () if tag.startswith(prefix)) if prefix else []

    def _by_load(self) -> list[str]:
        """Nodes, those with the fewest replicas first; this one before others that have as few, silent ones last."""
        load = self._meta().census.replicas
        return sorted(self._nodes(), key=lambda node: (self._away(node), load[node], node != self._me, node))
