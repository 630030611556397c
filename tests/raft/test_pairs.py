"""Groups of two: who has a partner, what neither may do without the other knowing, and going on alone."""

from __future__ import annotations

import asyncio

import pytest

from nimsnats.raft.core import Role
from nimsnats.raft.machine import ProposalDropped
from nimsnats.raft.membership import Membership
from nimsnats.storage.interface import StoredGroup
from tests.raft.cluster import Cluster, Node, run
from tests.raft.network import Network
from tests.raft.recorder import MESSAGES


def _elected(names: list[str], voters: int) -> Network:
    network = Network(names, voters=voters)
    for _ in range(20):
        network.members["a"].core.tick()
        network.stabilize()
    assert network.members["a"].core.role is Role.LEADER
    return network


def _heartbeats(network: Network) -> None:
    for _ in range(4):
        network.members["a"].core.tick()
        network.stabilize()


def test_both_of_two_are_partners_once_they_know_it() -> None:
    network = _elected(["a", "b"], 2)
    a, b = network.members["a"].core, network.members["b"].core
    _heartbeats(network)
    assert (a.partner(), b.partner()) == ("b", "a")
    three = _elected(["a", "b", "c"], 3)
    assert [member.core.partner() for member in three.members.values()] == ["", "", ""]


def test_nobody_is_left_by_a_leader_without_knowing() -> None:
    network = _elected(["a", "b"], 2)
    a, b = network.members["a"].core, network.members["b"].core
    with pytest.raises(ValueError, match="tells both"):
        a.change_membership(a.membership.without("b"))
    with pytest.raises(ValueError, match="tells both"):
        a.change_membership(a.membership.with_learner("b"))
    network.cut = {("a", "b")}
    a.change_membership(a.membership.with_leaving(frozenset("b")))
    network.stabilize()
    assert a.log.committed < a.log.last and a.partner() == "b", "who stays keeps its right"
    with pytest.raises(ValueError, match="under way"):
        a.change_membership(a.membership.without("b"))
    network.cut = set()
    _heartbeats(network)
    assert a.log.committed == a.log.last and (a.partner(), b.partner()) == ("b", "")
    network.cut = {("a", "b")}
    a.change_membership(a.membership.without("b"))
    network.stabilize()
    assert a.log.committed == a.log.last and a.membership.voters == {"a"} and not b.partner()


def test_nobody_is_outvoted_by_a_third_without_knowing() -> None:
    network = _elected(["a", "b", "c"], 2)
    a, b = network.members["a"].core, network.members["b"].core
    with pytest.raises(ValueError, match="tells both"):
        a.change_membership(a.membership.with_voter("c"))
    a.change_membership(a.membership.with_learner("c"))
    assert not a.partner()
    _heartbeats(network)
    network.cut = {("a", "b"), ("b", "a"), ("c", "b"), ("b", "c")}
    a.change_membership(a.membership.with_voter("c"))
    network.stabilize()
    assert a.log.committed == a.log.last, "two of three go on"
    assert b.membership.voters == {"a", "b"} and not b.partner(), "and the third knows that they could"


def test_a_membership_has_the_same_number_everywhere() -> None:
    network = _elected(["a", "b", "c"], 2)
    a = network.members["a"].core
    for after in ("with_learner", "with_voter", "without"):
        a.change_membership(getattr(a.membership, after)("c"))
        network.stabilize()
    a.change_membership(a.membership.with_leaving(frozenset("b")))
    network.stabilize()
    _heartbeats(network)
    assert [network.members[name].core.membership.number for name in "ab"] == [3, 3], "a notice changes nobody's part"
    recorded = a.membership.encode()
    assert Membership.decode(recorded) == a.membership
    assert Membership.decode(b'[["a"], ["b"]]') == Membership(frozenset("a"), frozenset("b"))
    with pytest.raises(ValueError):
        Membership.decode(b'[["a"], [], [], 1.5]')


async def _two(seed: int) -> tuple[Cluster, Node, Node]:
    """Two nodes with a group; the first of them returned leads."""
    cluster = Cluster("ab", seed)
    await cluster.start()
    for node in cluster.nodes.values():
        await node.open("S", cluster.members("ab"))
    await cluster.write(b"together")
    leader = await cluster.elected()
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    await cluster.agreed("ab")
    return cluster, leader, follower


@pytest.mark.parametrize("survivor", ["leader", "follower"])
@pytest.mark.parametrize("quiet", [False, True])
def test_the_survivor_goes_on_and_the_other_comes_back(survivor: str, quiet: bool) -> None:
    async def test() -> None:
        cluster, leader, follower = await _two(7)
        stays, dies = (leader, follower) if survivor == "leader" else (follower, leader)
        await cluster.until(lambda: cluster.group(stays.name).partner() == dies.member)
        if quiet:
            await cluster.until(lambda: cluster.group(stays.name).replica.quiet)
        cluster.isolate(dies.name)
        if survivor == "follower":  # an entry that only the dying one has, acknowledged to nobody
            cluster.group(dies.name).propose(MESSAGES, b"unheard", "unheard")
            machine = dies.machines["S"]
            await cluster.until(lambda: machine.refused)
            assert isinstance(machine.refused[0][1], ProposalDropped)
        dies.crash()
        if survivor == "leader":
            cluster.group(stays.name).propose(MESSAGES, b"one of two", "one of two")
            machine = stays.machines["S"]
            await cluster.until(lambda: machine.refused)
        assert b"one of two" not in stays.machines["S"].entries.values()
        cluster.group(stays.name).seize()
        await cluster.write(b"alone", patience=1)
        assert cluster.group(stays.name).members == (stays.member,) and cluster.group(stays.name).alone
        cluster.cut.clear()
        await dies.start()
        returned = await dies.open("S", cluster.members("ab"))
        await cluster.runtime.sleep(3)
        assert not returned.leading and cluster.group(stays.name).leading, "what it has is not enough to lead"
        await cluster.group(stays.name).change_members(cluster.members("ab"))
        held = list((await cluster.agreed("ab")).values())
        assert [data for data in held if data != b"one of two"] == [b"together", b"alone"]
        await cluster.until(lambda: returned.partner() == stays.member)
        await cluster.stop()

    run(test)


def test_a_survivor_that_restarts_is_alone_still() -> None:
    async def test() -> None:
        cluster, leader, follower = await _two(8)
        follower.crash()
        cluster.group(leader.name).seize()
        await cluster.write(b"alone")
        number = cluster.group(leader.name).core.membership.number
        cluster.group(leader.name).compact()
        await asyncio.sleep(0)
        leader.crash()
        await leader.start()
        again = await leader.open("S", cluster.members("ab"))
        assert again.leading and again.members == (leader.member,) and again.core.membership.number == number == 1
        assert list(leader.machines["S"].entries.values()) == [b"together", b"alone"]
        await cluster.stop()

    run(test)


def test_a_member_that_has_lost_entries_has_no_partner() -> None:
    async def test() -> None:
        cluster, leader, follower = await _two(9)
        await cluster.until(lambda: cluster.group(leader.name).partner())
        leader.crash()
        await leader.start()
        host = leader.host
        assert host is not None
        load = host.storage.load_group

        async def damaged(name: str) -> StoredGroup | None:
            stored = await load(name)
            if stored is not None:
                stored.damage.append("flipped by the test")
            return stored

        host.storage.load_group = damaged  # type: ignore[method-assign]
        cluster.isolate(leader.name)
        group = await leader.open("S", cluster.members("ab"))
        assert group.impaired and not group.partner()
        assert follower.host is not None
        await cluster.stop()

    run(test)
