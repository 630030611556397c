"""Damage to the files of a stopped or killed node: everything acknowledged is either there, byte for byte, or
is named.

A node is "killed" by copying its directory while it runs: no close, no checkpoint, the WAL as it is.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.raft.recorder import MESSAGES, Recorder, running

Damage = Callable[[Path, random.Random], None]


async def _history(path: Path, *, compact: bool) -> Path:
    """Write 60 entries of two groups in 20 commits; returns a copy of the directory as a kill -9 would leave
    it."""
    crashed = path / "crashed"
    async with running(path / "live") as (_, host):
        machines = {name: Recorder() for name in ("A", "B")}
        groups = {name: await host.open_group(name, machine) for name, machine in machines.items()}
        for turn in range(20):
            for name, group in groups.items():
                for _ in range(3 if name == "A" else 1):
                    size = (50, 3000, 30_000)[turn % 3]
                    data = f"{name} {turn} ".encode().ljust(size, b".")
                    group.propose(MESSAGES if turn % 4 else 2, data, (name, turn), 10)
            await machines["A"].until(3 * turn + 3)
            await machines["B"].until(turn + 1)
            if compact and turn in {8, 14}:
                groups["A"].compact()  # pyright: ignore[reportAttributeAccessIssue]
                await host.synced()
        shutil.copytree(path / "live", crashed)
    return crashed


def _expected() -> dict[str, dict[int, bytes]]:
    entries: dict[str, dict[int, bytes]] = {"A": {}, "B": {}}
    for turn in range(20):
        for name, each in (("A", 3), ("B", 1)):
            size = (50, 3000, 30_000)[turn % 3]
            for _ in range(each):
                entries[name][len(entries[name]) + 1] = f"{name} {turn} ".encode().ljust(size, b".")
    return entries


async def _reopen(path: Path) -> tuple[int, list[str]]:
    """Open, check that all is there or named, go on writing, and check that a second start agrees. Returns
    losses."""
    expected = _expected()
    losses = 0
    absorbed: set[int] = set()
    for turn in range(2):
        async with running(path) as (database, host):
            assert host.recorded_groups() == ["A", "B"]
            for name in ("A", "B"):
                machine = Recorder()
                group = await host.open_group(name, machine)
                named = set(machine.lost) | set(machine.damaged_blocks)
                if turn == 0 and machine.lost and not machine.state_lost:
                    assert machine.foreseen == [index for index in sorted(machine.entries) if index > min(machine.lost)]
                for index, data in expected[name].items():
                    if index in machine.entries:
                        assert machine.entries[index] == data
                    else:
                        assert index in named or machine.state_lost or index in absorbed, f"{name} {index} vanished"
                        absorbed.add(index)
                assert set(machine.entries) - expected[name].keys() == set()
                assert all(count in {0, 10} or len(machine.lost) > 1 for count in machine.lost.values())
                if turn == 0:
                    losses += len(named)
                    if named and not machine.damaged_blocks:
                        assert sum(machine.lost.values()) == 10 * len(machine.lost)
                    last = group.applied
                    assert last >= max(expected[name])
                    group.propose(MESSAGES, b"after", "after")
                    await machine.until(1)
                    after = max(machine.entries)
                    assert after > last
                    expected[name] = {k: v for k, v in expected[name].items() if k not in named}
                    expected[name][after] = b"after"
                else:
                    assert not machine.lost.keys() & expected[name].keys()
            damage = database.damage
    return losses, damage


def _tear_wal(path: Path, source: random.Random) -> None:
    wal = path / "nimsnats.db-wal"
    size = wal.stat().st_size
    with wal.open("r+b") as file:
        file.truncate(size - source.randrange(1, size))


def _flip_wal(path: Path, source: random.Random) -> None:
    _flip(path / "nimsnats.db-wal", source)


def _flip_database(path: Path, source: random.Random) -> None:
    _flip(path / "nimsnats.db", source)


def _zero_page(path: Path, source: random.Random) -> None:
    database = path / "nimsnats.db"
    page = source.randrange(database.stat().st_size // 8192)
    with database.open("r+b") as file:
        file.seek(page * 8192)
        file.write(bytes(8192))


def _truncate_database(path: Path, source: random.Random) -> None:
    database = path / "nimsnats.db"
    with database.open("r+b") as file:
        file.truncate(source.randrange(1, database.stat().st_size))


def _flip(file: Path, source: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(source.randrange(1, 4)):
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    file.write_bytes(content)


def _run(making: Coroutine[Any, Any, Path]) -> Path:
    """Module fixtures outlive the loops of single tests, so they bring their own."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(making)
    finally:
        loop.close()


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node killed with everything in its WAL."""
    return _run(_history(tmp_path_factory.mktemp("crashed"), compact=True))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same node after a start and a clean stop: everything in the main file, nothing in the WAL."""

    async def stop() -> Path:
        path = await _history(tmp_path_factory.mktemp("stopped"), compact=True)
        async with running(path) as (_, host):
            await host.open_group("A", Recorder())
            await host.open_group("B", Recorder())
        return path

    return _run(stop())


async def test_an_undamaged_directory_has_lost_nothing(crashed: Path, stopped: Path, tmp_path: Path) -> None:
    for source in (crashed, stopped):
        path = tmp_path / source.parent.name
        shutil.copytree(source, path)
        assert await _reopen(path) == (0, [])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("damage", [_tear_wal, _flip_wal])
async def test_a_damaged_wal_loses_nothing_silently(crashed: Path, tmp_path: Path, damage: Damage, seed: int) -> None:
    path = tmp_path / "db"
    shutil.copytree(crashed, path)
    damage(path, random.Random(seed))
    await _reopen(path)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("damage", [_flip_database, _zero_page, _truncate_database])
async def test_a_damaged_database_loses_nothing_silently(
    stopped: Path, tmp_path: Path, damage: Damage, seed: int
) -> None:
    path = tmp_path / "db"
    shutil.copytree(stopped, path)
    damage(path, random.Random(seed))
    await _reopen(path)


@pytest.mark.extended
@pytest.mark.timeout(900)
@pytest.mark.parametrize("damage", [_tear_wal, _flip_wal, _flip_database, _zero_page, _truncate_database])
async def test_damage_campaign(crashed: Path, stopped: Path, tmp_path: Path, damage: Damage) -> None:
    for seed in range(1000, 1200):
        path = tmp_path / str(seed)
        shutil.copytree(crashed if damage in {_tear_wal, _flip_wal} else stopped, path)
        damage(path, random.Random(seed))
        try:
            await _reopen(path)
        except BaseException:
            print("seed", seed)
            raise
        shutil.rmtree(path)
