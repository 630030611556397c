"""What the nodes of a world hold, seen from outside: who has a stream, whether the cluster is whole, what is stored.

Owns the look-ups through the nodes' own objects. It asks no node anything and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nimsnats.raft.transport import node_of
from tests.simulation.world import Violation, World

if TYPE_CHECKING:
    from nimsnats.jetstream.serving import ServedStream

Held = dict[int, tuple[bytes, bytes, bytes]]
"""(subject, payload, headers) by sequence."""


@dataclass(slots=True)
class Wanted:
    """A stream that is to be there, and its replicas in a cluster that is large enough."""

    name: str
    replicas: int


def holders(world: World, stream: str) -> dict[str, ServedStream]:
    """The replicas of a stream on nodes that are running, by node."""
    found: dict[str, ServedStream] = {}
    for machine in world.used:
        engine = machine.engine
        if engine is not None and "$G" in engine.accounts:
            served = engine.accounts["$G"].streams.get(stream)
            if served is not None:
                found[machine.name] = served
    return found


def placed(world: World, wanted: Wanted) -> bool:
    """Whether a stream has all its replicas, all of them whole, and one leader."""
    found = holders(world, wanted.name)
    leaders = [served for served in found.values() if served.stream.leading]
    if len(leaders) != 1 or len(found) != min(wanted.replicas, len(world.used)):
        return False
    group = leaders[0].stream.group
    members = sorted(map(node_of, group.members))
    return members == sorted(found) and not group.learners and not any(_impaired(served) for served in found.values())


def _impaired(served: ServedStream) -> bool:
    return bool(served.stream.group.core.impaired)  # type: ignore[attr-defined]


def whole(world: World, wanted: list[Wanted]) -> bool:
    """Whether all nodes that ever took part are up and one cluster, and every stream is where it should be."""
    names = sorted(machine.name for machine in world.used)
    for machine in world.used:
        engine = machine.engine
        if not machine.up or engine is None or engine.cluster is None or engine.cluster.joining:
            return False
        group = engine.meta.group
        if sorted(map(node_of, group.members)) != names or group.learners or not group.leader:
            return False
        if group.core.impaired:  # type: ignore[attr-defined]
            return False
    return all(placed(world, each) for each in wanted)


def agreed(world: World, wanted: list[Wanted]) -> bool:
    """Whether all replicas have applied all that there is."""
    for each in wanted:
        groups = [served.stream.group for served in holders(world, each.name).values()]
        tops = {group.applied for group in groups}
        if not placed(world, each) or len(tops) != 1 or tops != {group.committed for group in groups}:
            return False
    return True


async def content(served: ServedStream) -> dict[int, tuple[bytes, bytes, bytes, int]]:
    """(subject, payload, headers, time) by sequence of what a replica holds. To be run in its process."""
    stream = served.stream
    held: dict[int, tuple[bytes, bytes, bytes, int]] = {}
    for seq in range(max(stream.first_seq, 1), stream.last_seq + 1):
        if stream.live(seq):
            message = stream.get(seq) or await stream.load(seq)
            if message is None:
                raise Violation(f"{stream.name} cannot read {seq}")
            held[seq] = (message.subject, message.payload, message.headers, message.time)
    return held


async def same_everywhere(world: World, stream: str) -> tuple[Held, int]:
    """What all replicas hold, and the last sequence. Raises Violation if they differ."""
    copies: dict[str, tuple[dict[int, tuple[bytes, bytes, bytes, int]], int, int]] = {}
    for name, served in holders(world, stream).items():
        process = world.machine(name).process
        assert process is not None
        held = await process.spawn(content(served))
        copies[name] = (held, served.stream.first_seq, served.stream.last_seq)
    (first, one), *others = copies.items()
    for name, other in others:
        if other != one:
            seqs = [seq for seq in sorted(one[0].keys() | other[0].keys()) if one[0].get(seq) != other[0].get(seq)]
            raise Violation(
                f"{stream} differs on {first} ({one[1]}..{one[2]}) and {name} ({other[1]}..{other[2]}) at {seqs[:5]}:"
                f" {[one[0].get(seq) for seq in seqs[:2]]}, {[other[0].get(seq) for seq in seqs[:2]]}"
            )
    return {seq: message[:3] for seq, message in one[0].items()}, one[2]


def named_everywhere(world: World, stream: str) -> None:
    """Raises Violation unless all replicas hold the same state, and have refused the same entries of their log."""
    found = {name: served.stream for name, served in holders(world, stream).items()}
    (first, one), *others = found.items()
    for name, other in others:
        if list(other.refusals.newest) != list(one.refusals.newest) or other.refusals.count != one.refusals.count:
            raise Violation(
                f"{stream}: {first} has refused {one.refusals.count} entries {list(one.refusals.newest)[-2:]}, {name}"
                f" {other.refusals.count} {list(other.refusals.newest)[-2:]}"
            )
        if other.state() != one.state():
            raise Violation(f"{stream}: the states of {first} and {name} differ")


def state(world: World) -> str:
    """All nodes and groups, for a report."""
    lines: list[str] = []
    for machine in world.used:
        engine = machine.engine
        if engine is None or not machine.up:
            lines.append(f"{machine.name} running={machine.running} up={machine.up}")
            continue
        joining = engine.cluster is not None and engine.cluster.joining
        lines.append(f"{machine.name} joining={joining}")
        for group in engine.host.groups():
            core = group.core
            lines.append(
                f"  {group.name}: term {group.term} leader {group.leader} members {list(map(node_of, group.members))}"
                f" learners {list(map(node_of, group.learners))} applied {group.applied} committed {group.committed}"
                f" last {core.log.last} durable {core.log.durable} impaired {core.impaired} alone {group.alone}"
                f" {core.role.name}"
            )
    return "\n".join(lines)
