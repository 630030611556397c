"""The soil's optimistic locking, and what the decomposer makes of composts that come twice, late or out of order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from nats.aio.client import Client

from forest import KeyMissing, RevisionConflict
from forest.decomposer import Decomposer
from forest.humus import Action
from forest.soil import Soil
from forest.worker import Delivery
from tests.forest.conftest import Grow, settled, until


async def test_dig_bury_put_delete(grow: Grow, client: Client) -> None:
    soil = (await grow()).ground.soil
    with pytest.raises(KeyMissing):
        await soil.dig("tasks/a")
    first = await soil.bury("tasks/a", b"1", 0)
    assert (await soil.dig("tasks/a")).data == b"1"
    with pytest.raises(RevisionConflict) as conflict:
        await soil.bury("tasks/a", b"2", 0)
    assert (conflict.value.key, conflict.value.expected, conflict.value.actual) == ("tasks/a", 0, first)
    second = await soil.bury("tasks/a", b"2", first)
    with pytest.raises(RevisionConflict):
        await soil.bury("tasks/a", b"3", first)
    third = await soil.put("tasks/a", b"4")
    assert third > second > first
    with pytest.raises(RevisionConflict):
        await soil.delete("tasks/a", second)
    await soil.delete("tasks/a", third)
    await soil.delete("tasks/a")
    with pytest.raises(KeyMissing):
        await soil.dig("tasks/a")
    with pytest.raises(RevisionConflict):
        await soil.delete("tasks/a", third)
    assert await soil.bury("tasks/a", b"5", 0) > third, "a deleted key can be made again"
    for key in ("", ".a", "a.", "a b", "a*", "ü", "x" * 300):
        with pytest.raises(ValueError, match="key"):
            await soil.put(key, b"x")


async def test_any_kv_client_reads_and_writes_the_soil(grow: Grow, client: Client) -> None:
    soil = (await grow()).ground.soil
    bucket = await client.jetstream().key_value("SOIL")
    status = await bucket.status()
    assert status.history == 10
    revision = await bucket.create("from.outside", b"x")
    assert (await soil.dig("from.outside")).revision == revision
    await soil.bury("from.outside", b"y", revision)
    assert (await bucket.get("from.outside")).value == b"y"
    await bucket.purge("from.outside")
    with pytest.raises(KeyMissing):
        await soil.dig("from.outside")


async def test_one_of_many_writers_wins(grow: Grow) -> None:
    soil = (await grow()).ground.soil
    revision = await soil.put("counter", b"0")
    results = await asyncio.gather(
        *(soil.bury("counter", str(n).encode(), revision) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, RevisionConflict) for result in results) == 19


async def test_composts_become_state(grow: Grow) -> None:
    forest = await grow()
    humus, soil = forest.ground.humus, forest.ground.soil
    await humus.compost("nim", "thing", "create", {"v": 1})
    await humus.compost("nim", "thing", "update", {"v": 2})
    await humus.compost("nim", "other", "update", {"v": 3})
    await humus.compost("nim", "gone", "create", {"v": 4})
    await humus.compost("nim", "gone", "delete")
    await settled(forest)
    assert json.loads((await soil.dig("thing")).data) == {"v": 2}
    assert json.loads((await soil.dig("other")).data) == {"v": 3}
    with pytest.raises(KeyMissing):
        await soil.dig("gone")


async def test_a_foreign_entry_is_not_overwritten_by_a_create(grow: Grow) -> None:
    forest = await grow()
    await forest.ground.soil.put("mine", b"by hand")
    await forest.ground.humus.compost("nim", "mine", "create", {"v": 1})
    await until(lambda: forest.metrics.total("forest_soil_conflicts_total") == 1, "no conflict")
    assert (await forest.ground.soil.dig("mine")).data == b"by hand"


def delivery(slot: int, action: Action, data: Any, identity: str = "") -> Delivery:
    body = {"entity": "thing", "action": action, "data": data, "nim": "n"}
    return Delivery("HUMUS", slot, "humus.n.x", json.dumps(body).encode(), identity or f"id-{slot}", 9, 0.0)


HISTORY = [
    delivery(1, "create", 1),
    delivery(2, "update", 2),
    delivery(3, "delete", None),
    delivery(4, "update", 4),
]


@pytest.mark.parametrize("seed", range(3))
async def test_replays_in_any_order_end_in_the_newest_state(grow: Grow, seed: int) -> None:
    import random

    forest = await grow()
    soil: Soil = forest.ground.soil
    decomposers = [Decomposer(soil, forest.metrics, forest.ground.log) for _ in range(2)]
    rng = random.Random(seed)
    deliveries = HISTORY * 3
    rng.shuffle(deliveries)
    # Two nodes at once, each with deliveries of its own.
    await asyncio.gather(*(rng.choice(decomposers).handle(item) for item in deliveries))
    entry = await soil.dig("thing")
    assert (json.loads(entry.data), entry.slot) == (4, 4)


async def test_a_create_told_again_later_finds_even_the_deleted(grow: Grow) -> None:
    forest = await grow()
    decomposer = Decomposer(forest.ground.soil, forest.metrics, forest.ground.log)
    await decomposer.handle(delivery(1, "create", 1, "same"))
    await decomposer.handle(delivery(2, "update", 2))
    await decomposer.handle(delivery(8, "create", 1, "same"))
    assert json.loads((await forest.ground.soil.dig("thing")).data) == 2
    await decomposer.handle(delivery(9, "delete", None))
    await decomposer.handle(delivery(10, "create", 1, "same"))
    with pytest.raises(KeyMissing):
        await forest.ground.soil.dig("thing")
    await decomposer.handle(delivery(11, "create", 3, "another"))
    assert json.loads((await forest.ground.soil.dig("thing")).data) == 3


async def test_humus_refuses_what_is_no_change(grow: Grow) -> None:
    humus = (await grow()).ground.humus
    for arguments in (("a.b", "k", "create", 1), ("n", ".", "create", 1), ("n", "k", "create", None)):
        with pytest.raises(ValueError):
            await humus.compost(*arguments)  # type: ignore[arg-type]
