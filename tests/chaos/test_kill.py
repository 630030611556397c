"""kill -9 under load: what was acknowledged is there afterwards, exactly once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.chaos.process import NodeProcess
from tests.chaos.workload import (
    Ledger,
    check_charges,
    check_stream,
    connect,
    make_order_stream,
    publish_charges,
    publish_orders,
    settle_orders,
)


async def live_through_kills(data_dir: Path, rounds: int, seed: int) -> Ledger:
    """Load a node, kill it `rounds` times at random moments, let it settle, and check its promises."""
    chance = random.Random(seed)
    ledger = Ledger()
    stop = asyncio.Event()
    node = NodeProcess(data_dir)
    await node.start()
    client = await connect(node.url)
    js = client.jetstream()
    await make_order_stream(js)
    work = [asyncio.create_task(publish_orders(js, ledger, worker, stop)) for worker in range(2)]
    work.append(asyncio.create_task(settle_orders(js, ledger, stop)))
    work.append(asyncio.create_task(publish_charges(js, ledger, stop)))
    try:
        for _ in range(rounds):
            await ledger.published_more(chance.randrange(50, 1500))
            await node.kill()
            await node.start()
        stop.set()
        await asyncio.gather(*work)
        await check_stream(js, ledger)
        await check_charges(js, ledger)
    finally:
        stop.set()
        for task in work:
            task.cancel()
        await client.close()
        await node.kill()
    return ledger


async def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    ledger = await live_through_kills(tmp_path, rounds=3, seed=1)
    assert ledger.published and ledger.settled and ledger.charges


@pytest.mark.extended
@pytest.mark.timeout(600)
async def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    ledger = await live_through_kills(tmp_path, rounds=20, seed=2)
    print(
        f"\n20 kills: {len(ledger.published)} acknowledged publishes, {len(ledger.settled)} confirmed acks, "
        f"{len(ledger.charges)} charges: nothing lost, nothing doubled"
    )
