"""Who joins whom: the decision by which nodes become one cluster, as a pure function of what they tell each other.

Every node is always part of one cluster, as a member (a voter of its meta group) or on its way to become one. A cluster
that holds nothing is *given up* in favour of a better one: one that holds data, or else an older one. Giving up is an
entry in the meta group's log, proposed by its leader and without effect if a stream was created before it, so that what
was created, and acknowledged, is never thrown away; whoever applies it is free to join another cluster.

Why every history ends in one cluster. The order of clusters is total, so gifts go one way: the best cluster never gives
itself up, and every other one that is empty does when its leader hears of a better one. A node whose cluster was given
up, or that waits for a place in one that is, notices it (`given_up`) and chooses anew; where there is nobody to join it
founds a cluster of its own, the youngest, which goes the same way. Clusters that both hold data stay apart.

How a node knows that its cluster was given up although it missed the entry: a voter never leaves a cluster otherwise,
not even one that was removed. So a voter, or the founder, that is seen elsewhere *with the same disk* (the instance in
its member name) proves it, and so does word of mouth. A voter with an empty disk is another member.

Owns the values and the decision. Asking, waiting and doing are `cluster.py`'s. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from nimsnats.jetstream.body import fields, listed, texts
from nimsnats.jetstream.meta import META_PREFIX
from nimsnats.raft.transport import node_of


@dataclass(frozen=True, slots=True)
class Hello:
    """What a node tells of itself and its cluster."""

    member: str
    """`node@instance`"""
    cluster: str
    """Name of its meta group."""
    joined: bool
    """Whether it is a member, and not on its way to become one."""
    data: bool
    """Whether the cluster holds, as far as it knows, what must not be thrown away."""
    members: tuple[str, ...] = ()
    """The cluster's voters as it knows them."""
    leader: str = ""
    """Name of the node that leads the cluster, empty when it does not know."""
    given_up: frozenset[str] = frozenset()
    """Clusters that it knows to be given up."""

    @property
    def rank(self) -> tuple[bool, int, str]:
        """The lower, the better a cluster is to join: those with data first, then the older ones."""
        return not self.data, founded(self.cluster), self.cluster

    def pack(self) -> list[Any]:
        """A msgpack-able form."""
        return [
            self.member,
            self.cluster,
            self.joined,
            self.data,
            list(self.members),
            self.leader,
            *sorted(self.given_up),
        ]

    @classmethod
    def unpack(cls, body: Any) -> Hello:
        """The inverse of `pack`. Raises Nonsense."""
        head = listed(body)[:6]
        member, cluster, joined, data, members, leader = fields(head, str, str, bool, bool, list, str)
        return cls(member, cluster, joined, data, tuple(texts(members)), leader, frozenset(texts(body[6:])))


class Step(Enum):
    """What a node does about its place."""

    STAY = "stay"
    """Nothing; ask for a place if it has none yet."""
    GIVE_UP = "give up"
    """Propose that the cluster, which it leads, is given up in favour of the target."""
    JOIN = "join"
    """Leave the cluster, which was given up or never came to anything, for the target."""
    FOUND = "found"
    """Leave it and begin a new one alone."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A step, and the node that told of the cluster it leads to."""

    step: Step
    target: Hello | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """What a node knows of itself besides what it tells others.

    `bound`: the cluster counts on this node, which may have voted there or acknowledged entries, so it must not forget
    them. `waited`: it has waited long enough for a member of the cluster that it wants to join. `released`: it has
    applied the entry that gives its cluster up. `guarded`: there are streams here that this step would destroy.
    """

    hello: Hello
    leading: bool = False
    bound: bool = True
    waited: bool = False
    released: bool = False
    guarded: bool = False


def founded(cluster: str) -> int:
    """When a cluster began, in nanoseconds, out of its meta group's name."""
    tail = cluster.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0


def founder(cluster: str) -> str:
    """The instance that began a cluster, out of its meta group's name."""
    return cluster.removeprefix(f"{META_PREFIX}-").rpartition("-")[0]


def cluster_id(instance: str, now_ns: int) -> str:
    """The name of a new cluster's meta group."""
    return f"{META_PREFIX}-{instance}-{now_ns}"


def given_up(own: Hello, others: Iterable[Hello]) -> frozenset[str]:
    """Clusters that are known to be given up.

    The answers of `others` must have been asked for after `own` was made: an older one may come from before its sender
    became one of our voters.
    """
    known = set(own.given_up)
    first = founder(own.cluster)
    for other in others:
        known |= other.given_up
        elsewhere = other.cluster != own.cluster
        if elsewhere and (other.member in own.members or (first and other.member.rpartition("@")[2] == first)):
            known.add(own.cluster)
    return frozenset(known)


def decide(situation: Situation, others: Iterable[Hello]) -> Decision:
    """The next step; `others` are fresh answers of connected nodes."""
    own, others = situation.hello, list(others)
    gone = given_up(own, others)
    choice = [other for other in others if other.joined and other.cluster != own.cluster and other.cluster not in gone]
    best = min(choice, key=lambda other: other.rank, default=None)
    if situation.released or own.cluster in gone:
        free = not situation.guarded
    elif own.joined:
        # a cluster that nobody leads may have lost its majority for good: nobody would be let in there
        better = best is not None and bool(best.leader) and best.rank < own.rank
        if situation.leading and not own.data and better:
            return Decision(Step.GIVE_UP, best)
        free = False
    else:
        free = situation.waited and not situation.bound and not situation.guarded
    if not free:
        return Decision(Step.STAY)
    return Decision(Step.JOIN, best) if best is not None else Decision(Step.FOUND)


def conflicts(own: Hello, others: Iterable[Hello]) -> dict[str, str]:
    """Nodes that are members of another cluster while both hold data: member -> cluster. They stay apart. So does who
    was recovered without us, whatever we hold."""
    if not own.joined:
        return {}
    apart = [other for other in others if other.joined and other.data and other.cluster != own.cluster]
    return {other.member: other.cluster for other in apart if own.data or recovered(own, other)}


def recovered(own: Hello, other: Hello) -> bool:
    """Whether the node of one of our voters is in another cluster under another instance: an operator has made it go on
    without the rest of ours (`nimsnats recover`), or has emptied it and let it join others."""
    known = {node_of(member) for member in own.members}
    return other.cluster != own.cluster and other.member not in own.members and node_of(other.member) in known
