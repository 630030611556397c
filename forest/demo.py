"""Demo: sample payments, so that a new forest has something to show.

Owns: complete Stripe events made from a random source, the feeder that puts one into the river now and then, and the
lines of the log that tell what has become of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable
from typing import Any, cast

from forest.ending import end
from forest.errors import ForestError
from forest.humus import Compost
from forest.metrics import ForestMetrics
from forest.river import River

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_NAMES = ("Ada Lovelace", "Grace Hopper", "Alan Turing", "Mary Jackson", "Edsger Dijkstra", "Katherine Johnson")
_ITEMS = ("seedling-oak", "seedling-birch", "mushroom-kit", "rain-barrel", "bird-house", "forest-tour")
_DECLINES = (
    ("card_declined", "generic_decline", "Your card was declined."),
    ("card_declined", "insufficient_funds", "Your card has insufficient funds."),
    ("expired_card", "expired_card", "Your card has expired."),
)
_API_VERSION = "2024-06-20"


def sample_event(rng: random.Random, now: float) -> dict[str, Any]:
    """A complete charge event; one in five has failed. `now`: seconds since the epoch."""
    failed = rng.random() < 0.2
    charge = sample_charge(rng, now, failed=failed)
    return {
        "id": _id(rng, "evt_3"),
        "object": "event",
        "api_version": _API_VERSION,
        "created": int(now),
        "data": {"object": charge},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": _id(rng, "req_", 14), "idempotency_key": _uuid(rng)},
        "type": "charge.failed" if failed else "charge.succeeded",
    }


def sample_charge(rng: random.Random, now: float, *, failed: bool) -> dict[str, Any]:
    """A charge object with Stripe's usual fields."""
    name = rng.choice(_NAMES)
    email = f"{name.split()[0].lower()}@example.com"
    currency = rng.choice(("usd", "usd", "eur", "eur", "gbp", "jpy"))
    amount = rng.randrange(500, 40_000)
    code, decline, message = rng.choice(_DECLINES)
    charge_id = _id(rng, "ch_3")
    return {
        "id": charge_id,
        "object": "charge",
        "amount": amount,
        "amount_captured": 0 if failed else amount,
        "amount_refunded": 0,
        "balance_transaction": None if failed else _id(rng, "txn_3"),
        "billing_details": {"address": {"country": "NL"}, "email": email, "name": name, "phone": None},
        "calculated_statement_descriptor": "NIMSFOREST",
        "captured": not failed,
        "created": int(now),
        "currency": currency,
        "customer": _id(rng, "cus_", 14),
        "description": "Order in the forest shop",
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": code if failed else None,
        "failure_message": message if failed else None,
        "fraud_details": {},
        "livemode": False,
        "metadata": {"item_id": rng.choice(_ITEMS), "order_id": f"order-{rng.randrange(10_000, 99_999)}"},
        "outcome": {
            "network_status": "declined_by_network" if failed else "approved_by_network",
            "reason": decline if failed else None,
            "risk_level": "normal",
            "risk_score": rng.randrange(1, 60),
            "seller_message": "The bank did not return any further details." if failed else "Payment complete.",
            "type": "issuer_declined" if failed else "authorized",
        },
        "paid": not failed,
        "payment_intent": _id(rng, "pi_3"),
        "payment_method": _id(rng, "pm_1"),
        "payment_method_details": {"card": {"brand": "visa", "last4": "4242"}, "type": "card"},
        "receipt_email": email,
        "refunded": False,
        "status": "failed" if failed else "succeeded",
    }


def narrate(compost: Compost, log: logging.Logger) -> None:
    """One line for what a payment has become in the soil, so that somebody who watches the demo sees it."""
    task = cast("dict[str, Any]", compost.data) if isinstance(compost.data, dict) else {}
    what = task.get("description", "")
    log.info("demo: soil: %s %s: %s", compost.action, compost.entity, what)


class Feeder:
    """Puts a sample event into the river every `interval` seconds, give or take a third."""

    def __init__(
        self,
        river: River,
        *,
        interval: float,
        clock: Callable[[], float],
        rng: random.Random,
        metrics: ForestMetrics,
        log: logging.Logger,
    ) -> None:
        self._river = river
        self._interval = interval
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._log = log
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to feed."""
        assert self._task is None
        self._task = asyncio.create_task(self._run(), name="forest:demo")

    async def stop(self) -> None:
        """Stop feeding."""
        if self._task is not None:
            await end([self._task])
            self._task = None

    async def _run(self) -> None:
        while True:
            event = sample_event(self._rng, self._clock())
            try:
                await self._river.flow("river.stripe.webhook", json.dumps(event).encode())
                self._metrics.count("forest_demo_events_total")
                self._log.info("demo: river: %s of %s", event["type"], event["data"]["object"]["id"])
            except ForestError as error:
                self._log.warning("demo: %s", error)
            await asyncio.sleep(self._interval * (2 / 3 + self._rng.random() * 2 / 3))


def _id(rng: random.Random, prefix: str, length: int = 23) -> str:
    return prefix + "".join(rng.choice(_ALPHABET) for _ in range(length))


def _uuid(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
