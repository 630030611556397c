"""Stripe's events as the forest needs them: what an event is, what a charge says, what its amount means.

Owns: pure parsing, no I/O. Sources: Stripe API reference (Event object, Charge object) and Stripe's "Supported
currencies" page for minor units.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from forest.errors import Poison
from forest.leaf import load_object

ZERO_DECIMAL = frozenset(
    ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf")
)
"""Currencies whose amounts are whole units. ISK and UGX have no minor unit either, but Stripe still counts them in
hundredths for compatibility ("to charge 5 UGX, provide an amount value of 500"), so they are not in here."""

THREE_DECIMAL = frozenset(("bhd", "jod", "kwd", "omr", "tnd"))

_ID = re.compile(r"^[A-Za-z0-9_-]{1,200}$")
_CURRENCY = re.compile(r"^[a-z]{3}$")
_EVENT_TYPE = re.compile(r"^[a-z0-9_]+(\.[a-z0-9_]+)+$")


@dataclass(frozen=True, slots=True)
class Event:
    """A Stripe event: `data_object` is its `data.object`."""

    id: str
    type: str
    data_object: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Charge:
    """What the forest wants to know of a charge. `amount` is in units (150.00), `minor` as Stripe counts (15000)."""

    id: str
    amount: Decimal
    minor: int
    currency: str
    customer: str
    email: str
    item: str
    failure: str


def exponent(currency: str) -> int:
    """How many decimal places Stripe's integer amounts have in this (lower-case) currency."""
    if currency in ZERO_DECIMAL:
        return 0
    return 3 if currency in THREE_DECIMAL else 2


def read_event(payload: bytes, interesting: frozenset[str]) -> Event | None:
    """The event in `payload` if its type is one of `interesting`, None for another genuine Stripe event.

    Raises Poison: not JSON, not an event, an unknown type in something that is no Stripe event, a missing field.
    """
    body = load_object(payload, "event")
    kind = body.get("type")
    if not isinstance(kind, str) or not _EVENT_TYPE.match(kind):
        raise Poison("unknown-event", f"event type {kind!r}"[:120])
    if kind not in interesting:
        if body.get("object") == "event" and isinstance(body.get("id"), str):
            return None
        raise Poison("unknown-event", f"event type {kind!r} in something that is no Stripe event"[:120])
    data_object = _mapping(_mapping(body.get("data")).get("object"))
    if not data_object:
        raise Poison("missing-field", "event without data.object")
    return Event(str(body.get("id") or ""), kind, data_object)


def read_charge(fields: dict[str, Any]) -> Charge:
    """The charge in an event's data object. Raises Poison for missing or impossible fields."""
    charge_id, minor, currency = fields.get("id"), fields.get("amount"), fields.get("currency")
    if not isinstance(charge_id, str) or not _ID.match(charge_id):
        raise Poison("missing-field", f"charge id {charge_id!r}"[:120])
    if not isinstance(minor, int) or isinstance(minor, bool) or minor < 0:
        raise Poison("missing-field", f"charge {charge_id}: amount {minor!r}"[:300])
    if not isinstance(currency, str) or not _CURRENCY.match(currency.lower()):
        raise Poison("missing-field", f"charge {charge_id}: currency {currency!r}"[:300])
    currency = currency.lower()
    customer = fields.get("customer")
    if isinstance(customer, dict):  # Stripe can expand it to the whole object
        customer = cast("dict[str, Any]", customer).get("id")
    billing = _mapping(fields.get("billing_details"))
    outcome = _mapping(fields.get("outcome"))
    return Charge(
        id=charge_id,
        amount=Decimal(minor).scaleb(-exponent(currency)),
        minor=minor,
        currency=currency,
        customer=_text(customer),
        email=_text(fields.get("receipt_email")) or _text(billing.get("email")),
        item=_text(_mapping(fields.get("metadata")).get("item_id")) or "unknown",
        failure=_text(fields.get("failure_message"))
        or _text(outcome.get("seller_message"))
        or _text(fields.get("failure_code"))
        or "unknown",
    )


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
