"""Random histories of a group: lost, late, repeated and reordered messages, cuts, crashes, slow disks,
snapshots, changes of membership. Safety holds after every step; when the faults end, the group works
again."""

from __future__ import annotations

import pytest

from nimsnats.raft.core import Role
from nimsnats.raft.machine import NotLeader
from nimsnats.raft.membership import Membership
from tests.raft.network import Member, Network


class Chaos:
    """One seeded history."""

    def __init__(self, seed: int) -> None:
        names = ["a", "b", "c", "d", "e"]
        self.network = Network(names, seed, voters=3 if seed % 2 else 5)
        self.network.slow_installs = seed % 4 < 2
        self.random = self.network.source
        self.sent = 0
        self.hasty = seed % 3 == 0

    def any_member(self) -> Member:
        return self.network.members[self.random.choice(sorted(self.network.members))]

    def step(self) -> None:
        network, dice = self.network, self.random.random()
        member = self.any_member()
        if dice < 0.45 and network.wire:
            at = self.random.randrange(min(len(network.wire), 8))  # a little out of order
            message = network.wire.pop(at)
            fate = self.random.random()
            if fate > 0.03:
                network.deliver(message)
            if fate > 0.97:
                network.send([message])  # repeated
        elif dice < 0.65:
            network.finish_write(member)
        elif dice < 0.83:
            # Some histories let time run ahead of the disks, so that members act on what they have not yet
            # written.
            for _ in range(self.random.randrange(1, 2 + 5 * self.hasty)):
                member.core.tick()
            network.pump(member)
        elif dice < 0.95:
            self.propose(member)
        elif dice < 0.955:
            self.change(member)
        elif dice < 0.975:
            member.crash()
        elif dice < 0.980:
            member.compact()
        elif dice < 0.984:
            self.partition()
        elif dice < 0.990:
            network.cut.clear()
        elif member.core.leading is not None:
            member.core.leading.transfer(self.random.choice(sorted(network.members)))
            network.pump(member)

    def propose(self, member: Member) -> None:
        try:
            member.core.propose(5, b"%d" % self.sent)
        except NotLeader:
            return
        self.sent += 1
        self.network.pump(member)

    def change(self, member: Member) -> None:
        name = self.random.choice(sorted(self.network.members))
        now = member.core.membership
        after = self.random.choice([now.with_learner, now.with_voter, now.without])(name)
        if len(after.voters) < 2:
            return
        try:
            member.core.change_membership(after)
        except (NotLeader, ValueError):
            return
        self.network.pump(member)

    def partition(self) -> None:
        names = sorted(self.network.members)
        side = {name for name in names if self.random.random() < 0.5}
        one_way = self.random.random() < 0.3
        for sender in names:
            for to in names:
                if (sender in side) != (to in side) and not (one_way and sender in side):
                    self.network.cut.add((sender, to))

    def heal(self) -> None:
        """No more faults: a leader must come, and what it proposes must reach every member."""
        network = self.network
        network.cut.clear()
        for _ in range(400):
            for member in network.members.values():
                member.core.tick()
                network.pump(member)
            network.stabilize()
            network.check_logs()
            leader = network.leader()
            if leader is not None and leader.core.log.committed == leader.core.log.last:
                mark = leader.core.log.last
                everyone = leader.core.membership.everyone
                if all(network.members[name].core.log.committed == mark for name in everyone):
                    return
        states = [str(member.core) for member in network.members.values()]
        raise AssertionError("; ".join(["the group does not work again", *states]))


def _history(seed: int, steps: int) -> Chaos:
    chaos = Chaos(seed)
    for step in range(steps):
        chaos.step()
        if step % 100 == 0:
            chaos.network.check_logs()
    chaos.heal()
    return chaos


@pytest.mark.parametrize("seed", range(12))
def test_safety_and_recovery(seed: int) -> None:
    chaos = _history(seed, 3000)
    assert chaos.network.chosen, "nothing was ever committed"


@pytest.mark.parametrize("seed", [2481, 2556, 2586])
def test_what_came_while_a_snapshot_did_is_kept(seed: int) -> None:
    """The snapshot came for a log that had grown beyond it meanwhile, by entries that were late."""
    _history(seed, 4000)


def test_histories_are_eventful() -> None:
    chaos = _history(100, 12_000)
    assert len(chaos.network.leaders) > 3 and len(chaos.network.chosen) > 40
    assert any(member.disk.snapshot for member in chaos.network.members.values())


@pytest.mark.extended
@pytest.mark.timeout(1800)
def test_campaign() -> None:
    for seed in range(1000, 2000):
        try:
            _history(seed, 6000)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_membership_counts_from_the_moment_it_is_appended() -> None:
    network = Network(["a", "b"], voters=1)
    for _ in range(20):
        network.members["a"].core.tick()
        network.stabilize()
    leader = network.members["a"].core
    assert leader.role is Role.LEADER
    leader.change_membership(Membership(frozenset("a"), frozenset("b")))
    network.stabilize()
    leader.change_membership(Membership(frozenset("ab")))
    committed = leader.log.committed
    network.cut = {("a", "b")}
    network.stabilize()
    assert leader.log.committed == committed, "a majority of two is two"
    with pytest.raises(ValueError, match="under way"):
        leader.change_membership(Membership(frozenset("ab"), frozenset("c")))
    network.cut = set()
    for _ in range(6):
        leader.tick()
        network.stabilize()
    assert leader.log.committed == leader.log.last == network.members["b"].core.log.committed
