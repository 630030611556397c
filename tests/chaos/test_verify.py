"""`nimsnats verify` on what crashes leave behind: no false alarm, and no silence about what is lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from nimsnats import cli
from tests.chaos.process import SERVER_READY, NodeProcess
from tests.chaos.registry import RegistryProcess
from tests.chaos.test_damage import flip_database, flip_wal, load, log_end, tear_wal
from tests.chaos.workload import Ledger, connect, make_order_stream, publish_orders, settle_orders

pytestmark = [pytest.mark.extended, pytest.mark.timeout(600)]


async def verify(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = await asyncio.to_thread(cli.main, ["verify", str(data_dir)])
    out, err = capsys.readouterr()
    return code, out + err


def tear_last_write(data_dir: Path, chance: random.Random) -> None:
    """A commit that was under way: a part of its pages has come to the end of the write-ahead log."""
    (wal,) = data_dir.rglob("*.db-wal")
    with wal.open("r+b") as file:
        file.seek(log_end(wal))
        file.write(chance.randbytes(chance.randrange(1, 3 * 8216)))


async def test_killed_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve servers, killed at some moment under load; every third has torn its last write."""
    for seed in range(12):
        chance = random.Random(seed)
        data, ledger = tmp_path / str(seed), Ledger()
        node = NodeProcess(data, command="server", ready=SERVER_READY)
        await node.start()
        stop = asyncio.Event()
        client = await connect(node.url)
        js = client.jetstream()
        await make_order_stream(js)
        work = [asyncio.create_task(publish_orders(js, ledger, worker, stop)) for worker in range(2)]
        work.append(asyncio.create_task(settle_orders(js, ledger, stop)))
        await ledger.published_more(chance.randrange(50, 1500))
        await node.kill()
        stop.set()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await client.close()
        if seed % 3 == 2:
            tear_last_write(data, chance)
        code, text = await verify(data, capsys)
        assert code == 0 and "No damage found" in text, (seed, text)


async def test_killed_nodes_of_clusters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three nodes, all killed in one moment, three times: leaders, followers, and who was catching up."""
    async with RegistryProcess(ttl="3s") as registry:
        arguments = ("--registry-url", registry.url, "--heartbeat-interval", "1s")
        nodes = [NodeProcess(tmp_path / name, *arguments, "--node-name", name) for name in ("n1", "n2", "n3")]
        ledger, chance = Ledger(), random.Random(5)
        try:
            for life in range(3):
                for node in nodes if life == 0 else ():
                    await node.start()
                if life:
                    await asyncio.gather(*(node.start() for node in nodes))
                stop = asyncio.Event()
                client = await connect(*(node.url for node in nodes))
                js = client.jetstream()
                if life == 0:
                    await make_order_stream(js, replicas=3)
                work = [asyncio.create_task(publish_orders(js, ledger, worker, stop)) for worker in range(2)]
                work.append(asyncio.create_task(settle_orders(js, ledger, stop)))
                await ledger.published_more(chance.randrange(100, 800))
                await nodes[life].kill()
                await ledger.published_more(100)
                await nodes[life].start()
                await asyncio.gather(*(node.kill() for node in nodes))
                stop.set()
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
                await client.close()
                for node in nodes:
                    code, text = await verify(node.data_dir, capsys)
                    assert code == 0 and "No damage found" in text, (life, node.data_dir, text)
        finally:
            await asyncio.gather(*(node.kill() for node in nodes))


@pytest.mark.parametrize("harm", [tear_wal, flip_wal, flip_database], ids=lambda harm: harm.__name__)
async def test_what_is_damaged_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: object) -> None:
    """Not only false alarms would be wrong. Once a node has got back or named what was in the log, its directory is
    whole again; damaged blocks of the database stay where they are, and are said to."""
    ledger = Ledger()
    node = NodeProcess(tmp_path, command="server", ready=SERVER_READY)
    await node.start()
    await load(node, ledger, 600)
    await (node.terminate() if harm is flip_database else node.kill())
    harm(tmp_path, random.Random(7))  # type: ignore[operator]
    code, text = await verify(tmp_path, capsys)
    assert code == 1, text
    await node.start()
    await node.terminate()
    code, text = await verify(tmp_path, capsys)
    assert code == 0 or (harm is flip_database and "lost to damage" in text), text
