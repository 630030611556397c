"""AfterSalesNim: what happens after a payment.

Owns: the follow-up task, and the leaves `followup.required` and `email.send`. Everything is a function of the leaf
alone (its time included): handling it again makes the same things with the same identities. The task's key is
`task-<charge id>`, so a charge has one task in the soil for good, also long after the deduplication windows.

Order: the task first, then the leaves; the payment leaf is settled after all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, cast

from forest.errors import Poison
from forest.leaf import Leaf, format_time
from forest.nim import Nim
from forest.payments import COMPLETED, FAILED
from forest.stripe import exponent

FOLLOWUP = "followup.required"
EMAIL = "email.send"
EMAIL_FROM = Decimal(100)
"""Units of whatever currency from which a thank-you mail is sent."""

_FOLLOWUP_DUE = timedelta(hours=24)
_URGENT_DUE = timedelta(hours=2)
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Payment:
    """The payload of a payment leaf, checked."""

    charge: str
    customer: str
    email: str
    amount: Decimal
    currency: str
    item: str
    reason: str

    @property
    def price(self) -> str:
        """`150.00 usd`, `500 jpy`: with the decimals of the currency."""
        return f"{self.amount:.{exponent(self.currency)}f} {self.currency}"


def read_payment(leaf: Leaf) -> Payment:
    """The payment in a leaf; raises Poison if a field is missing."""
    if not isinstance(leaf.data, dict):
        raise Poison("missing-field", "payment leaf without an object as data")
    data = cast("dict[str, Any]", leaf.data)
    try:
        amount = Decimal(str(data["amount"]))
    except (KeyError, InvalidOperation):
        raise Poison("missing-field", f"payment leaf: amount {data.get('amount')!r}"[:120]) from None
    if not amount.is_finite():
        raise Poison("missing-field", "payment leaf: amount is not a number")
    charge = data.get("charge_id") or leaf.id  # a leaf from elsewhere may know no charge: then it is its own
    return Payment(
        charge=_NOT_IN_KEYS.sub("_", str(charge))[:200],
        customer=str(data.get("customer_id") or ""),
        email=str(data.get("customer_email") or ""),
        amount=amount,
        currency=str(data.get("currency") or ""),
        item=str(data.get("item_id") or "unknown"),
        reason=str(data.get("reason") or "unknown"),
    )


class AfterSalesNim(Nim):
    """Makes a task for every payment, completed or failed."""

    name = "aftersales-nim"
    subjects = (COMPLETED, FAILED)
    leaves = (FOLLOWUP, EMAIL)

    async def handle(self, leaf: Leaf, /) -> None:
        """See the module's docstring. Raises Poison, Unavailable."""
        payment = read_payment(leaf)
        if leaf.subject == FAILED:
            await self._failed(leaf, payment)
        else:
            await self._completed(leaf, payment)

    async def _completed(self, leaf: Leaf, payment: Payment) -> None:
        due = format_time(leaf.ts + _FOLLOWUP_DUE)
        await self._task(
            leaf,
            payment,
            type="followup",
            status="pending",
            priority="normal",
            due=due,
            description=f"Follow up on purchase of {payment.item} ({payment.price})",
        )
        await self._followup(payment, "post_purchase_followup", due)
        if payment.amount >= EMAIL_FROM:
            mail = {
                "charge_id": payment.charge,
                "to": payment.email or payment.customer,
                "subject": "Thank you for your purchase!",
                "body": f"We appreciate your purchase of {payment.price}",
                "template_id": "thank_you",
            }
            await self.drop(EMAIL, mail, leaf_id=f"{EMAIL}:{payment.charge}")

    async def _failed(self, leaf: Leaf, payment: Payment) -> None:
        due = format_time(leaf.ts + _URGENT_DUE)
        await self._task(
            leaf,
            payment,
            type="payment_failure",
            status="urgent",
            priority="urgent",
            due=due,
            description=f"Reach out about failed payment ({payment.price}): {payment.reason}",
        )
        await self._followup(payment, f"payment_failed: {payment.reason}", due)

    async def _task(
        self, leaf: Leaf, payment: Payment, *, type: str, status: str, priority: str, due: str, description: str
    ) -> None:
        key = f"task-{payment.charge}"
        made = format_time(leaf.ts)
        task = {
            "id": key,
            "charge_id": payment.charge,
            "customer_id": payment.customer,
            "type": type,
            "status": status,
            "priority": priority,
            "description": description,
            "amount": float(payment.amount),
            "currency": payment.currency,
            "item_id": payment.item,
            "due_date": due,
            "created_at": made,
            "updated_at": made,
        }
        await self.compost(key, "create", task, msg_id=f"create:{key}:{type}")

    async def _followup(self, payment: Payment, reason: str, due: str) -> None:
        data = {
            "charge_id": payment.charge,
            "customer_id": payment.customer,
            "task_id": f"task-{payment.charge}",
            "reason": reason,
            "due_date": due,
        }
        await self.drop(FOLLOWUP, data, leaf_id=f"{FOLLOWUP}:{payment.charge}")
