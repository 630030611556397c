"""An explicit-state model of two members and their witness, checked exhaustively with the product's own rule.

Two nodes, one registry, and everything between them that can be late, lost or forgotten. No step is ever obligatory:
that a process stands still, however long, that an answer takes for ever, that a route is cut, all this is other steps
being taken meanwhile. What may go wrong a limited number of times is in `Faults`; nothing else is bounded, neither
depth nor time, so the search ends only when there are no new states.

The property: **whoever can acknowledge a write alone knows every write acknowledged so far.** A group of two
acknowledges a write only when both have it, so nothing else could go wrong.

How the states are kept few, all of it without hiding a behaviour:

- Times are ages in ticks, cut off at the TTL. With a TTL of 2 ticks "sent", "arrived" and "expired" already differ.
- Stamps are numbered from the newest; of older ones only equality is left to matter.
- A listing in flight is one that was served and not looked at yet. It counts as requested when it was served, which
  allows the model more than the product. So does an answer "in sync" that is known as soon as it is given.
- That a heartbeat is refused now and the refusal is known later is covered by the heartbeat arriving later.
- `prompt`: acknowledgements arrive at once or never. A later one could only leave a node with fewer rights; the
  extended run has them in flight all the same.
- The two nodes are interchangeable: of a state and its mirror image only one is visited.
- Facts that the rule can never accept again are dropped (of a broken variant only what its rule cannot accept
  either).
- Of Raft there is only what the rule relies on: writes, and with `changes` the steps by which members change. Who leads
  is not modelled: either may lead at any time.

A registry that one of the two embeds needs no model of its own. All that is special about it is that some orders of
events cannot happen: what its host sends is never lost, and it stops and restarts with its host only. Where a crash and
a restart of the registry are allowed, both together are.

`python -m tests.simulation.witness_model` prints the counts, and a counterexample for every broken variant; `--all`
checks the long settings too, which takes minutes.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from nimsnats.cluster import witness
from tests.simulation.witness_node import (
    ALONE,
    BOTH,
    GOING,
    GROWING,
    INVITING,
    LEAVING,
    MAY_GO,
    PARTING,
    REGISTRATION,
    SENT,
    STORED,
    THREE,
    UNSENT,
    Node,
    Steps,
    Variant,
)


class Faults(NamedTuple):
    """How often what may happen. Pauses, cuts, delays and lost messages are not counted: they are unlimited."""

    crashes: int = 0
    memory_losses: int = 0
    """The registry restarts and has forgotten everything."""
    comebacks: int = 0
    """The registry restarts and takes back everything in its database, expired entries too."""
    abandoned: int = 0
    """Registrations whose sender gives up and which arrive all the same, at any time."""
    evictions: int = 0
    """A node's entry is taken away while it lives: a farewell that comes late, or somebody's wish."""


@dataclass(frozen=True)
class Setting:
    """The world around the rule. `writes`: the messages of writes under the membership of both are modelled too."""

    faults: Faults = field(default_factory=Faults)
    ttl: int = 2
    prompt: bool = True
    writes: bool = False
    changes: bool = False
    """Members change in order, too: one leaves at the other's word, a third joins."""
    two_registries: bool = False
    """Each node has a registry of its own."""
    formed: bool = False
    """Begin with both registered, connected and in sync, instead of with two processes that have just started."""
    leftovers: bool = False
    """Begin with an abandoned registration of each under way."""
    forget: bool = True
    """Drop facts that the rule can never accept again."""

    def start(self) -> Node:
        """Either node at the beginning."""
        if self.formed:
            return Node(lease=0, sync=0, route=True, entry=self.ttl, stored=True, abandoned=self.leftovers)
        return Node(abandoned=self.leftovers)


@dataclass(frozen=True)
class Case:
    """A broken variant and a world in which it shows."""

    variant: Variant
    setting: Setting
    lead: int = 0
    """See `check`."""

    def check(self) -> Result:
        """Find a counterexample."""
        return check(self.variant, self.setting, lead=self.lead)


def _formed(
    faults: Faults | None = None, *, prompt: bool = True, leftovers: bool = False, changes: bool = False
) -> Setting:
    return Setting(faults or Faults(), prompt=prompt, formed=True, leftovers=leftovers, changes=changes)


BROKEN: tuple[Case, ...] = (
    Case(
        Variant("without (a)", without=(witness.in_sync, witness.registered_throughout, witness.same_registration)),
        _formed(),
        lead=8,
    ),
    Case(
        Variant("a restarted process keeps its right", restarting_is_no_lapse=True),
        _formed(Faults(crashes=1, comebacks=1)),
        lead=8,
    ),
    Case(
        Variant("lapses measured by receive times", lapse_by_receipt=True),
        _formed(Faults(comebacks=1), prompt=False),
        lead=3,
    ),
    Case(Variant("lapses measured by sent times only", lapse_by_sent_times=True), _formed(Faults(comebacks=1)), lead=3),
    Case(Variant("a gap that has not ended is no lapse", open_gap_is_none=True), _formed(Faults(comebacks=1)), lead=8),
    Case(
        Variant(
            "a registry that forgot taken for an expiry",
            registering_is_no_lapse=True,
            without=(witness.same_registration,),
        ),
        _formed(Faults(memory_losses=1)),
        lead=8,
    ),
    Case(
        Variant("the registry's stamp not compared", without=(witness.same_registration,)),
        _formed(Faults(memory_losses=1), leftovers=True),
        lead=8,
    ),
    Case(Variant("listing requested before the loss was noticed", without=(witness.listed_since_the_loss,)), _formed()),
    Case(Variant("listing not looked at", without=(witness.listed_alone,)), _formed()),
    Case(Variant("without (c)", without=(witness.no_route,)), _formed()),
    Case(Variant("a pause between decision and deed ignored", decides_early=True), _formed()),
    Case(Variant("anything heard from the peer taken for sync", hearing_is_sync=True), _formed()),
    Case(Variant("never seen in one listing", need_not_see_both=True), Setting(Faults(), two_registries=True)),
    Case(Variant("one of two removed without knowing", leaves_at_once=True), _formed(changes=True)),
    Case(Variant("a third voter without one of two knowing", grows_at_once=True), _formed(changes=True)),
    Case(
        Variant("a removal undone by a restart of the registry", removals_come_back=True),
        _formed(Faults(comebacks=1, evictions=1)),
        lead=3,
    ),
)
"""Weaker rules, each with the smallest world in which it fails."""

SETTINGS: dict[str, Setting] = {
    "a crash": Setting(Faults(crashes=1)),
    "the registry forgets": Setting(Faults(memory_losses=1)),
    "the registry comes back with its database": Setting(Faults(comebacks=1)),
    "two registries": Setting(Faults(crashes=1), two_registries=True),
    "members change in order": Setting(Faults(), changes=True),
    "an entry is taken away": Setting(Faults(evictions=1)),
}
"""Worlds in which the rule must hold, a few seconds each."""

LONG: dict[str, Setting] = {
    "acknowledgements in flight": Setting(Faults(crashes=1), prompt=False),
    "acknowledgements in flight, the registry comes back": Setting(Faults(crashes=1, comebacks=1), prompt=False),
    "writes in flight": Setting(Faults(crashes=1), writes=True),
    "two crashes, the registry forgets": Setting(Faults(crashes=2, memory_losses=1)),
    "two crashes, the registry comes back": Setting(Faults(crashes=2, comebacks=1)),
    "two abandoned registrations, the registry forgets": Setting(Faults(memory_losses=1, abandoned=2)),
    "an abandoned registration, the registry comes back": Setting(Faults(comebacks=1, abandoned=1)),
    "the registry forgets, and comes back": Setting(Faults(crashes=1, memory_losses=1, comebacks=1)),
    "three ticks to the TTL": Setting(Faults(crashes=1, comebacks=1), ttl=3),
    "no dead facts dropped": Setting(Faults(), forget=False),
    "the registry's host crashes with it, which comes back": Setting(Faults(crashes=1, comebacks=1)),
    "an entry is taken away, the registry comes back": Setting(Faults(crashes=1, comebacks=1, evictions=1)),
    "members change in order, one crashes": Setting(Faults(crashes=1), changes=True),
    "members change in order, the registry comes back": Setting(Faults(crashes=1, comebacks=1), changes=True),
    "members change in order, the registry forgets": Setting(Faults(crashes=1, memory_losses=1), changes=True),
}
"""More of everything, for the extended run."""


@dataclass
class Result:
    """`trace` leads to the violation, if there is one; `alone` counts states in which somebody is alone."""

    name: str
    states: int = 0
    steps: int = 0
    depth: int = 0
    alone: int = 0
    seconds: float = 0.0
    trace: list[str] = field(default_factory=list[str])

    @property
    def safe(self) -> bool:
        """No reachable state violates the property."""
        return not self.trace

    def __str__(self) -> str:
        verdict = "safe" if self.safe else f"broken in {len(self.trace) - 1} steps"
        counts = f"{self.states:,} states, {self.steps:,} steps, {self.depth} rounds, {self.alone:,} with one alone"
        return "\n".join([f"{self.name}: {verdict} ({counts}, {self.seconds:.1f} s)", *self.trace])


Deed = Callable[[Node], Node]


def _same(node: Node) -> Node:
    return node


# -- what two nodes do together ---------------------------------------------------------------------------------------


class Face(NamedTuple):
    """What of a node matters to the other."""

    up: bool
    membership: int
    behind: bool
    write: int
    asked: bool
    route: bool
    mail: bool


def _face(node: Node) -> Face:
    return Face(node.up, node.membership, node.behind, node.write, node.asked is not None, node.route, node.mail)


def _linked(node: Node) -> Node:
    return node._replace(route=True, mail=False)


def _falls_behind(node: Node) -> Node:
    return node._replace(behind=True)


def _synced(node: Node) -> Node:
    return node._replace(sync=node.asked, asked=None)


def _mailed(node: Node) -> Node:
    return node._replace(mail=True)


def _invites(node: Node) -> Node:
    return node._replace(membership=INVITING)


def _joins(node: Node) -> Node:
    return node._replace(membership=BOTH, behind=False, asked=None, sync=None, write=UNSENT)


def _joined(node: Node) -> Node:
    return node._replace(membership=BOTH, write=UNSENT)


def _write_sent(node: Node) -> Node:
    return node._replace(write=SENT)


def _write_stored(node: Node) -> Node:
    return node._replace(write=STORED)


def _write_done(node: Node) -> Node:
    return node._replace(write=UNSENT)


def _becomes(membership: int) -> Deed:
    """Another membership in the log. What is known of another number, or was asked, is about nothing."""
    numbered = membership in (ALONE, GROWING, THREE)

    def deed(node: Node) -> Node:
        return node._replace(membership=membership, asked=None, sync=None if numbered else node.sync)

    return deed


_alone, _parting, _leaving, _both, _growing, _three = map(_becomes, (ALONE, PARTING, LEAVING, BOTH, GROWING, THREE))


def _change(node: Face, other: Face, variant: Variant) -> Iterator[tuple[str, Deed, Deed]]:
    """Members change in order: `node` leads, `other` takes over what it is sent. A leader counts the other's log, so
    what it commits is in there, whether or not there is a route at that moment."""
    linked = node.route and other.up and other.route
    if node.membership == BOTH:
        yield "{i} notes that {j} is to leave", _parting, _same
        yield "{i} takes in a third as learner", _growing, _same
        if variant.leaves_at_once and linked and other.membership == BOTH:
            yield "{i} removes {j}, and goes alone", _alone, _same
        if variant.grows_at_once and linked:
            yield "{i} takes in a third voter, and goes alone with it", _three, _same
    if node.membership == PARTING:
        yield "{i} lets {j} stay after all", _both, _same
        if linked and other.membership in MAY_GO:
            yield "{j} hears that it is to leave", _same, _leaving
        if other.membership == LEAVING:
            yield "{i} goes on alone, {j} has left", _alone, _same
    if node.membership == BOTH and other.membership == LEAVING and linked:
        yield "{j} hears that it stays", _same, _both
    if node.membership == GROWING and linked and other.membership in MAY_GO:
        yield "{j} hears of the learner", _same, _growing
    if node.membership == GROWING == other.membership:
        yield "{i} makes the learner the third voter, and goes alone with it", _three, _same
    if node.membership == THREE and not other.behind:
        yield "{i} and the third acknowledge a write", _same, _falls_behind


def _meet(
    node: Face, other: Face, *, writes: bool, mails: bool, changes: Variant | None
) -> Iterator[tuple[str, Deed, Deed]]:
    """(what, what it does to `node`, what it does to `other`)."""
    if not node.up:
        return
    if node.membership == ALONE and not other.behind:
        yield "{i}, alone, acknowledges a write", _same, _falls_behind
    if writes:
        yield from _write(node, other)
    if changes is not None:
        yield from _change(node, other, changes)
    if not other.up:
        return
    if not node.route and not other.route:
        yield "{i} and {j} connect", _linked, _linked
    if not (node.route and other.route):
        return
    both = node.membership == BOTH == other.membership
    if node.asked and both:
        yield "{j} answers {i}: in sync", _synced, _same
    if mails and both and not other.mail:
        yield "{i} sends something to {j}", _same, _mailed
    if node.membership == ALONE and other.membership in (BOTH, PARTING, LEAVING, GROWING):
        yield "{i} makes it a group of both again", _invites, _same
    if node.membership == INVITING:
        yield "{j} takes over everything from {i}", _joined, _joins


def _write(node: Face, other: Face) -> Iterator[tuple[str, Deed, Deed]]:
    """A write under the membership of both is on both disks before it is acknowledged, so it leaves nobody behind."""
    if node.write == UNSENT and node.membership == BOTH and node.route:
        yield "{i} sends {j} a write", _write_sent, _same
    if node.write == SENT and other.up and other.route and node.membership == BOTH == other.membership:
        yield "{j} stores the write of {i}", _write_stored, _same
    if node.write == STORED:
        yield "{i} acknowledges a write that both have", _write_done, _same


# -- the search -------------------------------------------------------------------------------------------------------


class Model:
    """The transition system. Nodes are numbered; a state is two numbers and what faults are left."""

    def __init__(self, variant: Variant, setting: Setting) -> None:
        self.setting = setting
        self.variant = variant
        self.steps = Steps(variant, setting.ttl, prompt=setting.prompt, forget=setting.forget)
        self.nodes: list[Node] = []
        self._numbers: dict[Node, int] = {}
        self._faces: list[int] = []
        self._face_numbers: dict[Face, int] = {}
        self.single = cache(self._single)
        self.meetings = cache(self._meetings)
        self.done = cache(self._done)
        self.crash = cache(self._crash)
        self.after_restart = cache(self._after_restart)
        self.evicted = cache(self._evicted)
        self.ticked = cache(self._ticked)

    def number(self, node: Node) -> int:
        """The number of a settled node."""
        number = self._numbers.get(node)
        if number is None:
            number = self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
            self._faces.append(self._face_numbers.setdefault(_face(node), len(self._face_numbers)))
        return number

    def successors(self, a: int, b: int, faults: Faults) -> Iterator[tuple[str, int, int, int, Faults]]:
        """(what, which of the two is `{i}`, the two nodes, faults left)."""
        nodes = self.nodes
        first, second = nodes[a], nodes[b]
        for what, after, cost in self.single(a, second.entry > 0):
            if not cost:
                yield what, 0, after, b, faults
            elif faults.abandoned:
                yield what, 0, after, b, faults._replace(abandoned=faults.abandoned - 1)
        for what, after, cost in self.single(b, first.entry > 0):
            if not cost:
                yield what, 1, a, after, faults
            elif faults.abandoned:
                yield what, 1, a, after, faults._replace(abandoned=faults.abandoned - 1)
        yield "a tick passes", 0, self.ticked(a), self.ticked(b), faults
        for what, i, deed, other_deed in self.meetings(self._faces[a], self._faces[b]):
            yield what, i, self.done(deed, a), self.done(other_deed, b), faults
        if faults.crashes:
            left = faults._replace(crashes=faults.crashes - 1)
            for what, after, cost in self.crash(a):
                if cost <= faults.abandoned:
                    yield what, 0, after, b, left._replace(abandoned=faults.abandoned - cost)
            for what, after, cost in self.crash(b):
                if cost <= faults.abandoned:
                    yield what, 1, a, after, left._replace(abandoned=faults.abandoned - cost)
        if faults.evictions:
            left = faults._replace(evictions=faults.evictions - 1)
            yield "the entry of {i} is taken away", 0, self.evicted(a), b, left
            yield "the entry of {i} is taken away", 1, a, self.evicted(b), left
        restart = self.after_restart
        if faults.memory_losses:
            left = faults._replace(memory_losses=faults.memory_losses - 1)
            yield "the registry restarts and has forgotten all", 0, restart(a, False), restart(b, False), left
        if faults.comebacks:
            left = faults._replace(comebacks=faults.comebacks - 1)
            what = "the registry restarts with its database, expired entries too"
            yield what, 0, restart(a, True), restart(b, True), left

    def _single(self, i: int, peer_listed: bool) -> tuple[tuple[str, int, int], ...]:
        node = self.nodes[i]
        found = [(what, self.number(after), cost) for what, after, cost in self.steps.local(node)]
        both = peer_listed and not self.setting.two_registries
        what = "the registry lists both to {i}" if both else "the registry lists {i} alone to it"
        found.append((what, self.number(self.steps.listed(node, both)), 0))
        return tuple(step for step in found if step[1] != i)

    def _ticked(self, i: int) -> int:
        return self.number(self.steps.ticked(self.nodes[i]))

    def _meetings(self, first: int, second: int) -> tuple[tuple[str, int, Deed, Deed], ...]:
        faces = list(self._face_numbers)
        a, b = faces[first], faces[second]
        writes, mails = self.setting.writes, self.variant.hearing_is_sync
        changes = self.variant if self.setting.changes else None
        ab, ba = ((_meet(*two, writes=writes, mails=mails, changes=changes)) for two in ((a, b), (b, a)))
        found = [(what, 0, deed, other) for what, deed, other in ab]
        found += [(what, 1, other, deed) for what, deed, other in ba]
        return tuple(found)

    def _done(self, deed: Deed, i: int) -> int:
        return self.number(self.steps.settle(deed(self.nodes[i])))

    def _crash(self, i: int) -> tuple[tuple[str, int, int], ...]:
        node = self.nodes[i]
        if not node.up:
            return ()
        found = [("{i} crashes", self.number(self.steps.crashed(node, abandoned=False)), 0)]
        if (node.request, node.phase) == (REGISTRATION, GOING) and not node.abandoned:
            after = self.number(self.steps.crashed(node, abandoned=True))
            found.append(("{i} crashes, its registration is still under way", after, 1))
        return tuple(found)

    def _evicted(self, i: int) -> int:
        node = self.nodes[i]
        stored = node.stored and self.variant.removals_come_back
        return self.number(self.steps.settle(node._replace(entry=0, stored=stored)))

    def _after_restart(self, i: int, comeback: bool) -> int:
        node = self.nodes[i]
        if comeback:
            return self.number(self.steps.settle(node._replace(entry=self.setting.ttl * node.stored)))
        return self.number(self.steps.settle(node._replace(entry=0, stored=False)))


State = tuple[int, int, Faults]


def check(variant: Variant, setting: Setting, name: str = "", *, lead: int = 0, most: int = 20_000_000) -> Result:
    """Visit every state that can be reached until one violates the property; at most `most`.

    Nearest first, except that with a `lead` the states in which somebody is alone are searched so many times deeper:
    that finds a violation sooner, although not always a shortest one.
    """
    search = _Search(Model(variant, setting), Result(name or variant.name))
    begun = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # millions of tuples, none of them garbage
    try:
        _run(search, lead, most)
    finally:
        if collecting:
            gc.enable()
    search.result.states = len(search.came_from)
    search.result.seconds = time.perf_counter() - begun
    return search.result


def _run(search: _Search, lead: int, most: int) -> None:
    layer, ahead = search.begin(), list[State]()
    while (layer or ahead) and not search.result.trace:
        found = search.expand(layer)
        search.result.depth += 1
        layer = [state for state in found if not (lead and search.alone(state))]
        ahead += [state for state in found if lead and search.alone(state)]
        for _ in range(lead):
            found = search.expand(ahead)
            ahead = [state for state in found if search.alone(state)]
            layer += [state for state in found if not search.alone(state)]
        assert len(search.came_from) <= most, f"more than {most:,} states"


class _Search:
    """Which states have been reached, and from where."""

    def __init__(self, model: Model, result: Result) -> None:
        self.model = model
        self.result = result
        self.came_from: dict[State, State | None] = {}

    def begin(self) -> list[State]:
        model = self.model
        start = model.number(model.steps.settle(model.setting.start()))
        first = (start, start, model.setting.faults)
        self.came_from[first] = None
        return [first]

    def alone(self, state: State) -> bool:
        """Whether somebody is."""
        nodes = self.model.nodes
        return nodes[state[0]].membership == ALONE or nodes[state[1]].membership == ALONE

    def expand(self, layer: list[State]) -> list[State]:
        """States that are reached for the first time, in one step. Nothing more once a violation is found."""
        came_from, result, model, nodes = self.came_from, self.result, self.model, self.model.nodes
        following: list[State] = []
        if result.trace:
            return following
        for state in layer:
            result.alone += self.alone(state)
            for _, _, a, b, faults in model.successors(*state):
                result.steps += 1
                after = (a, b, faults) if a <= b else (b, a, faults)
                if after in came_from:
                    continue
                came_from[after] = state
                following.append(after)
                if _breaks(nodes[a]) or _breaks(nodes[b]):
                    result.trace = _explain(model, came_from, after)
                    return following
        return following


def _breaks(node: Node) -> bool:
    return node.behind and node.membership == ALONE


def _explain(model: Model, came_from: dict[State, State | None], last: State) -> list[str]:
    """The steps to a state, in words, with names that stay with their node through the mirroring."""
    path = [last]
    while (before := came_from[path[-1]]) is not None:
        path.append(before)
    path.reverse()
    lines: list[str] = []
    names = ("A", "B")
    for number, (state, after) in enumerate(pairwise(path), 1):
        what, i, a, b, _ = next(
            step for step in model.successors(*state) if (min(step[2:4]), max(step[2:4]), step[4]) == after
        )
        lines.append(f"  {number:2}. {what.format(i=names[i], j=names[1 - i])}")
        if a > b:
            names = (names[1], names[0])
    able = [name for name, i in zip(names, last[:2], strict=True) if _breaks(model.nodes[i])]
    lines.append(f"      and {' and '.join(able)}, alone too, can acknowledge without knowing of an acknowledged write")
    return lines


def main() -> int:
    """Check the rule in every setting, and every broken variant; `--all`: the long settings too."""
    everything = "--all" in sys.argv[1:]
    fine = True
    for name, setting in (SETTINGS | LONG if everything else SETTINGS).items():
        result = check(Variant(), setting, f"the rule: {name}")
        fine = fine and result.safe
        print(result, flush=True)
    for case in BROKEN:
        result = case.check()
        fine = fine and not result.safe
        print(f"\n{result}", flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
