"""PaymentTree: Stripe's webhooks become `payment.completed` and `payment.failed`.

Owns: which events matter, and the payload of the two leaves. The identity of a leaf is subject and charge id, so one
charge makes one leaf, however often Stripe tells about it.
"""

from __future__ import annotations

from forest.leaf import Leaf
from forest.river import RiverItem
from forest.stripe import read_charge, read_event
from forest.tree import Tree

COMPLETED = "payment.completed"
FAILED = "payment.failed"
_SUBJECTS = {"charge.succeeded": COMPLETED, "charge.failed": FAILED}
_INTERESTING = frozenset(_SUBJECTS)


class PaymentTree(Tree):
    """Watches `river.stripe.webhook`."""

    name = "payment-tree"
    patterns = ("river.stripe.webhook",)
    leaves = (COMPLETED, FAILED)

    def parse(self, item: RiverItem, /) -> Leaf | None:
        """The leaf of a charge event; None for Stripe's other events. Raises Poison for what is no event."""
        event = read_event(item.data, _INTERESTING)
        if event is None:
            return None
        charge = read_charge(event.data_object)
        data: dict[str, object] = {
            "charge_id": charge.id,
            "event_id": event.id,
            "customer_id": charge.customer,
            "customer_email": charge.email,
            "amount": float(charge.amount),
            "amount_minor": charge.minor,
            "currency": charge.currency,
            "item_id": charge.item,
        }
        subject = _SUBJECTS[event.type]
        if subject == FAILED:
            data["reason"] = charge.failure
        return self.leaf(subject, data, leaf_id=f"{subject}:{charge.id}")
