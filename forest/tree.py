"""Tree: watches the river and turns what it understands into leaves.

Owns: the base class, the shape that a plain class needs to be a tree, and the handler that connects it to a worker:
an item is acknowledged only after the wind has taken over every leaf that came of it. Trees that watch the same
pattern share one consumer, and each of them sees every item; the river is a work-queue, so two *different*
patterns that overlap cannot both be watched.

Leaves get an identity from the tree, or one derived from the item and their place, so that an item handled twice
makes the same leaves twice and the wind keeps one of each.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol, cast, runtime_checkable

from forest.errors import Poison, Unavailable
from forest.ground import Ground
from forest.leaf import Leaf
from forest.metrics import ForestMetrics
from forest.river import RiverItem, river_item
from forest.wind import Wind
from forest.worker import Delivery, Handler

Parsed = Leaf | Iterable[Leaf] | None


@runtime_checkable
class TreeLike(Protocol):
    """What makes a class a tree: the river patterns it watches, and `parse`.

    `parse(item)` returns a leaf, several, or None for "not for me" (the item is then acknowledged); it may be a
    coroutine. It raises `Poison` for an item that can never be parsed.
    """

    patterns: Sequence[str]

    def parse(self, item: RiverItem, /) -> Parsed | Awaitable[Parsed]: ...


class Tree:
    """Base class for trees. Set `patterns`, write `parse`; declare unusual leaf subjects in `leaves`."""

    name: str = ""
    patterns: Sequence[str] = ()
    leaves: Sequence[str] = ()

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.name = self.name or type(self).__name__

    def parse(self, item: RiverItem, /) -> Parsed | Awaitable[Parsed]:
        """Turn an item into leaves."""
        raise NotImplementedError(f"{type(self).__name__}.parse")

    def leaf(self, subject: str, data: Any, *, leaf_id: str = "") -> Leaf:
        """A leaf from this tree, stamped now."""
        return Leaf(subject, data, self.name, datetime.fromtimestamp(self.ground.clock(), UTC), leaf_id)


@dataclass(frozen=True, slots=True)
class Planted:
    """A tree in the ground, under its name."""

    name: str
    tree: TreeLike


def grove(trees: Sequence[Planted], wind: Wind, metrics: ForestMetrics, consumer: str) -> Handler:
    """The worker's handler for the `trees` that share one consumer.

    All of them see the item and all leaves that could be made are dropped, before the first failure (if any) is
    raised to the worker: a broken tree costs a redelivery, never another tree's leaves.
    """

    async def handle(delivery: Delivery) -> None:
        item = river_item(delivery)
        failures: list[BaseException] = []
        dropped = 0
        for planted in trees:
            try:
                for leaf in await _leaves(planted, item):
                    await wind.drop(leaf)
                    dropped += 1
            except (Exception, SystemExit) as error:  # raised again below, when the other trees have had their turn
                failures.append(error)
        if failures:
            raise max(failures, key=_need_of_redelivery)
        if not dropped:
            metrics.count("forest_items_ignored_total", consumer=consumer)

    return handle


def _need_of_redelivery(error: BaseException) -> int:
    """An item must come again as long as one tree is only waiting for the server, whatever the others say."""
    if isinstance(error, Unavailable):
        return 2
    return 0 if isinstance(error, Poison) else 1


async def _leaves(planted: Planted, item: RiverItem) -> list[Leaf]:
    parsed = cast("Callable[[RiverItem], Any]", planted.tree.parse)(item)
    if inspect.isawaitable(parsed):
        parsed = await parsed
    if parsed is None:
        return []
    found = [parsed] if isinstance(parsed, Leaf) else list(parsed)
    return [
        leaf if leaf.id else replace(leaf, id=f"{item.id}:{planted.name}:{index}") for index, leaf in enumerate(found)
    ]
