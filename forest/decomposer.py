"""Decomposer: applies the humus to the soil.

Owns: the rule by which a compost changes an entry. The worker around it (durable consumer `decomposer`) may deliver a
compost twice, late, or out of order on two nodes; the rule makes all of that harmless:

- A state carries the slot of the compost that made it. A compost whose slot is not newer has been applied: skip.
- A create never overwrites. If the key was created by a compost of the same identity (alive or deleted since), this
  is the same event told again, however late: skip. That is what keeps it at one task per charge.
- A create that finds somebody else's entry is tried again a few times (an earlier delete may still be under way on
  another node), then refused, logged and counted: the entry stays.
- Update and delete carry complete state, so the newest slot wins whatever the order.

Every write names the revision that was read, so two nodes racing cannot both win.

Trade-off: an update written directly with `Soil.put` or `Soil.bury` carries no slot; a compost that comes after it
overwrites it, also when that compost is being replayed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable

from forest.errors import ForestError, RevisionConflict, Unavailable
from forest.humus import Compost, read_compost
from forest.metrics import ForestMetrics
from forest.soil import Entry, Soil
from forest.worker import Delivery

CONSUMER = "decomposer"
_PATIENCE = 3
_RACES = 10


class Contested(ForestError):
    """A create found an entry of another origin."""


class Decomposer:
    """Applies composts to `soil`; `handle` is the worker's handler."""

    def __init__(
        self,
        soil: Soil,
        metrics: ForestMetrics,
        log: logging.Logger,
        applied: Callable[[Compost], None] | None = None,
    ) -> None:
        """`applied` is told every compost that has changed the soil."""
        self._soil = soil
        self._told = applied
        self._metrics = metrics
        self._log = log
        self._lanes: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()

    async def handle(self, delivery: Delivery) -> None:
        """Apply one compost; changes of one entity are applied one after the other, in the order of arrival."""
        compost = read_compost(delivery)
        lane = self._lanes.setdefault(compost.entity, asyncio.Lock())
        self._waiting[compost.entity] += 1
        try:
            async with lane:
                await self._apply_patiently(compost, delivery.attempt)
        finally:
            self._waiting[compost.entity] -= 1
            if not self._waiting[compost.entity]:
                del self._waiting[compost.entity], self._lanes[compost.entity]

    async def _apply_patiently(self, compost: Compost, attempt: int) -> None:
        try:
            applied = await self.apply(compost)
        except Contested as error:
            if attempt < _PATIENCE:
                raise Unavailable(str(error)) from error
            self._metrics.count("forest_soil_conflicts_total")
            self._log.warning("decomposer: slot %d is refused: %s", compost.slot, error)
            return
        self._metrics.count("forest_soil_writes_total" if applied else "forest_soil_replays_total")
        if applied and self._told is not None:
            self._told(compost)

    async def apply(self, compost: Compost) -> bool:
        """Bring the soil to the state after `compost`; False if it is there already.

        Raises Contested, Unavailable.
        """
        for _ in range(_RACES):
            entry = await self._soil.look(compost.entity)
            if _applied(compost, entry):
                return False
            try:
                await self._write(compost, entry)
            except RevisionConflict:
                continue  # another node was faster: look again
            return True
        raise Unavailable(f"{compost.entity}: too many writers at once")

    async def _write(self, compost: Compost, entry: Entry | None) -> None:
        gone = compost.action == "delete"
        inherited = entry.origin if entry else ""
        origin = compost.id if compost.action == "create" else inherited
        await self._soil.write(
            compost.entity,
            b"" if gone else json.dumps(compost.data, allow_nan=False).encode(),
            entry.revision if entry else 0,
            deleted=gone,
            slot=compost.slot,
            origin=origin,
        )


def _applied(compost: Compost, entry: Entry | None) -> bool:
    if entry is None:
        return False
    if entry.slot >= compost.slot:
        return True
    if compost.action != "create":
        return False
    if entry.origin == compost.id:
        return True
    if entry.deleted:
        return False
    raise Contested(f"{compost.entity} exists, created by {entry.origin or 'somebody else'}, not by {compost.id}")
