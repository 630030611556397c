"""Leaves, subjects and the wind's ways to catch."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from nats.aio.client import Client

from forest import Leaf, Poison
from forest.errors import LeafNotCaptured
from forest.leaf import format_time, parse_time
from forest.metrics import MOST_LABELS, LogGate
from forest.river import open_envelope, river_subject
from forest.subject import consumer_name, family, is_literal, is_pattern, matches, overlap
from tests.forest.conftest import Grow, until

TS = datetime(2026, 1, 2, 15, 4, 5, 678, UTC)


async def test_catch_and_catch_with_queue(grow: Grow, client: Client) -> None:
    wind = (await grow()).ground.wind
    everybody: list[str] = []
    group: list[str] = []

    async def slow(leaf: Leaf) -> None:
        await asyncio.sleep(0)
        group.append(leaf.id)

    def broken(_: Leaf) -> None:
        raise RuntimeError("a catcher's own bug")

    catches = [
        await wind.catch("followup.*", lambda leaf: everybody.append(leaf.id)),
        await wind.catch("followup.>", lambda leaf: everybody.append(leaf.id)),
        await wind.catch("followup.>", slow, queue="group"),
        await wind.catch("followup.>", slow, queue="group"),
        await wind.catch("followup.>", broken),
    ]
    await client.publish("followup.required", b"not a leaf")
    for number in range(10):
        await wind.drop(Leaf("followup.required", {"n": number}, "test", TS, f"id-{number}"))
    await until(lambda: len(everybody) == 20 and len(group) == 10, "leaves are missing")
    assert sorted(group) == sorted(set(everybody))
    for catch in catches:
        await catch.stop()


async def test_a_second_drop_is_not_stored_again(grow: Grow) -> None:
    wind = (await grow()).ground.wind
    leaf = Leaf("email.send", {}, "test", TS, "the-same")
    assert not (await wind.drop(leaf)).duplicate
    assert (await wind.drop(leaf)).duplicate


async def test_subjects_and_reasons_do_not_grow_the_metrics(grow: Grow) -> None:
    forest = await grow()
    for number in range(3):
        await forest.ground.wind.drop(Leaf(f"email.send.{number}", {}, "test", TS, f"id-{number}"))
    dropped = [one for one in forest.metrics.samples() if one[0] == "forest_leaves_dropped_total"]
    assert dropped == [("forest_leaves_dropped_total", {"captured": "email.>"}, 3)]
    for number in range(MOST_LABELS + 5):
        forest.metrics.count("forest_items_poison_total", consumer="nim-x", reason=f"reason {number}")
    reasons = [labels["reason"] for name, labels, _ in forest.metrics.samples() if name == "forest_items_poison_total"]
    assert len(reasons) == MOST_LABELS + 1
    assert forest.metrics.value("forest_items_poison_total", consumer="other", reason="other") == 5


async def test_a_leaf_nobody_takes_over_is_not_dropped(grow: Grow) -> None:
    wind = (await grow()).ground.wind
    with pytest.raises(LeafNotCaptured, match="wind_subjects"):
        await wind.drop(Leaf("party.begun", {}, "test", TS))
    await wind.open(["party.begun"])
    await wind.drop(Leaf("party.begun", {}, "test", TS))


async def test_another_nodes_families_are_kept(grow: Grow, client: Client) -> None:
    await grow(wind_subjects=("payment.>", "followup.>", "email.>", "zoo.>"))
    await grow()
    subjects = (await client.jetstream().stream_info("WIND")).config.subjects
    assert set(subjects or []) == {"payment.>", "followup.>", "email.>", "zoo.>"}


def test_a_leaf_survives_its_wire_form() -> None:
    leaf = Leaf("a.b", {"x": [1, None, "é"]}, "me", TS, "id")
    assert Leaf.from_json(leaf.to_json(), "id") == leaf
    for subject in ("", "a..b", "a.*", "a.>", "a b", "a.\x00"):
        with pytest.raises(ValueError):
            Leaf(subject, {}, "me", TS)
    with pytest.raises(ValueError, match="time zone"):
        Leaf("a", {}, "me", datetime(2026, 1, 1))
    with pytest.raises(ValueError):
        Leaf("a", float("nan"), "me", TS).to_json()
    with pytest.raises(Poison, match="bad-field"):
        Leaf.from_json(b'{"subject":"a.>","data":1,"source":"s","ts":"2026-01-02T15:04:05Z"}')


def test_times() -> None:
    assert format_time(TS) == "2026-01-02T15:04:05.000678Z"
    assert parse_time("2026-01-02T15:04:05.000678999Z") == TS
    assert parse_time("2026-01-02T15:04:05.5+01:00").hour == 14
    for text in ("2026-01-02T15:04:05", "tomorrow", ""):
        with pytest.raises(ValueError):
            parse_time(text)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\x00",
        b"[1]",
        b'{"subject":"river.x","data":"not base64!"}',
        b'{"subject":"river.other","data":"aGk="}',
        b'{"subject":"river.x","data":"aGk=","more":1}',
        b'{"subject":"river.x","data":{"object":1}}',
        b'{"subject":"river.x","data":"aGk=","ts":"bad"}',
        b'{"subject":"river.x"',
    ],
)
def test_what_is_no_envelope_is_raw(payload: bytes) -> None:
    assert open_envelope("river.x", payload) == (payload, None)


def test_an_envelope_without_a_time_is_one() -> None:
    assert open_envelope("river.x", b' {"data":"aGk=","subject":"river.x"}') == (b"hi", None)


def test_subjects() -> None:
    assert is_literal("a.b-c.D_9") and not is_literal("a.*") and not is_literal("a.")
    assert is_pattern("a.*.>") and not is_pattern("a.>.b") and not is_pattern("")
    assert family("payment.completed") == family("payment.*") == "payment.>" and family("alarm") == "alarm"
    for subject in (">", "*.a", "river.x", "humus.x", "$KV.x", "_INBOX.a"):
        with pytest.raises(ValueError):
            family(subject)
    assert matches("a.*.c", "a.b.c") and matches("a.>", "a.b.c") and matches("a", "a")
    assert not matches("a.>", "a") and not matches("a.*", "a.b.c") and not matches("a.b", "a")
    assert overlap("a.*", "*.b") and overlap("a.>", "a.b.c") and overlap("a.b", "a.b")
    assert not overlap("a.b", "a.c") and not overlap("a", "a.b") and not overlap("a.*", "b.>")
    assert consumer_name("tree", "river.stripe.webhook") == "tree-river-stripe-webhook"
    assert len({consumer_name("t", p) for p in ("a.b", "a-b", "a_b", "a.*", "a.>", "a.any")}) == 6
    assert river_subject("x.y") == river_subject("river.x.y") == "river.x.y"
    with pytest.raises(ValueError):
        river_subject("x.>")


def test_the_log_gate_counts_what_it_keeps_back() -> None:
    now = [0.0]
    gate = LogGate(lambda: now[0], limit=2, period=10)
    assert [gate.admit("a") for _ in range(5)] == [0, 0, None, None, None]
    assert gate.admit("b") == 0
    now[0] = 10.0
    assert gate.admit("a") == 3
    assert gate.admit("a") == 0
