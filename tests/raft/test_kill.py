"""kill -9 while a node appends: every index it acknowledged over a pipe is there afterwards, with its
bytes."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.raft.recorder import Recorder, running

_APPEND = """
import asyncio, os, sys
from pathlib import Path
from nimsnats.raft.machine import Entry
from nimsnats.runtime import Runtime
from nimsnats.storage import open_database
from nimsnats.raft.host import Host
from tests.raft.recorder import MESSAGES, Recorder

class Acknowledging(Recorder):
    name = ""
    def apply(self, entry: Entry) -> None:
        super().apply(entry)
        if entry.context is not None:
            os.write(1, f"{self.name} {entry.index} {len(entry.data)}\\n".encode())

async def main():
    runtime = Runtime.real()
    database = await open_database(Path(sys.argv[1]), runtime, "n1", wal_bytes=1 << 20)
    host = Host(database, runtime, "n1")
    machines = []
    for name in ("A", "B", "C"):
        machine = Acknowledging()
        machine.name = name
        machines.append((machine, await host.open_group(name, machine)))
    sent = 0
    while True:
        for machine, group in machines:
            for size in (10, 1000, 20_000):
                data = f"{group.name} {group.applied} ".encode().ljust(size, b"x")
                group.propose(MESSAGES if size > 10 else 3, data, sent, 1)
        sent += 3
        for machine, group in machines:
            await machine.until(sent)
        if sent % 90 == 0:
            for machine, group in machines:
                machine.drop = sorted(machine.entries)[:-60]
                group.compact()
asyncio.run(main())
"""


async def _kill_loop(path: Path, rounds: int, source: random.Random) -> None:
    acknowledged: dict[str, dict[int, int]] = {"A": {}, "B": {}, "C": {}}
    for _ in range(rounds):
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", _APPEND, str(path), stdout=subprocess.PIPE)
        assert child.stdout is not None
        lines: list[bytes] = []
        for _ in range(source.randrange(1, 400)):
            lines.append(await child.stdout.readline())
        child.kill()
        lines.extend((await child.stdout.read()).splitlines(keepends=True))
        await child.wait()
        assert lines[0], "the child did not run"
        for line in lines:
            if line.endswith(b"\n"):
                name, index, size = line.decode().split()
                assert int(index) not in acknowledged[name], "an index was used twice"
                acknowledged[name][int(index)] = int(size)
        await _check(path, acknowledged)


async def _check(path: Path, acknowledged: dict[str, dict[int, int]]) -> None:
    async with running(path) as (database, host):
        assert database.damage == []
        for name, indexes in acknowledged.items():
            machine = Recorder()
            group = await host.open_group(name, machine)
            assert not machine.lost and not machine.damaged_blocks
            for index in sorted(indexes)[-60:]:
                assert len(machine.entries[index]) == indexes[index]
                assert machine.entries[index].startswith(name.encode())
            assert group.applied >= max(indexes, default=0)


async def test_kill_nine_loses_nothing_acknowledged(tmp_path: Path) -> None:
    await _kill_loop(tmp_path, 3, random.Random(1))


@pytest.mark.extended
@pytest.mark.timeout(300)
async def test_kill_nine_campaign(tmp_path: Path) -> None:
    await _kill_loop(tmp_path, 60, random.Random(2))
