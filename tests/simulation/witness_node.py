"""One node of the witness model: its states, its steps, and the product's rule applied to them.

Owns: what a node can do by itself and what time, crashes and the registry do to it. What two nodes do together and the
search are in `witness_model`, whose docstring says how the states are kept few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from nimsnats.cluster import witness
from nimsnats.cluster.witness import Condition, Facts, Standing
from nimsnats.registry import Lease, Listing, NodeInfo

BOTH, ALONE, INVITING, PARTING, LEAVING, GROWING, THREE = range(7)
"""Memberships in a node's log: both nodes; this one only; both again, which the other has yet to take over; both, with
a note that the other leaves, or that this one does; both with a third as learner; all three."""
MAY_GO = (BOTH, PARTING)
"""Those with which the product's `Core.partner` names the other."""
NO_REQUEST, HEARTBEAT, REGISTRATION = range(3)
GOING, ANSWERED = range(2)
UNSENT, SENT, STORED = range(3)

_NOW = 1_000_000
_TICK = 1_000


class Seen(NamedTuple):
    """A listing that shows the node itself, under that stamp."""

    stamp: int
    both: bool
    after_loss: bool


class Node(NamedTuple):
    """One node: its disk, its process, the connection to its peer as it sees it, and what the registry has of it."""

    up: bool = True
    membership: int = BOTH
    behind: bool = False
    """A write is acknowledged that is not on this node's disk."""
    write: int = UNSENT
    """A write of its own, under the membership of both, on its way."""
    lease: int = -1
    """Age in ticks of the latest acknowledged request; -1: none."""
    request: int = NO_REQUEST
    phase: int = GOING
    age: int = 0
    """Of the request, since it was sent."""
    abandoned: bool = False
    """A registration that the process no longer waits for is still under way."""
    listing: Seen | None = None
    asked: int | None = None
    """Stamp in the standing with which the peer was asked for sync; no answer yet."""
    sync: int | None = None
    """Stamp in the standing with which the peer was asked and answered "in sync"."""
    route: bool = False
    entry: int = 0
    """Ticks until the registry lets it expire; 0: not registered."""
    stored: bool = False
    """The registry's database has the entry (with the newest stamp)."""
    decided: bool = False
    """Broken variant only: the decision is taken, and carried out later."""
    mail: bool = False
    """Broken variant only: something the peer sent is in the socket's buffer."""


@dataclass(frozen=True)
class Variant:
    """What differs from the product's rule. The default: nothing."""

    name: str = "the rule"
    without: tuple[Condition, ...] = ()
    lapse_by_receipt: bool = False
    """A heartbeat counts from when its acknowledgement was received."""
    lapse_by_sent_times: bool = False
    """Only a gap between the sent times of two acknowledged heartbeats is a lapse."""
    open_gap_is_none: bool = False
    """A gap that no acknowledgement has ended yet is no lapse."""
    registering_is_no_lapse: bool = False
    decides_early: bool = False
    """Between the decision and the new membership the process may be paused."""
    hearing_is_sync: bool = False
    """Anything read from the peer shows that both are in sync."""
    restarting_is_no_lapse: bool = False
    """A restarted process counts as in sync if the one before it was."""
    need_not_see_both: bool = False
    """A listing without the peer is good enough to begin with."""
    leaves_at_once: bool = False
    """Raft as in the paper: a leader removes the other of two without the other knowing."""
    grows_at_once: bool = False
    """A third voter is taken in without having been a learner first."""
    removals_come_back: bool = False
    """The registry lists its nodes without one before that is on its disk."""

    @property
    def lapses_end_rights(self) -> bool:
        """A node whose lease is over has lost what it knew for good."""
        kept = self.lapse_by_sent_times or self.open_gap_is_none
        kept = kept or self.registering_is_no_lapse or self.restarting_is_no_lapse
        return not kept and witness.registered_throughout not in self.without

    @property
    def listings_age(self) -> bool:
        """A listing of the node alone serves the sync that is there, and no loss but the latest."""
        return self.rule[1:] == witness.RULE[1:] and witness.no_route in self.rule and not self.need_not_see_both

    @property
    def rule(self) -> tuple[Condition, ...]:
        """The conditions of the decision."""
        return tuple(condition for condition in witness.RULE if condition not in self.without)


LocalStep = tuple[str, Node, int]
"""What happens, the node after it, and how many abandoned registrations it takes from the budget."""


def _stamp(number: int) -> datetime:
    return datetime.fromtimestamp(_NOW - number, UTC)


def _info(name: str, port: int, stamp: int = 0) -> NodeInfo:
    return NodeInfo(name, "10.0.0.1", port, _stamp(stamp), name)


_SELF, _PEER = _info("self", 6222), _info("peer", 6223)


def _listing(seen: Seen | None) -> Listing | None:
    if seen is None:
        return None
    own = _info("self", 6222, seen.stamp)
    return Listing(_NOW - 50 if seen.after_loss else _NOW - 150, (own, _PEER) if seen.both else (own,))


class Steps:
    """The steps of single nodes. `prompt`: the registry's answer to a heartbeat or registration is received at once,
    or never.
    """

    def __init__(self, variant: Variant, ttl: int, *, prompt: bool, forget: bool) -> None:
        self.variant = variant
        self.rule = variant.rule
        self.forget = forget
        self.ttl = ttl
        self.prompt = prompt
        self.oldest = ttl if variant.lapses_end_rights else 2 * ttl  # of a lease: a TTL before a request as old

    # -- one form for all nodes that will behave alike from now on ---------------------------------------------------

    def settle(self, node: Node) -> Node:
        """Drop dead facts, number the stamps anew: 0 is the registry's newest, the others only differ or not."""
        if self.forget:
            node = self._without_dead_facts(node)
        numbers = {0: 0}
        seen = node.listing
        if seen is not None and seen.stamp:
            seen = seen._replace(stamp=numbers.setdefault(seen.stamp, len(numbers)))
        asked = numbers.setdefault(node.asked, len(numbers)) if node.asked is not None else None
        sync = numbers.setdefault(node.sync, len(numbers)) if node.sync is not None else None
        return node._replace(listing=seen, asked=asked, sync=sync)

    def _without_dead_facts(self, node: Node) -> Node:
        if self.variant.lapses_end_rights and not 0 <= node.lease < self.ttl:
            node = node._replace(asked=None, sync=None)  # the next acknowledgement is a lapse
        if node.asked is not None and node.asked == node.sync:
            node = node._replace(asked=None)
        seen = node.listing
        if seen is None or not self.variant.listings_age:
            return node
        if seen.both:  # only good for asking
            useless = seen.stamp == node.sync
            return node._replace(listing=None if useless else seen._replace(after_loss=False))
        if not seen.after_loss or seen.stamp != node.sync:
            # Another sync needs a route, and the end of that route is another loss.
            return node._replace(listing=None)
        return node

    # -- the product's code on the model's values --------------------------------------------------------------------

    def may_go_alone(self, node: Node) -> bool:
        """The decision."""
        age = 0 if self.variant.open_gap_is_none and node.lease >= 0 else node.lease
        facts = Facts(
            now_ns=_NOW,
            member=_SELF,
            peer=_PEER,
            membership=1,
            lease=self._lease(age),
            sync=None if node.sync is None else Standing(0, _stamp(node.sync), 1),
            lost_ns=_NOW - 100,
            route=node.route,
            listing=_listing(node.listing),
        )
        return not witness.obstacles(facts, self.rule)

    def standing(self, node: Node) -> int | None:
        """The stamp of the standing that the node has now."""
        seen = node.listing
        if seen is None:
            return None
        listing = _listing(seen._replace(both=seen.both or self.variant.need_not_see_both))
        found = witness.standing(_SELF, _PEER, 1, self._lease(node.lease), listing, _NOW)
        return None if found is None else seen.stamp

    def _acknowledged(self, node: Node) -> Node:
        lease = self._lease(node.lease)
        sent = 0 if self.variant.lapse_by_receipt else node.age
        answered = sent if self.variant.lapse_by_sent_times else 0
        lease.renew(_NOW - sent * _TICK, self.ttl * _TICK, _NOW - answered * _TICK)
        node = _idle(node)._replace(lease=(_NOW - lease.renewed_ns) // _TICK)
        return node._replace(asked=None, sync=None) if lease.lapses else node

    def _lapsed(self, node: Node) -> Node:
        if self.variant.registering_is_no_lapse or (self.variant.restarting_is_no_lapse and node.lease < 0):
            return node._replace(lease=-1)
        return node._replace(lease=-1, asked=None, sync=None)

    def _lease(self, age: int) -> Lease:
        ttl = self.ttl * _TICK
        return Lease(ttl) if age < 0 else Lease(ttl, 1, _NOW - age * _TICK)

    # -- steps -------------------------------------------------------------------------------------------------------

    def ticked(self, node: Node) -> Node:
        """A tick passes. A request that has not been answered for a TTL is given up."""
        ttl = self.ttl
        lease = node.lease if node.lease < 0 else min(node.lease + 1, self.oldest)
        node = node._replace(entry=max(0, node.entry - 1), lease=lease)
        if node.request != NO_REQUEST:
            node = node._replace(age=node.age + 1) if node.age + 1 < ttl else _idle(node)
        return self.settle(node)

    def local(self, node: Node) -> tuple[LocalStep, ...]:
        """Everything the node can do by itself."""
        steps = [(what, self.settle(after), cost) for what, after, cost in self._local(node)]
        return tuple(step for step in steps if step[1] != node)

    def listed(self, node: Node, both: bool) -> Node:
        """The registry serves this node a listing. One that does not show the node itself is of no use."""
        if not node.up or not node.entry:
            return node
        return self.settle(node._replace(listing=Seen(0, both, not node.route)))

    def crashed(self, node: Node, *, abandoned: bool) -> Node:
        """The process is gone; its disk and what others know of it stay."""
        down = Node(
            up=False,
            membership=node.membership,
            behind=node.behind,
            abandoned=node.abandoned or abandoned,
            entry=node.entry,
            stored=node.stored,
            sync=node.sync if self.variant.restarting_is_no_lapse else None,
        )
        return self.settle(down)

    def _local(self, node: Node) -> Iterator[LocalStep]:
        if node.abandoned:
            yield "an abandoned registration of {i} arrives", self._entered(node)._replace(abandoned=False), 0
        if not node.up:
            yield "{i} starts again", node._replace(up=True), 0
            return
        if node.request == NO_REQUEST:
            yield "{i} sends a registration", self._lapsed(node)._replace(request=REGISTRATION), 0
            if node.lease >= 0:
                yield "{i} sends a heartbeat", node._replace(request=HEARTBEAT), 0
        else:
            yield from self._request(node)
        if node.route:
            yield from self._connected(node)
        if node.membership in MAY_GO:
            yield from self._choose(node)

    def _request(self, node: Node) -> Iterator[LocalStep]:
        """What becomes of the one request to the registry that a node has under way."""
        what = "heartbeat" if node.request == HEARTBEAT else "registration"
        yield f"the {what} of {{i}} or its answer is lost", _idle(node), 0
        if node.phase == ANSWERED:
            yield f"{{i}} receives the acknowledgement of its {what}", self._acknowledged(node), 0
            return
        if node.request == HEARTBEAT and not node.entry:
            yield "the heartbeat of {i} is refused: it is not registered", self._lapsed(_idle(node)), 0
            return
        arrived = self._entered(node)
        if self.prompt:
            yield f"the {what} of {{i}} arrives and is acknowledged", self._acknowledged(arrived), 0
            yield f"the {what} of {{i}} arrives, its answer is lost", _idle(arrived), 0
        else:
            yield f"the {what} of {{i}} arrives", arrived._replace(phase=ANSWERED), 0
        if node.request == REGISTRATION and not node.abandoned:
            yield "{i} gives up waiting for its registration", _idle(node)._replace(abandoned=True), 1

    def _entered(self, node: Node) -> Node:
        """The registry grants a TTL. A registration gets a stamp, unless the node is listed already."""
        if node.entry:
            return node._replace(entry=self.ttl)
        seen = node.listing
        return node._replace(
            entry=self.ttl,
            stored=True,
            listing=None if seen is None else seen._replace(stamp=seen.stamp + 1),
            asked=None if node.asked is None else node.asked + 1,
            sync=None if node.sync is None else node.sync + 1,
        )

    def _connected(self, node: Node) -> Iterator[LocalStep]:
        yield "{i} notices that it has lost {j}", without_route(node), 0
        asked = self.standing(node)
        if asked is not None and node.membership == BOTH:
            yield "{i}, which sees both listed, asks {j} for sync", node._replace(asked=asked), 0
            if node.mail:
                yield "{i} reads what {j} sent and takes it for sync", node._replace(sync=asked, mail=False), 0

    def _choose(self, node: Node) -> Iterator[LocalStep]:
        alone = node._replace(membership=ALONE, asked=None, sync=None, decided=False, mail=False)
        if not self.variant.decides_early:
            if self.may_go_alone(node):
                yield "{i} may go alone, and does", alone, 0
        elif node.decided:
            yield "{i} carries out its decision and goes alone", alone, 0
        elif self.may_go_alone(node):
            yield "{i} decides to go alone", node._replace(decided=True), 0


def without_route(node: Node) -> Node:
    """The loss is noticed: what was under way is lost, and no listing so far was requested after this."""
    seen = node.listing
    listing = None if seen is None else seen._replace(after_loss=False)
    return node._replace(route=False, asked=None, mail=False, listing=listing)


def _idle(node: Node) -> Node:
    return node._replace(request=NO_REQUEST, phase=GOING, age=0)
