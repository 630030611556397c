"""Things that no retry makes right: terminated, counted, logged a bounded number of times, never looped."""

from __future__ import annotations

import json
import logging

import pytest
from nats.aio.client import Client

from tests.forest.conftest import Grow, emptied, settled, task_of, until
from tests.forest.events import SUCCEEDED, succeeded

POISON: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not-json"),
    "text": (b"hello", "not-json"),
    "binary": (bytes(range(256)), "not-json"),
    "half": (json.dumps(SUCCEEDED).encode()[:500], "not-json"),
    "deep": (b"[" * 100_000, "not-json"),
    "list": (b"[]", "not-json"),
    "number": (b"42", "not-json"),
    "no type": (b"{}", "unknown-event"),
    "odd type": (b'{"type": ["charge.succeeded"]}', "unknown-event"),
    "unknown type": (b'{"type": "tree.fell", "data": {"object": {}}}', "unknown-event"),
    "no data": (b'{"type": "charge.succeeded"}', "missing-field"),
    "no object": (b'{"type": "charge.succeeded", "data": {"object": null}}', "missing-field"),
    "no id": (succeeded(None), "missing-field"),  # type: ignore[arg-type]
    "bad id": (succeeded("../.>"), "missing-field"),
    "no amount": (succeeded("ch_x", amount=None), "missing-field"),
    "broken amount": (succeeded("ch_x", amount=1.5), "missing-field"),
    "truth as amount": (succeeded("ch_x", amount=True), "missing-field"),
    "negative amount": (succeeded("ch_x", amount=-1), "missing-field"),
    "no currency": (succeeded("ch_x", currency=None), "missing-field"),
    "odd currency": (succeeded("ch_x", currency="euros"), "missing-field"),
}


async def test_the_zoo_is_terminated_and_the_flow_goes_on(grow: Grow, client: Client) -> None:
    forest = await grow()
    for payload, _ in POISON.values():
        await client.publish("river.stripe.webhook", payload)
    await client.publish("river.stripe.webhook", succeeded("ch_after_the_zoo"))
    assert (await task_of(client, "ch_after_the_zoo"))["type"] == "followup"
    await settled(forest)
    reasons = [reason for _, reason in POISON.values()]
    counted = {reason: forest.metrics.total("forest_items_poison_total", reason=reason) for reason in set(reasons)}
    assert counted == {reason: reasons.count(reason) for reason in set(reasons)}
    received = forest.metrics.total("forest_items_received_total", consumer="tree-river-stripe-webhook")
    assert received == len(POISON) + 1, "each came once"
    assert forest.metrics.total("forest_items_retried_total") == 0
    await emptied(client, "RIVER")


async def test_stripes_other_events_are_acknowledged_without_fuss(
    grow: Grow, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    forest = await grow()
    for kind in ("charge.refunded", "customer.subscription.created", "payment_intent.succeeded"):
        event = {**SUCCEEDED, "type": kind}
        await client.publish("river.stripe.webhook", json.dumps(event).encode())
    await until(lambda: forest.metrics.total("forest_items_ignored_total") == 3, "not ignored")
    await settled(forest)
    assert forest.metrics.total("forest_items_poison_total") == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_flood_of_poison_is_no_flood_of_lines(
    grow: Grow, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    forest = await grow()
    for _ in range(100):
        await client.publish("river.stripe.webhook", b"not json")
    await until(lambda: forest.metrics.total("forest_items_poison_total") == 100, "not counted")
    lines = [record for record in caplog.records if "poison" in record.getMessage()]
    assert 1 <= len(lines) <= 5


FURTHER_DOWN: list[tuple[str, bytes]] = [
    ("payment.completed", b"not a leaf"),
    ("payment.completed", b'{"subject": "payment.completed"}'),
    ("payment.failed", b'{"subject":"payment.failed","data":[],"source":"x","ts":"2026-01-02T15:04:05Z"}'),
    ("payment.failed", b'{"subject":"payment.failed","data":{},"source":"x","ts":"yesterday"}'),
    ("payment.failed", b'{"subject":"payment.failed","data":{},"source":"x","ts":"2026-01-02T15:04:05Z"}'),
    ("humus.somebody.create", b"not compost"),
    ("humus.somebody.create", b'{"entity":"..","action":"create","data":1}'),
    ("humus.somebody.create", b'{"entity":"a","action":"explode","data":1}'),
    ("humus.somebody.create", b'{"entity":"a","action":"create"}'),
]


async def test_poison_further_down_is_terminated_too(grow: Grow, client: Client) -> None:
    forest = await grow()
    for subject, payload in FURTHER_DOWN:
        await client.publish(subject, payload)
    count = len(FURTHER_DOWN)
    await until(lambda: forest.metrics.total("forest_items_poison_total") == count, "not counted")
    await settled(forest)
    assert forest.metrics.total("forest_items_received_total") == count
