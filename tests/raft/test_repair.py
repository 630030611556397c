"""A member of several whose disk is damaged: the others make good what it lost, and until then it has no vote."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.raft.cluster import Cluster, Node, run


async def _written(cluster: Cluster) -> dict[int, bytes]:
    """Three members of "S" that hold twenty entries, by index."""
    await cluster.start()
    for name in "abc":
        await cluster.nodes[name].open("S", cluster.members("abc"))
    for number in range(20):
        await cluster.write(b"%d" % number)
    return await cluster.agreed("abc")


def _damage(node: Node, index: int, *, record: bool = False) -> None:
    """Crash it; what its disk held of this entry is gone, and with the group's `record` whom it voted for."""
    node.crash()
    for kept in node.disk.durable.values():
        kept.rows[index].data = None
        if record:
            kept.vote = "?"
    node.disk.crash()


@pytest.mark.parametrize("lost", ["entry", "block", "block of its own", "record"])
def test_a_damaged_member_is_repaired_by_the_others(lost: str) -> None:
    async def test() -> None:
        cluster = Cluster("abc", 9)
        held = await _written(cluster)
        leader = await cluster.elected()
        node = next(node for node in cluster.nodes.values() if node is not leader)
        if lost.startswith("block"):
            for name in "abc" if lost == "block" else node.name:
                cluster.group(name).compact()
        await cluster.runtime.sleep(1)
        _damage(node, list(held)[5], record=lost == "record")
        await node.start()
        group = await node.open("S", cluster.members("abc"))
        assert group.impaired
        await cluster.until(lambda: not group.impaired)
        assert (node.host.counts["impaired"], node.host.counts["repaired"]) == (1, 1)
        await cluster.write(b"after")
        assert list((await cluster.agreed("abc")).values()) == [*(b"%d" % number for number in range(20)), b"after"]
        assert await group.read_block(list(held)[5]) == b"5"
        node.crash()
        await node.start()
        assert not (await node.open("S", cluster.members("abc"))).impaired
        await cluster.agreed("abc")
        await cluster.stop()

    run(test)


def test_no_sound_member_is_let_go_while_the_only_other_one_has_no_vote() -> None:
    async def test() -> None:
        cluster = Cluster("abc", 5)
        held = await _written(cluster)
        leader = await cluster.elected()
        damaged, sound = (node for node in cluster.nodes.values() if node is not leader)
        _damage(damaged, list(held)[5])
        damaged.disk.delay = 3.0  # seconds that it takes to write what repairs it
        await damaged.start()
        group = await damaged.open("S", cluster.members("abc"))
        leading = cluster.group(leader.name)
        change = asyncio.ensure_future(leading.change_members([leader.member, damaged.member]))
        await cluster.until(lambda: sound.member not in leading.core.membership.voters)
        assert not group.impaired
        await change
        await cluster.stop()

    run(test)


def test_a_damaged_snapshot_in_a_real_file_is_replaced_from_the_first_entry_on(tmp_path: Path) -> None:
    async def test() -> None:
        cluster = Cluster("abc", 9, tmp_path)
        held = await _written(cluster)
        leader = await cluster.elected()
        node = next(node for node in cluster.nodes.values() if node is not leader)
        cluster.group(node.name).compact()
        await cluster.runtime.sleep(1)
        await node.stop()
        with closing(sqlite3.connect(tmp_path / node.member / "nimsnats.db")) as file, file:
            blocks = "id % (1 << 40) = ? AND kind >= 128"
            assert file.execute(f"UPDATE entries SET data = x'00' WHERE {blocks}", (list(held)[5],)).rowcount == 1
        for impaired in (True, False):
            await node.start()
            group = await node.open("S", cluster.members("abc"))
            assert group.impaired is impaired
            await cluster.until(lambda group=group: not group.impaired)
            assert await cluster.agreed("abc") == held
            assert await group.read_block(list(held)[5]) == b"5"
            await node.stop()
        await cluster.stop()

    run(test, threads=True)


@pytest.mark.parametrize("hole", [5, -1], ids=["block", "entry"])
@pytest.mark.parametrize("still", ["abc", "a"])
def test_damage_is_mended_by_the_others_or_named_where_they_have_left(still: str, hole: int) -> None:
    async def test() -> None:
        cluster = Cluster("abc", 6)
        await cluster.start()
        node = cluster.nodes["a"]
        group = await node.open("S", None)
        for number in range(10):
            await cluster.write(b"%d" % number)
        for name in "bc":
            await cluster.nodes[name].open("S", [node.member])
        await group.change_members(cluster.members("abc"))
        await cluster.write(b"together")
        if still == "a":
            await group.change_members([node.member])
        held = await cluster.agreed(still)
        await cluster.runtime.sleep(1)
        lost = list(held)[hole]
        _damage(node, lost)
        await node.start()
        group = await node.open("S", None)
        assert group.impaired is (still == "abc")
        await cluster.until(lambda: not group.impaired)
        if still == "a":
            machine = node.machines["S"]
            assert group.leading and (lost in machine.lost or lost in machine.damaged_blocks)
            held.pop(lost)
            await cluster.write(b"on")
            assert list(machine.entries.values()) == [*held.values(), b"on"]
        else:
            assert await cluster.agreed("abc") == held
        await cluster.stop()

    run(test)
