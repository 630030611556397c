"""Groups of several members: elections, replication, faults, changes of members, snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nimsnats.raft.machine import BlockRecord, NotLeader, ProposalDropped, Snapshot, StoredBlock, TransferFailed
from nimsnats.storage import StorageFull
from tests.raft.cluster import Cluster, Node, run
from tests.raft.recorder import MESSAGES, Recorder


async def _three(seed: int = 1, storage: str = "file", path: Path | None = None) -> Cluster:
    cluster = Cluster("abc", seed, path)
    await cluster.start()
    founders = cluster.members("abc")
    for name in "abc":
        await cluster.nodes[name].open("S", founders, storage)
    return cluster


@pytest.mark.parametrize("storage", ["file", "memory"])
def test_three_members_hold_the_same(storage: str) -> None:
    async def test() -> None:
        cluster = await _three(1, storage)
        for number in range(20):
            await cluster.write(b"%d" % number)
        held = await cluster.agreed("abc")
        assert list(held.values()) == [b"%d" % number for number in range(20)]
        leader = await cluster.elected()
        group = cluster.group(leader.name)
        assert group.leader == leader.name and group.members == tuple(sorted(cluster.members("abc")))
        assert [(each.current, each.lag, each.learner) for each in group.progress()] == [(True, 0, False)] * 2
        assert all(each.active < 1 for each in group.progress())
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        with pytest.raises(NotLeader) as caught:
            cluster.group(follower.name).propose(MESSAGES, b"x")
        assert caught.value.hint == leader.name and cluster.group(follower.name).leader == leader.name
        await cluster.stop()

    run(test)


@pytest.mark.parametrize("late", ["", "c"])
def test_a_founder_that_asks_at_once_leads_before_any_election_is_due(late: str) -> None:
    """The others are not ready yet when it asks: one of them is enough, and whoever comes later follows."""

    async def test() -> None:
        cluster = Cluster("abc", 3)
        await cluster.start()
        for name in "bc":
            cluster.nodes[name].disk.delay = 0.05  # they are still opening the group when a asks
        founders = cluster.members("abc")
        began = cluster.runtime.monotonic()

        async def begin(name: str) -> None:
            group = await cluster.nodes[name].open("S", founders)
            if name == "a":
                group.campaign()

        await asyncio.gather(*(begin(name) for name in "abc" if name != late))
        await cluster.until(lambda: cluster.group("a").leading)
        assert cluster.runtime.monotonic() - began < 0.5 and cluster.group("a").term == 1
        await cluster.write(b"x")
        if late:
            await begin(late)
        assert list((await cluster.agreed("abc")).values()) == [b"x"]
        assert cluster.group("a").leading and cluster.group("a").term == 1
        assert all(cluster.group(name).members == tuple(sorted(founders)) for name in "abc")
        await cluster.stop()

    run(test)


def test_a_crashed_leader_is_replaced_and_comes_back() -> None:
    async def test() -> None:
        cluster = await _three(2)
        for number in range(10):
            await cluster.write(b"a%d" % number)
        first = await cluster.elected()
        machine = first.machines["S"]
        cluster.isolate(first.name)
        cluster.group(first.name).propose(MESSAGES, b"unheard", "unheard")
        await cluster.until(lambda: machine.refused)
        assert machine.refused[0][0] == "unheard" and isinstance(machine.refused[0][1], ProposalDropped)
        assert not cluster.group(first.name).leading
        first.crash()
        began = cluster.runtime.monotonic()
        for number in range(10):
            await cluster.write(b"b%d" % number)
        assert cluster.runtime.monotonic() - began < 3
        cluster.cut.clear()
        await first.start()
        await first.open("S", cluster.members("abc"))
        held = await cluster.agreed("abc")
        assert [data for data in held.values() if data != b"unheard"] == [
            *(b"a%d" % number for number in range(10)),
            *(b"b%d" % number for number in range(10)),
        ]
        await cluster.stop()

    run(test)


def test_a_minority_neither_commits_nor_disturbs() -> None:
    async def test() -> None:
        cluster = await _three(3)
        await cluster.write(b"before")
        leader = await cluster.elected()
        other = next(node for node in cluster.nodes.values() if node is not leader)
        cluster.isolate(other.name)
        term = cluster.group(leader.name).term
        await cluster.write(b"while")
        await cluster.runtime.sleep(10)
        cluster.cut.clear()
        held = await cluster.agreed("abc")
        assert list(held.values()) == [b"before", b"while"]
        assert cluster.group(leader.name).term == term
        await cluster.stop()

    run(test)


def test_an_idle_group_falls_silent_and_wakes() -> None:
    async def test() -> None:
        cluster = await _three(4)
        await cluster.write(b"x")
        leader = await cluster.elected()
        await cluster.until(lambda: all(cluster.group(name).replica.quiet for name in "abc"))
        frames = cluster.frames
        await cluster.runtime.sleep(60)
        assert (cluster.frames - frames) / 60 < 32, "a frame to each peer every 0.2 s"
        assert cluster.group(leader.name).leading
        await cluster.write(b"y")
        await cluster.until(lambda: all(cluster.group(name).replica.quiet for name in "abc"))
        began = cluster.runtime.monotonic()
        leader.crash()
        await cluster.write(b"z")
        assert cluster.runtime.monotonic() - began < 3
        assert list((await cluster.agreed("".join(n.name for n in cluster.running()))).values()) == [b"x", b"y", b"z"]
        await cluster.stop()

    run(test)


@pytest.mark.parametrize("storage", ["file", "memory"])
def test_one_two_three_two_one(storage: Any) -> None:
    async def test() -> None:
        cluster = Cluster("abc", 5)
        await cluster.start()
        a, b, c = cluster.nodes.values()
        group = await a.open("S", None, storage)
        assert group.leading
        writer = asyncio.ensure_future(_write_many(cluster, 200))
        await cluster.until(lambda: len(a.machines["S"].entries) > 10)
        await b.open("S", [a.member], storage)
        await group.change_members([a.member, b.member])
        await c.open("S", [a.member], storage)
        await group.change_members(cluster.members("abc"))
        assert group.members == tuple(sorted(cluster.members("abc"))) and not group.learners
        await cluster.until(lambda: len(a.machines["S"].entries) > 100)
        for keep in ("bc", "b"):
            while True:
                leader = await cluster.elected()
                try:
                    await cluster.group(leader.name).change_members(cluster.members(keep))
                    break
                except NotLeader:
                    await cluster.runtime.sleep(0.01)
            for node in list(cluster.running()):
                assert node.host is not None
                if node.name not in keep and node.host.group("S") is not None:
                    await node.host.remove_group("S")
        await writer
        left = cluster.group("b")
        assert left.alone and left.leading and left.members == (b.member,)
        held = list(b.machines["S"].entries.values())
        assert sorted(set(held), key=int) == [b"%d" % number for number in range(200)]
        if storage == "file":
            await b.stop()
            await b.start()
            await b.open("S", None)
            assert cluster.group("b").leading and list(b.machines["S"].entries.values()) == held
        await cluster.stop()

    run(test)


def test_silence_commits_nothing_at_a_member_that_is_away() -> None:
    """A leader falls silent without the member that it has lost; that one still hears it, and holds other entries."""

    async def test() -> None:
        cluster = await _three(5)
        await cluster.write(b"x")
        old = await cluster.elected()
        cluster.isolate(old.name)
        for _ in range(5):
            cluster.group(old.name).propose(MESSAGES, b"never committed", "y", 1)
        await cluster.until(lambda: (new := cluster.leader()) is not None and new is not old)
        new = await cluster.elected()
        cluster.cut = {(old.name, other) for other in "abc"}
        await cluster.until(lambda: cluster.group(new.name).replica.quiet)
        await cluster.runtime.sleep(3)
        cluster.cut.clear()
        assert list((await cluster.agreed("abc")).values()) == [b"x"]
        await cluster.stop()

    run(test)


async def _write_many(cluster: Cluster, count: int) -> None:
    for number in range(count):
        await cluster.write(b"%d" % number)
        await cluster.runtime.sleep(0.002)


def test_leadership_is_handed_over() -> None:
    async def test() -> None:
        cluster = await _three(6)
        await cluster.write(b"x")
        leader = await cluster.elected()
        group = cluster.group(leader.name)
        other = next(node for node in cluster.nodes.values() if node is not leader)
        assert await group.transfer(other.member) == other.name
        await cluster.until(lambda: cluster.group(other.name).leading)
        assert not group.leading
        with pytest.raises(NotLeader):
            await group.transfer()
        assert await cluster.group(other.name).transfer() in set("abc") - {other.name}
        last = await cluster.elected()
        gone = next(node for node in cluster.nodes.values() if node is not last)
        cluster.isolate(gone.name)
        with pytest.raises(TransferFailed):
            await cluster.group(last.name).transfer(gone.member)
        with pytest.raises(TransferFailed):
            await cluster.group(last.name).transfer("nobody@x")
        await cluster.write(b"y")
        await cluster.stop()

    run(test)


def _compact(node: Node) -> None:
    assert node.host is not None
    for group in node.host.groups():
        group.compact()


class Merging(Recorder):
    """Rewrites its first block so that it holds all others, too, as a stream does with its small ones."""

    merged = b""

    def snapshot(self) -> Snapshot:
        taken = super().snapshot()
        if not self.merged:
            return taken
        first, *others = sorted(self._blocks)
        note = BlockRecord(first, b"merged " + self.merged)
        return Snapshot(taken.state, [*(each for each in taken.blocks if each.index != first), note], others)

    async def restore(self, state: bytes, blocks: Sequence[StoredBlock]) -> None:
        for block in blocks:
            if block.note.startswith(b"merged"):
                assert block.data == block.note.removeprefix(b"merged "), "its own bytes under the leader's note"
        await super().restore(state, [block for block in blocks if not block.note.startswith(b"merged")])


@pytest.mark.parametrize("storage", ["file", "memory"])
def test_a_block_that_the_leader_has_rewritten_is_fetched(storage: Any) -> None:
    async def test() -> None:
        cluster = Cluster("abc", 11)
        await cluster.start()
        for node in cluster.nodes.values():
            assert node.host is not None
            machine = node.machines["S"] = Merging()
            await node.host.open_group("S", machine, members=cluster.members("abc"), storage=storage)
        for number in range(20):
            await cluster.write(b"%d" % number)
        await cluster.agreed("abc")
        for node in cluster.nodes.values():
            _compact(node)
        leader = await cluster.elected()
        away = next(node for node in cluster.nodes.values() if node is not leader)
        await cluster.until(lambda: cluster.group(away.name).core.log.snapshot >= 20)
        cluster.isolate(away.name)
        machine, group = leader.machines["S"], cluster.group(leader.name)
        assert isinstance(machine, Merging)
        machine.merged = b" ".join(machine.entries.values())
        await group.rewrite_block(min(machine._blocks), machine.merged)
        for number in range(300):
            await cluster.write(b"more %d" % number)
        _compact(leader)
        await cluster.until(lambda: group.core.log.snapshot > 300)
        cluster.cut.clear()
        await cluster.until(lambda: cluster.group(away.name).core.log.snapshot > 300)
        await cluster.until(lambda: cluster.group(away.name).applied == group.applied)
        assert away.machines["S"].restored
        await cluster.stop()

    run(test)


@pytest.mark.parametrize("storage", ["file", "memory"])
def test_a_learner_catches_up_by_snapshot_with_its_blocks(storage: Any) -> None:
    async def test() -> None:
        cluster = Cluster("ab", 7)
        await cluster.start()
        a, b = cluster.nodes.values()
        group = await a.open("S", None, storage)
        for number in range(300):
            group.propose(MESSAGES, b"%d" % number * 2000, number, 1)
        await cluster.until(lambda: len(a.machines["S"].contexts) == 300)
        a.machines["S"].drop = list(a.machines["S"].entries)[:20]
        _compact(a)
        group.propose(MESSAGES, b"after", "after", 1)
        joining = await b.open("S", [a.member], storage)
        await group.change_members(cluster.members("ab"))
        held = await cluster.agreed("ab")
        assert b.machines["S"].restored and len(held) == 281
        assert joining.total == group.total == 301
        index = next(iter(held))
        assert await joining.read_block(index) == held[index]
        if storage == "file":
            b.crash()
            await b.start()
            await b.open("S", [a.member])
            await cluster.agreed("ab")
            await cluster.write(b"last")
            assert await cluster.group("b").read_block(index) == held[index]
        await cluster.stop()

    run(test)


def test_a_wiped_member_is_nobody_until_it_is_added() -> None:
    async def test() -> None:
        cluster = await _three(8)
        for number in range(10):
            await cluster.write(b"%d" % number)
        leader = await cluster.elected()
        wiped, third = (node for node in cluster.nodes.values() if node is not leader)
        founders = cluster.members("abc")
        wiped.crash()
        wiped.wipe()
        await wiped.start()
        group = await wiped.open("S", founders)
        await cluster.write(b"with two")
        third.crash()
        cluster.group(leader.name).propose(MESSAGES, b"stuck", "stuck")
        await cluster.until(lambda: leader.machines["S"].refused)
        await cluster.runtime.sleep(20)
        assert not group.leading and not leader.machines["S"].leading[-1][0], "nobody votes for the old instance"
        await third.start()
        await third.open("S", founders)
        leader = await cluster.elected()
        await cluster.group(leader.name).change_members([leader.member, wiped.member, third.member])
        held = await cluster.agreed("abc")
        assert list(held.values())[:11] == [*(b"%d" % number for number in range(10)), b"with two"]
        await cluster.stop()

    run(test)


def test_a_member_that_begins_again_under_its_old_name_gives_no_vote_to_who_has_missed_that() -> None:
    async def test() -> None:
        cluster = await _three(12)
        for number in range(10):
            await cluster.write(b"%d" % number)
        await cluster.agreed("abc")
        leader = await cluster.elected()
        again, away = (node for node in cluster.nodes.values() if node is not leader)
        cluster.isolate(away.name)
        group = cluster.group(leader.name)
        await group.change_members([leader.member, again.member])
        await group.change_members([leader.member])
        assert again.host is not None
        await again.host.remove_group("S")
        await cluster.write(b"alone")
        cluster.cut = {(one, two) for one in cluster.nodes for two in cluster.nodes if leader.name in (one, two)}
        await again.open("S", [leader.member])
        await cluster.runtime.sleep(20)
        assert not cluster.group(away.name).leading
        cluster.cut.clear()
        await group.change_members(cluster.members("abc"))
        held = await cluster.agreed("abc")
        assert list(held.values()) == [*(b"%d" % number for number in range(10)), b"alone"]
        await cluster.stop()

    run(test)


def test_a_snapshot_that_is_offered_twice_at_once_is_fetched_once() -> None:
    async def test() -> None:
        cluster = Cluster("ab", 9)
        await cluster.start()
        a, b = cluster.nodes.values()
        group = await a.open("S", None)
        group.propose(MESSAGES, b"x" * 2000, "x", 1)
        await cluster.until(lambda: a.machines["S"].contexts)
        _compact(a)
        assert b.host is not None
        receive = b.host.receive

        def twice(peer: str, frame: bytes) -> None:
            receive(peer, frame)
            receive(peer, frame)

        b.host.receive = twice  # type: ignore[method-assign]
        await b.open("S", [a.member])
        began = cluster.runtime.monotonic()
        await group.change_members(cluster.members("ab"))
        assert cluster.runtime.monotonic() - began < 2 and await cluster.agreed("ab")
        await cluster.stop()

    run(test)


@pytest.mark.parametrize("seed", range(10, 20))
def test_a_leader_whose_node_is_cut_off_is_replaced_within_a_second(seed: int) -> None:
    async def test() -> None:
        cluster = await _three(seed)
        await cluster.write(b"before")
        first = await cluster.elected()
        first.crash()
        for node in cluster.running():
            assert node.host is not None
            node.host.suspect(first.name)
        began = cluster.runtime.monotonic()
        await cluster.elected()
        assert cluster.runtime.monotonic() - began < 1
        await cluster.stop()

    run(test)


def test_a_way_that_breaks_and_is_there_again_changes_no_leader() -> None:
    async def test() -> None:
        cluster = await _three(20)
        first = await cluster.elected()
        for _ in range(20):
            for node in cluster.running():
                if node is not first and node.host is not None:
                    node.host.suspect(first.name)
            await cluster.runtime.sleep(0.1)
        assert await cluster.elected() is first and cluster.group(first.name).term == 1
        await cluster.stop()

    run(test)


class Slow(Recorder):
    """Takes its time to become a snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self.halfway = asyncio.Event()
        self.go_on = asyncio.Event()

    async def restore(self, state: bytes, blocks: Sequence[StoredBlock]) -> None:
        await super().restore(state, blocks[: len(blocks) // 2])
        self.halfway.set()
        await self.go_on.wait()
        await super().restore(state, blocks)


@pytest.mark.parametrize("end", ["it goes on", "the node stops", "the node crashes"])
def test_a_member_that_is_becoming_a_snapshot_stands_still_and_holds_up_nobody(end: str) -> None:
    async def test() -> None:
        cluster = await _three(13)
        for name in "abc":
            await cluster.nodes[name].open("other", cluster.members("abc"))
        leader = await cluster.elected()
        away = next(node for node in cluster.nodes.values() if node is not leader)
        away.crash()
        for number in range(300):
            await cluster.write(b"%d" % number)
        _compact(leader)
        await away.start()
        assert away.host is not None
        slow = away.machines["S"] = Slow()
        await away.host.open_group("S", slow, members=cluster.members("abc"))
        await away.open("other", cluster.members("abc"))
        await slow.halfway.wait()
        before = cluster.group(away.name).applied
        await cluster.write(b"while it is half there")
        await cluster.write(b"goes on", "other")
        await cluster.agreed("abc", "other")
        group = cluster.group(away.name)
        assert group.applied == before < 300 and not group.leading and len(slow.entries) < 300
        group.compact()  # as the host does at its own times: nothing half-done may become a snapshot
        if end == "it goes on":
            slow.go_on.set()
        else:
            if end == "the node stops":
                await away.stop()
            else:
                away.crash()
            await away.start()
            for name in ("S", "other"):
                await away.open(name, cluster.members("abc"))
        held = await cluster.agreed("abc")
        assert list(held.values()) == [*(b"%d" % number for number in range(300)), b"while it is half there"]
        await cluster.stop()

    run(test)


def test_a_disk_that_fills_up_while_a_snapshot_comes_leaves_no_hole_in_it() -> None:
    async def test() -> None:
        cluster = await _three(17)
        leader = await cluster.elected()
        away = next(node for node in cluster.nodes.values() if node is not leader)
        away.crash()
        for number in range(300):
            await cluster.write(b"%d" % number * 2000)  # some answers full of blocks
        _compact(leader)
        await away.start()
        group = await away.open("S", cluster.members("abc"))
        staged = f"^{group.name}"

        def arriving() -> bool:
            kept = next((each for each in away.disk.seen.values() if each.name == staged), None)
            return kept is not None and bool(kept.rows)

        await cluster.until(arriving)
        away.disk.error = StorageFull("no space left")
        await cluster.until(lambda: group.core.install is None)
        away.disk.error = None
        held = await cluster.agreed("abc")
        assert list(held.values()) == [b"%d" % number * 2000 for number in range(300)]
        assert away.machines["S"].restored and not away.machines["S"].damaged_blocks
        await cluster.stop()

    run(test)
