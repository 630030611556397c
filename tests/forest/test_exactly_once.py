"""No charge is lost, none is doubled: deaths at every step, redelivery, rival nodes, late repetitions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from forest import Forest, ForestOptions
from tests.forest.conftest import QUICK, Grow, emptied, go_server, settled, stored, task_of, until, writes_of
from tests.forest.events import failed, succeeded

# Every message a forest sends for one payment, by the beginning of its subject.
STEPS = (
    "payment.completed",
    "$JS.ACK.RIVER",
    "humus.aftersales-nim.create",
    "followup.required",
    "email.send",
    "$JS.ACK.WIND",
    "$KV.SOIL.",
    "$JS.ACK.HUMUS",
)


class MortalClient(Client):
    """A client that dies before or after sending the first message to `step`: from then on it is cut off."""

    def __init__(self, step: str, *, after: bool) -> None:
        super().__init__()
        self._step = step
        self._after = after
        self.dead = asyncio.Event()

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: dict[str, Any] | None = None,
    ) -> None:
        if self.dead.is_set():
            await asyncio.Event().wait()  # a dead process sends nothing any more
        fatal = subject.startswith(self._step)
        if not fatal or self._after:
            await super().publish(subject, payload, reply, headers)
        if fatal:
            if self._after:
                await self.flush()
            self.dead.set()
            await asyncio.Event().wait()


async def die_at(url: str, outside: Client, charge: str, step: str, *, after: bool) -> None:
    """Let a forest handle a charge until it dies at `step`."""
    mortal = MortalClient(step, after=after)
    await mortal.connect(url)
    forest = Forest(mortal, ForestOptions(limits=QUICK))
    await forest.start()
    await outside.publish("river.stripe.webhook", succeeded(charge))
    async with asyncio.timeout(20):
        await mortal.dead.wait()
    await mortal.close()  # the server sees the connection go; nothing is settled on the way out
    await forest.stop()


async def test_death_at_any_step_leaves_exactly_one_task(nats_url: str, client: Client, grow: Grow) -> None:
    charges: list[str] = []
    survivor = await grow()
    await survivor.stop()  # streams and consumers are there
    for number, step in enumerate(STEPS):
        for after in (False, True):
            charges.append(f"ch_death{number}{'after' if after else 'before'}")
            await die_at(nats_url, client, charges[-1], step, after=after)
    forest = await grow()
    await settled(forest)
    for charge in charges:
        await task_of(client, charge)
        assert await writes_of(client, charge) == 1, charge
    assert await stored(client, "HUMUS") == len(charges)
    assert await stored(client, "KV_SOIL") == len(charges)
    await emptied(client, "RIVER")


async def test_two_forests_race_over_200_charges(grow: Grow, client: Client) -> None:
    one, two = await asyncio.gather(grow(), grow())
    charges = [f"ch_race{number:03d}" for number in range(200)]
    js = client.jetstream()
    for start in range(0, 200, 50):
        await asyncio.gather(
            *(js.publish("river.stripe.webhook", succeeded(charge)) for charge in charges[start : start + 50])
        )

    async def complete() -> bool:
        return await stored(client, "KV_SOIL") >= len(charges)

    await until(complete, "tasks are missing")
    await settled(one)
    state = (await js.stream_info("KV_SOIL", subjects_filter="$KV.SOIL.>")).state
    assert state.subjects == {f"$KV.SOIL.task-{charge}": 1 for charge in charges}
    assert await stored(client, "HUMUS") == len(charges)
    shares = [forest.metrics.total("forest_leaves_dropped_total", captured="payment.>") for forest in (one, two)]
    assert sum(shares) == len(charges)
    assert min(shares) > 0, "both nodes have worked"


async def test_the_same_event_again_and_again_changes_nothing(grow: Grow, client: Client) -> None:
    forest = await grow()
    for _ in range(3):
        await client.publish("river.stripe.webhook", succeeded("ch_again"))
    await task_of(client, "ch_again")
    await settled(forest)
    assert await writes_of(client, "ch_again") == 1
    assert await stored(client, "HUMUS") == 1
    assert forest.metrics.total("forest_leaves_duplicate_total", captured="payment.>") == 2


async def test_a_repetition_after_the_windows_meets_the_task_itself(grow: Grow, client: Client) -> None:
    """A restart of the streams' memory of identities, which is what passing time does: the soil still knows."""
    forest = await grow()
    await client.publish("river.stripe.webhook", succeeded("ch_late"))
    await task_of(client, "ch_late")
    await settled(forest)
    js = client.jetstream()
    for stream in ("WIND", "HUMUS"):
        config = (await js.stream_info(stream)).config
        config.duplicate_window = 0.1
        await js.update_stream(config)
    await asyncio.sleep(0.3)  # the window is the server's own clock: nothing to await
    await client.publish("river.stripe.webhook", succeeded("ch_late"))

    async def repeated() -> bool:
        return await stored(client, "HUMUS") == 2

    await until(repeated, "the repetition was held back earlier than this test wants")
    await settled(forest)
    assert await writes_of(client, "ch_late") == 1
    assert forest.metrics.total("forest_soil_replays_total") == 1

    task = await forest.ground.soil.dig("task-ch_late")
    await forest.ground.soil.delete(task.key, task.revision)
    await asyncio.sleep(0.3)  # as above
    await client.publish("river.stripe.webhook", succeeded("ch_late"))

    async def repeated_again() -> bool:
        return await stored(client, "HUMUS") == 3

    await until(repeated_again, "the second repetition did not arrive")
    await settled(forest)
    with pytest.raises(NotFoundError):
        await (await js.key_value("SOIL")).get("task-ch_late")


async def test_an_outcome_that_contradicts_the_first_is_reported_not_mixed_in(grow: Grow, client: Client) -> None:
    forest = await grow()
    await client.publish("river.stripe.webhook", succeeded("ch_both"))
    await task_of(client, "ch_both")
    await client.publish("river.stripe.webhook", failed("ch_both"))
    await until(lambda: forest.metrics.total("forest_soil_conflicts_total") == 1, "no conflict was counted")
    assert (await task_of(client, "ch_both"))["type"] == "followup"


async def test_a_full_wind_holds_the_river_and_nothing_is_lost(grow: Grow, client: Client) -> None:
    forest = await grow()
    js = client.jetstream()
    config = (await js.stream_info("WIND")).config
    config.max_bytes = 1  # no leaf fits: the server answers "maximum bytes exceeded"
    await js.update_stream(config)
    await client.publish("river.stripe.webhook", succeeded("ch_patient"))
    await until(lambda: forest.metrics.total("forest_items_retried_total") >= 5, "the tree did not try again")
    assert await stored(client, "RIVER") == 1
    config.max_bytes = -1
    await js.update_stream(config)
    assert (await task_of(client, "ch_patient"))["status"] == "pending"


async def test_a_deleted_consumer_is_made_again(grow: Grow, client: Client) -> None:
    forest = await grow()
    js = client.jetstream()
    await js.delete_consumer("RIVER", "tree-river-stripe-webhook")
    await client.publish("river.stripe.webhook", succeeded("ch_orphan"))
    assert (await task_of(client, "ch_orphan"))["charge_id"] == "ch_orphan"
    await settled(forest)


async def test_a_server_that_dies_and_comes_back_finds_the_forest_waiting(tmp_path: Path) -> None:
    async def quiet(_: Exception) -> None:
        """The server dies on purpose."""

    with go_server(tmp_path) as (url, process):
        forest = Forest(url, ForestOptions(limits=QUICK))
        await forest.start()
        outside = await nats.connect(url, error_cb=quiet, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
        js = outside.jetstream()
        charges = [f"ch_outage{number:02d}" for number in range(40)]
        for charge in charges[:20]:
            await js.publish("river.stripe.webhook", succeeded(charge))
        process.kill()
        process.wait()
    with go_server(tmp_path, int(url.rpartition(":")[2])):
        for charge in charges[20:]:
            while True:
                try:
                    await js.publish("river.stripe.webhook", succeeded(charge), timeout=0.3)
                except nats.errors.Error:
                    continue  # not connected again yet: a webhook's sender repeats, too
                break

        async def complete() -> bool:
            return await stored(outside, "KV_SOIL") >= len(charges)

        await until(complete, "tasks are missing")
        await settled(forest)
        state = (await js.stream_info("KV_SOIL", subjects_filter="$KV.SOIL.>")).state
        assert state.subjects == {f"$KV.SOIL.task-{charge}": 1 for charge in charges}
        await forest.stop()
        await outside.close()
