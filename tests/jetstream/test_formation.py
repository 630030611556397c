"""Whatever order nodes meet in, and whoever starts anew meanwhile, they end as one cluster and throw nothing away.

A small world of nodes around the decision under test, explored exhaustively: every order of what may happen, up to a
number of troubles. Groups are reduced to what Raft promises: their entries are in one order, a majority of the voters
is needed for each, members learn of them late, and a voter that has left takes part no more. From every state that is
reached, a calm period must end with every node in one cluster, but for clusters that both hold data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from nimsnats.jetstream.formation import Decision, Hello, Situation, Step, cluster_id, conflicts, decide, given_up

CALM_ROUNDS = 12


@dataclass(frozen=True)
class Group:
    """A cluster's meta group: what is committed in it."""

    voters: frozenset[int]
    data: bool = False
    given_up: bool = False
    target: str = ""


@dataclass(frozen=True)
class Place:
    """A node: where it belongs, and what it has heard. `late` says that it has not applied a committed end yet."""

    cluster: str
    voters: frozenset[int]
    late: bool = True
    bound: bool = True
    heard: frozenset[str] = frozenset()
    asked: tuple[Hello, ...] | None = None
    """Its own hello when it began to ask around, then the answers so far."""


@dataclass(frozen=True)
class World:
    """Everything. `troubles` are left, `born` numbers the clusters."""

    nodes: tuple[Place, ...]
    groups: frozenset[tuple[str, Group]]
    born: int
    troubles: int

    def group(self, name: str) -> Group:
        return dict(self.groups)[name]

    def with_group(self, name: str, group: Group) -> World:
        return replace(self, groups=frozenset((dict(self.groups) | {name: group}).items()))

    def with_node(self, at: int, place: Place) -> World:
        return replace(self, nodes=(*self.nodes[:at], place, *self.nodes[at + 1 :]))


def member(at: int) -> str:
    return f"n{at}@i{at}"


def beginning(data: tuple[bool, ...], troubles: int) -> World:
    """Nodes that start in the same moment, each a cluster of one, some with a stream."""
    names = [cluster_id(f"i{at}", at + 1) for at in range(len(data))]
    nodes = tuple(Place(name, frozenset({at})) for at, name in enumerate(names))
    groups = {name: Group(frozenset({at}), held) for at, (name, held) in enumerate(zip(names, data, strict=True))}
    return World(nodes, frozenset(groups.items()), len(data) + 1, troubles)


def has_majority(world: World, name: str) -> bool:
    voters = world.group(name).voters
    present = [at for at in voters if world.nodes[at].cluster == name]
    return len(present) > len(voters) // 2


def hello(world: World, at: int) -> Hello:
    place = world.nodes[at]
    group = world.group(place.cluster)
    members = tuple(sorted(map(member, place.voters)))
    leader = f"n{min(group.voters)}" if has_majority(world, place.cluster) else ""
    return Hello(member(at), place.cluster, at in place.voters, group.data, members, leader, place.heard)


def leads(world: World, at: int) -> bool:
    """The lowest voter that is there leads, if a majority is."""
    place = world.nodes[at]
    present = [each for each in sorted(place.voters) if world.nodes[each].cluster == place.cluster]
    current = place.voters == world.group(place.cluster).voters
    return current and has_majority(world, place.cluster) and present[0] == at


def decision(world: World, at: int, own: Hello, answers: tuple[Hello, ...], *, waited: bool) -> Decision:
    place = world.nodes[at]
    group = world.group(place.cluster)
    situation = Situation(
        own,
        leading=leads(world, at) and not group.given_up,
        bound=place.bound,
        waited=waited,
        released=group.given_up and not place.late,
    )
    return decide(situation, answers)


def act(world: World, at: int, answers: tuple[Hello, ...], *, waited: bool = False) -> World:
    """A node has asked around, and does what it decides."""
    place = world.nodes[at]
    assert place.asked is not None
    own = place.asked[0]
    heard = given_up(own, answers)
    world = world.with_node(at, replace(place, heard=heard, asked=None))
    found = decision(world, at, own, answers, waited=waited)
    if found.step is Step.STAY:
        return world
    if found.step is Step.GIVE_UP:
        assert found.target is not None
        group = world.group(place.cluster)
        if group.data:  # a stream was created first: the entry has no effect
            return world
        return world.with_group(place.cluster, replace(group, given_up=True, target=found.target.cluster))
    if place.bound:
        assert world.group(place.cluster).given_up, "what the cluster counts on is thrown away"
    if world.group(place.cluster).given_up and not place.late:
        heard |= {place.cluster}
    if found.step is Step.JOIN:
        assert found.target is not None
        voters = frozenset(int(name[1 : name.index("@")]) for name in found.target.members) - {at}
        moved = Place(found.target.cluster, voters, bound=False, heard=heard)
        return world.with_node(at, moved)
    name = cluster_id(f"i{at}", world.born)
    moved = Place(name, frozenset({at}), heard=heard)
    world = replace(world, born=world.born + 1).with_group(name, Group(frozenset({at})))
    return world.with_node(at, moved)


def admitted(world: World, at: int) -> World | None:
    """A node that wants a place gets one, if the cluster has a majority to say so."""
    place = world.nodes[at]
    group = world.group(place.cluster)
    if at in group.voters or group.given_up or not has_majority(world, place.cluster):
        return None
    voters = group.voters | {at}
    world = world.with_group(place.cluster, replace(group, voters=voters))
    for each in voters:
        if world.nodes[each].cluster == place.cluster:
            world = world.with_node(each, replace(world.nodes[each], voters=voters, bound=True))
    return world


def learned(world: World, at: int) -> World | None:
    """A member applies the entry that gives its cluster up, as long as others are there to say that it is committed."""
    place = world.nodes[at]
    if not place.late or not world.group(place.cluster).given_up or not has_majority(world, place.cluster):
        return None
    return world.with_node(at, replace(place, late=False))


def following(world: World) -> Iterator[World]:
    """Every state that may come next."""
    for at, place in enumerate(world.nodes):
        others = [other for other in range(len(world.nodes)) if other != at]
        if place.asked is None:
            yield world.with_node(at, replace(place, asked=(hello(world, at),)))
        else:
            answered = {answer.member for answer in place.asked}
            for other in others:
                if member(other) not in answered:
                    yield world.with_node(at, replace(place, asked=(*place.asked, hello(world, other))))
            yield act(world, at, place.asked[1:])
            if at not in place.voters and not any(
                answer.joined and answer.cluster == place.cluster for answer in place.asked[1:]
            ):
                yield act(world, at, place.asked[1:], waited=True)
        for after in (admitted(world, at), learned(world, at)):
            if after is not None:
                yield after
        if world.troubles:
            yield from troubles(world, at)


def troubles(world: World, at: int) -> Iterator[World]:
    """A node starts anew and has forgotten what it had only heard; or a client creates, or deletes, a stream."""
    place = world.nodes[at]
    fewer = replace(world, troubles=world.troubles - 1)
    yield fewer.with_node(at, replace(place, heard=frozenset(), asked=None, late=True))
    group = world.group(place.cluster)
    if leads(world, at) and not group.given_up:
        yield fewer.with_group(place.cluster, replace(group, data=not group.data))


def calm(world: World) -> World:
    """Everybody is heard by everybody, one after the other, until nothing changes."""
    world = replace(world, troubles=0)
    for _ in range(CALM_ROUNDS):
        before = world
        for at in range(len(world.nodes)):
            for after in (learned(world, at), admitted(world, at)):
                world = after or world
            world = world.with_node(at, replace(world.nodes[at], asked=(hello(world, at),)))
            answers = tuple(hello(world, other) for other in range(len(world.nodes)) if other != at)
            world = act(
                world,
                at,
                answers,
                waited=not any(answer.joined and answer.cluster == world.nodes[at].cluster for answer in answers),
            )
        if world == before:
            break
    return world


def check_peace(world: World) -> None:
    """One cluster, or several that hold data and say so."""
    end = calm(world)
    names = {place.cluster for place in end.nodes}
    holding = {name for name in names if end.group(name).data}
    assert names == holding or len(names) == 1, f"{world}\nends as\n{end}"
    for at, place in enumerate(end.nodes):
        assert at in end.group(place.cluster).voters and at in place.voters, f"{world}\nends as\n{end}"
        others = [hello(end, other) for other in range(len(end.nodes)) if other != at]
        apart = {other.member for other in others if other.cluster != place.cluster}
        assert set(conflicts(hello(end, at), others)) == apart


def canonical(world: World) -> World:
    """The same state whatever the numbers of clusters that nobody remembers any more."""
    named = {place.cluster for place in world.nodes}
    for place in world.nodes:
        named |= place.heard
        for each in place.asked or ():
            named |= {each.cluster, *each.given_up}
    return replace(world, groups=frozenset(pair for pair in world.groups if pair[0] in named))


def explore(first: World, limit: int) -> int:
    """Check every state that can be reached, up to `limit` of them; returns how many there were."""
    seen = {first}
    peaceful: set[World] = set()
    waiting = deque([first])
    while waiting and len(seen) < limit:
        world = waiting.popleft()
        # questions on their way are asked anew in the calm
        settled = replace(world, troubles=0, nodes=tuple(replace(place, asked=None) for place in world.nodes))
        if settled not in peaceful:
            peaceful.add(settled)
            check_peace(settled)
        for after in following(world):
            after = canonical(after)
            if after.born <= first.born + 2 and after not in seen:
                seen.add(after)
                waiting.append(after)
    return len(seen)


@pytest.mark.parametrize("data", [(False, False), (False, True)])
def test_two_nodes_end_as_one_cluster_in_every_history(data: tuple[bool, bool]) -> None:
    assert explore(beginning(data, troubles=1), limit=60_000) < 60_000


@pytest.mark.extended
@pytest.mark.timeout(900)
@pytest.mark.parametrize("data", [(False, False), (True, False), (False, True), (True, True)])
def test_two_nodes_do_so_through_more_trouble(data: tuple[bool, bool]) -> None:
    assert explore(beginning(data, troubles=2), limit=2_000_000) < 2_000_000


@pytest.mark.extended
@pytest.mark.timeout(900)
@pytest.mark.parametrize("data", [(False, False, False), (False, False, True), (True, False, True)])
def test_three_nodes_end_as_one_cluster_in_every_history(data: tuple[bool, ...]) -> None:
    print(f"{explore(beginning(data, troubles=1), limit=2_000_000)} states")
