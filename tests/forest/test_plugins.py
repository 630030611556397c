"""Own trees and nims: good ones work, broken ones are reported and leave everybody else alone."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from nats.aio.client import Client

from tests.forest.conftest import Grow, emptied, settled, stored, task_of, until
from tests.forest.events import CHARGE_ID, succeeded
from tests.forest.plants import CopyTree, CountingNim

HERE = "tests.forest.plants"


@pytest.fixture(autouse=True)
def forget() -> None:
    CountingNim.seen = []
    CopyTree.seen = []


async def test_plain_classes_are_trees_and_nims(grow: Grow, client: Client) -> None:
    forest = await grow(trees=[f"{HERE}:SensorTree"], nims=[f"{HERE}:CountingNim"])
    assert forest.broken == []
    await client.publish("river.sensor.attic", b"1.5 2.5 3.5")
    await until(lambda: len(CountingNim.seen) == 3, "readings are missing")
    assert sorted(leaf.data for leaf in CountingNim.seen) == [1.5, 2.5, 3.5]
    assert len({leaf.id for leaf in CountingNim.seen}) == 3
    await settled(forest)
    await emptied(client, "RIVER")


async def test_a_tree_may_share_the_payments(grow: Grow, client: Client) -> None:
    await grow(trees=[f"{HERE}:CopyTree"])
    await client.publish("river.stripe.webhook", succeeded())
    await task_of(client, CHARGE_ID)
    assert CopyTree.seen == [succeeded()]


async def test_an_own_nim_keeps_state(grow: Grow, client: Client) -> None:
    forest = await grow(nims=[f"{HERE}:LedgerNim"])
    for number in range(20):
        await client.publish("river.stripe.webhook", succeeded(f"ch_{number}", customer="cus_1"))
        await task_of(client, f"ch_{number}")
    await settled(forest)
    entry = await forest.ground.soil.dig("last-cus_1")
    assert json.loads(entry.data)["charge"].startswith("ch_")


@pytest.mark.parametrize(
    ("spec", "kind", "stage"),
    [
        ("no.such.module:Tree", "trees", "import"),
        (f"{HERE}:NoSuchTree", "trees", "import"),
        (f"{HERE}", "trees", "import"),
        ("tests.forest.rotten:Tree", "trees", "import"),
        (f"{HERE}:ExplodingConstructor", "trees", "construct"),
        (f"{HERE}:Stone", "trees", "construct"),
        (f"{HERE}:Stone", "nims", "construct"),
        (f"{HERE}:GreedyNim", "nims", "construct"),
        (f"{HERE}:Misnamed", "nims", "construct"),
        (f"{HERE}:GreedyTree", "trees", "start"),
        ("forest.aftersales:AfterSalesNim", "nims", "start"),
    ],
)
async def test_a_broken_one_is_left_out(
    grow: Grow, client: Client, caplog: pytest.LogCaptureFixture, spec: str, kind: str, stage: str
) -> None:
    forest = await grow(**{kind: [spec]})
    assert [(broken.spec, broken.stage) for broken in forest.broken] == [(spec, stage)]
    assert forest.metrics.total("forest_plugins_broken_total", plugin=spec) == 1
    assert spec in forest.problems()[0]
    assert any(spec in record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    await client.publish("river.stripe.webhook", succeeded())
    assert (await task_of(client, CHARGE_ID))["status"] == "pending"


async def test_failing_handlers_cost_their_own_items_only(
    grow: Grow, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    forest = await grow(
        trees=[f"{HERE}:ExplodingTree", f"{HERE}:Undeclared"], nims=[f"{HERE}:ExplodingNim", f"{HERE}:QuittingNim"]
    )
    assert forest.broken == []
    await client.publish("river.stripe.webhook", succeeded())
    await client.publish("river.undeclared", b"x")
    assert (await task_of(client, CHARGE_ID))["status"] == "pending"
    await until(lambda: forest.metrics.total("forest_items_abandoned_total") == 4, "they were not given up")
    await settled(forest)
    text = caplog.text
    assert "a bug in somebody's tree" in text
    assert "a bug in somebody's nim" in text
    assert "surprise.party: not captured" in text
    assert await stored(client, "HUMUS") == 1


async def test_a_nim_that_is_gone_is_named(grow: Grow, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    first = await grow(nims=[f"{HERE}:CountingNim"])
    await first.stop()
    assert "belongs to nobody" not in caplog.text
    await grow()
    assert "consumer nim-CountingNim on WIND (0 waiting) belongs to nobody here" in caplog.text


async def test_a_stop_is_quick_and_leaves_no_tasks(grow: Grow, client: Client) -> None:
    forest = await grow(nims=[f"{HERE}:CountingNim"], demo=True)
    before = asyncio.all_tasks()
    assert any(task.get_name().startswith("forest:") for task in before)
    await forest.stop()
    await forest.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("forest:")]
    assert not forest.running
    await forest.start()
    await client.publish("river.stripe.webhook", succeeded())
    assert await task_of(client, CHARGE_ID)
