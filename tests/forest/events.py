"""Stripe events for the tests: the complete one beside this file, and variations of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

SUCCEEDED: dict[str, Any] = json.loads(Path(__file__).with_name("charge_succeeded.json").read_text())
CHARGE_ID: str = SUCCEEDED["data"]["object"]["id"]


def succeeded(charge_id: str = CHARGE_ID, **fields: Any) -> bytes:
    """A charge.succeeded event for `charge_id`, with other values in some of the charge's fields."""
    event = copy.deepcopy(SUCCEEDED)
    event["id"] = f"evt_{charge_id}"
    event["data"]["object"].update(id=charge_id, **fields)
    return json.dumps(event).encode()


def failed(charge_id: str, **fields: Any) -> bytes:
    """A charge.failed event, as Stripe sends it for a declined card."""
    event = json.loads(succeeded(charge_id))
    event["type"] = "charge.failed"
    event["data"]["object"].update(
        amount_captured=0,
        balance_transaction=None,
        captured=False,
        failure_code="card_declined",
        failure_message="Your card has insufficient funds.",
        paid=False,
        status="failed",
    )
    event["data"]["object"]["outcome"].update(
        network_status="declined_by_network",
        reason="insufficient_funds",
        seller_message="The bank returned the decline code `insufficient_funds`.",
        type="issuer_declined",
    )
    event["data"]["object"].update(fields)
    return json.dumps(event).encode()
