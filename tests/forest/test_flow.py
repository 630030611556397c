"""A payment's way through the forest, seen from outside."""

from __future__ import annotations

import base64
import json
import logging
from datetime import timedelta

import pytest
from nats.aio.client import Client

from forest.leaf import Leaf, parse_time
from tests.forest.conftest import Grow, emptied, observing, settled, stored, task_of, until, writes_of
from tests.forest.events import CHARGE_ID, SUCCEEDED, failed, succeeded

LEAVES = ("payment.completed", "payment.failed", "followup.required", "email.send")


async def test_a_complete_stripe_event_ends_as_a_task_and_is_seen_on_the_wind(grow: Grow, client: Client) -> None:
    forest = await grow()
    async with observing(client, *LEAVES) as observer:
        # Exactly what `nats pub river.stripe.webhook '{...}'` sends: raw JSON, no envelope.
        await client.publish("river.stripe.webhook", json.dumps(SUCCEEDED).encode())
        task = await task_of(client, CHARGE_ID)
        await observer.wait("payment.completed", "followup.required", "email.send")
        await settled(forest)
        assert {subject: len(seen) for subject, seen in observer.seen.items()} == {
            "payment.completed": 1,
            "followup.required": 1,
            "email.send": 1,
        }
        payment = observer.seen["payment.completed"][0]
    assert set(payment) == {"subject", "data", "source", "ts"}
    assert payment["source"] == "payment-tree"
    assert payment["data"]["amount"] == 150.0
    assert payment["data"]["currency"] == "usd"
    assert payment["data"]["customer_id"] == "cus_RD5nQ8tqOe0vXn"
    assert payment["data"]["item_id"] == "item-oak-3"
    assert observer.seen["email.send"][0]["data"]["to"] == "jenny.rosen@example.com"
    followup = observer.seen["followup.required"][0]["data"]
    assert task["id"] == f"task-{CHARGE_ID}" == followup["task_id"]
    assert (task["type"], task["status"], task["amount"]) == ("followup", "pending", 150.0)
    assert task["due_date"] == followup["due_date"]
    assert parse_time(task["due_date"]) - parse_time(task["created_at"]) == timedelta(hours=24)
    assert await writes_of(client, CHARGE_ID) == 1
    await emptied(client, "RIVER")  # a work-queue forgets what has been done
    await emptied(client, "WIND")  # settled leaves are gone, unwanted ones were never kept
    assert await stored(client, "HUMUS") == 1


async def test_the_envelope_is_opened(grow: Grow, client: Client) -> None:
    await grow()
    envelope = {
        "subject": "river.stripe.webhook",
        "data": base64.b64encode(succeeded("ch_envelope")).decode(),
        "ts": "2026-01-02T15:04:05.123456789Z",
    }
    await client.publish("river.stripe.webhook", json.dumps(envelope).encode())
    assert (await task_of(client, "ch_envelope"))["charge_id"] == "ch_envelope"


async def test_flow_wraps_and_the_tree_unwraps(grow: Grow, client: Client) -> None:
    forest = await grow()
    first = await forest.river.flow("stripe.webhook", succeeded("ch_flow"))
    assert not first.duplicate
    assert (await task_of(client, "ch_flow"))["type"] == "followup"


async def test_a_failed_charge_is_urgent(grow: Grow, client: Client) -> None:
    forest = await grow()
    async with observing(client, *LEAVES) as observer:
        await client.publish("river.stripe.webhook", failed("ch_declined"))
        task = await task_of(client, "ch_declined")
        await observer.wait("payment.failed", "followup.required")
        await settled(forest)
        assert "email.send" not in observer.seen
    assert (task["type"], task["status"]) == ("payment_failure", "urgent")
    assert parse_time(task["due_date"]) - parse_time(task["created_at"]) == timedelta(hours=2)
    assert observer.seen["payment.failed"][0]["data"]["reason"] == "Your card has insufficient funds."
    assert "insufficient funds" in observer.seen["followup.required"][0]["data"]["reason"]


async def test_the_email_begins_at_exactly_100_units_in_every_currency(grow: Grow, client: Client) -> None:
    forest = await grow()
    cases = {
        "ch_usd_below": ("usd", 9_999, 99.99),
        "ch_usd_at": ("usd", 10_000, 100.0),
        "ch_jpy_below": ("jpy", 99, 99.0),
        "ch_jpy_at": ("jpy", 100, 100.0),
        "ch_kwd_below": ("kwd", 99_990, 99.99),
        "ch_kwd_at": ("kwd", 100_000, 100.0),
        "ch_ugx_below": ("ugx", 9_900, 99.0),
        "ch_EUR_at": ("EUR", 10_000, 100.0),
    }
    async with observing(client, "email.send") as observer:
        for charge, (currency, amount, units) in cases.items():
            await client.publish("river.stripe.webhook", succeeded(charge, currency=currency, amount=amount))
            task = await task_of(client, charge)
            assert (task["amount"], task["currency"]) == (units, currency.lower())
        await settled(forest)
        await client.flush()
        mailed = {leaf["data"]["charge_id"] for leaf in observer.seen["email.send"]}
    assert mailed == {charge for charge in cases if charge.endswith("_at")}


async def test_what_stripe_leaves_open_is_no_mistake(grow: Grow, client: Client) -> None:
    await grow()
    guest = succeeded("ch_guest", customer=None, receipt_email=None, metadata={}, billing_details={"email": None})
    await client.publish("river.stripe.webhook", guest)
    task = await task_of(client, "ch_guest")
    assert (task["customer_id"], task["item_id"]) == ("", "unknown")
    expanded = succeeded("ch_expanded", customer={"id": "cus_9", "object": "customer"})
    await client.publish("river.stripe.webhook", expanded)
    assert (await task_of(client, "ch_expanded"))["customer_id"] == "cus_9"


async def test_a_leaf_from_outside_is_as_good_as_a_trees(grow: Grow, client: Client) -> None:
    await grow()
    leaf = Leaf(
        "payment.completed",
        {"charge_id": "ch_other", "customer_id": "c", "amount": 5, "currency": "eur", "item_id": "i"},
        "another-program",
        parse_time("2026-01-02T15:04:05+01:00"),
    )
    await client.publish("payment.completed", leaf.to_json())
    assert (await task_of(client, "ch_other"))["due_date"] == "2026-01-03T14:04:05.000000Z"


async def test_the_demo_feeds_payments(grow: Grow, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "forest")
    async with observing(client, "followup.required") as observer:
        forest = await grow(demo=True, demo_interval=0.01)
        await observer.wait("followup.required")
    charge = observer.seen["followup.required"][0]["data"]["charge_id"]
    assert (await task_of(client, charge))["charge_id"] == charge
    assert forest.metrics.total("forest_demo_events_total") > 0
    assert f"of {charge}\n" in caplog.text
    await until(lambda: f"demo: soil: create task-{charge}: " in caplog.text, "the demo tells of the task")
    assert forest.metrics.total("forest_items_poison_total") == 0


async def test_replicas_follow_on_request_and_one_is_what_one_server_has(grow: Grow, client: Client) -> None:
    forest = await grow()
    assert await forest.adjust_replicas(1) is False
    config = (await client.jetstream().stream_info("KV_SOIL")).config
    assert (config.max_msgs_per_subject, config.num_replicas) == (10, 1)
