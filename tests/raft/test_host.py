"""Groups of one on a real database: propose, durable, apply, compact, come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimsnats.raft.machine import NotLeader, ProposalDropped
from nimsnats.storage import Corrupt
from tests.raft.recorder import MESSAGES, Recorder, running


@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_proposals_are_applied_in_order_with_their_context(tmp_path: Path, storage: str) -> None:
    async with running(tmp_path) as (_, host):
        machine = Recorder()
        group = await host.open_group("S", machine, storage=storage)  # pyright: ignore[reportArgumentType]
        assert group.leading and group.leader == "n1" and machine.leading == [(True, group.term)]
        for number in range(20):
            group.propose(MESSAGES, b"data %d" % number, number, 3)
        await machine.until(20)
        assert machine.contexts == list(range(20))
        assert list(machine.entries.values()) == [b"data %d" % number for number in range(20)]
        assert group.applied == group.committed == max(machine.entries)
        assert await group.read_block(min(machine.entries)) == b"data 0"
        await group.rewrite_block(min(machine.entries), b"less")
        assert await group.read_block(min(machine.entries)) == b"less"


async def test_a_group_comes_back_from_snapshot_and_log(tmp_path: Path) -> None:
    expected: dict[int, bytes] = {}
    for turn in range(4):
        async with running(tmp_path) as (database, host):
            assert host.recorded_groups() == ([] if turn == 0 else ["S"])
            machine = Recorder()
            group = await host.open_group("S", machine)
            assert machine.entries == expected and machine.restored == (turn > 0) and not machine.lost
            for number in range(10):
                group.propose(MESSAGES if number % 2 else 2, b"%d.%d" % (turn, number), number)
            await machine.until(10)
            expected = dict(machine.entries)
            assert database.damage == []


async def test_dropped_blocks_and_removed_groups_leave_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as (database, host):
        machine = Recorder()
        group = await host.open_group("S", machine)
        other = Recorder()
        (await host.open_group("T", other)).propose(MESSAGES, b"stays", 0)
        for number in range(100):
            group.propose(MESSAGES, bytes(1000), number)
        await machine.until(100)
        machine.drop = list(machine.entries)[:50]
        gone = machine.drop[0]
        group.compact()  # pyright: ignore[reportAttributeAccessIssue]
        await host.synced()
        await database.idle()
        with pytest.raises(Corrupt):
            await group.read_block(gone)
        await host.remove_group("S")
        assert host.recorded_groups() == ["T"]
        await database.idle()
        with pytest.raises(NotLeader):
            group.propose(MESSAGES, b"")
    async with running(tmp_path) as (_, host):
        assert host.recorded_groups() == ["T"]
        back = Recorder()
        await host.open_group("T", back)
        assert back.entries == other.entries
        again = Recorder()
        await host.open_group("S", again)
        assert not again.entries and not again.restored


async def test_stopping_refuses_what_is_not_applied(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, host):
        machine = Recorder()
        group = await host.open_group("M", machine)
        group.propose(MESSAGES, b"x", "queued")
        await host.remove_group("M")
        assert [context for context, _ in machine.refused] == ["queued"]
        assert isinstance(machine.refused[0][1], ProposalDropped)
        assert machine.leading[-1][0] is False


async def test_many_groups_share_commits(tmp_path: Path) -> None:
    async with running(tmp_path) as (database, host):
        machines = [Recorder() for _ in range(50)]
        groups = [await host.open_group(f"G{number}", machine) for number, machine in enumerate(machines)]
        reports: list[tuple[int, int]] = []
        database.observers.append(lambda report: reports.append((report.entries, report.messages)))
        for group in groups:
            for number in range(4):
                group.propose(MESSAGES, b"x", number, 2)
        for machine in machines:
            await machine.until(4)
        assert reports == [(200, 400)]  # one turn of the loop, one fsync
