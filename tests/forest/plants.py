"""Own trees and nims for the tests, good ones and broken ones."""

from __future__ import annotations

from collections.abc import Sequence

from forest import Ground, Leaf, Nim, RiverItem, Tree


class CountingNim:
    """A plain class without a base: handles `sensor.reading`, remembers what it got."""

    subjects: Sequence[str] = ("sensor.>",)
    seen: list[Leaf] = []

    def handle(self, leaf: Leaf, /) -> None:
        self.seen.append(leaf)


class SensorTree(Tree):
    """Makes several leaves of one item."""

    patterns = ("river.sensor.*",)
    leaves = ("sensor.reading",)

    def parse(self, item: RiverItem, /) -> list[Leaf]:
        return [self.leaf("sensor.reading", float(line)) for line in item.data.split()]


class CopyTree:
    """A plain class that watches what PaymentTree watches, as a coroutine, and makes nothing of it."""

    patterns: Sequence[str] = ("river.stripe.webhook",)
    seen: list[bytes] = []

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    async def parse(self, item: RiverItem, /) -> None:
        self.seen.append(item.data)


class LedgerNim(Nim):
    """Keeps the last payment of each customer, by way of the humus."""

    subjects = ("payment.completed",)

    async def handle(self, leaf: Leaf, /) -> None:
        key = f"last-{leaf.data['customer_id']}"
        await self.compost(key, "update", {"charge": leaf.data["charge_id"]})


class ExplodingConstructor:
    patterns: Sequence[str] = ("river.x",)

    def __init__(self) -> None:
        raise RuntimeError("no seed in here")


class ExplodingTree(Tree):
    patterns = ("river.stripe.webhook",)

    def parse(self, item: RiverItem, /) -> None:
        raise KeyError("a bug in somebody's tree")


class ExplodingNim(Nim):
    subjects = ("payment.completed",)

    async def handle(self, leaf: Leaf, /) -> None:
        raise ZeroDivisionError("a bug in somebody's nim")


class GreedyTree(Tree):
    """Watches everything, which a work-queue cannot share."""

    patterns = ("river.>",)


class GreedyNim(Nim):
    """Wants every subject there is."""

    subjects = (">",)


class Stone:
    """Neither tree nor nim."""


class Undeclared(Tree):
    """Drops a leaf that nobody has declared."""

    patterns = ("river.undeclared",)

    def parse(self, item: RiverItem, /) -> Leaf:
        return self.leaf("surprise.party", {})


class QuittingNim(Nim):
    """Tries to take the whole process along."""

    subjects = ("payment.completed",)

    def handle(self, leaf: Leaf, /) -> None:
        raise SystemExit("a nim has had enough")


class Misnamed(Nim):
    name = "no.dots.please"
    subjects = ("payment.completed",)
