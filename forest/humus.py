"""Humus: the log of state changes, from which the soil is made.

Owns: stream HUMUS (`humus.>`, limits, file, 7 days, 1,000,000 messages) and the compost,
`{"entity", "action", "data", "nim", "ts"}` on `humus.<nim>.<action>`. A compost has an identity (`Nats-Msg-Id`):
within the stream's window it is stored once, after that the decomposer recognises it in the soil. Whoever has got a
compost's acknowledgement may forget its cause.

Trade-off: the stream is a log with limits, so it drops the oldest entry when a million lie in it or after a week,
applied or not. The decomposer would have to be behind by that much; `Forest.backlogs` tells how far it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from forest.errors import ForestError, Poison
from forest.jet import Jet, Stored
from forest.leaf import format_time, load_object
from forest.metrics import ForestMetrics
from forest.soil import is_key
from forest.subject import is_literal
from forest.worker import Delivery

STREAM = "HUMUS"
Action = Literal["create", "update", "delete"]
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True, slots=True)
class Compost:
    """One state change. `slot` is its place in the log (the stream's sequence), `id` its identity."""

    entity: str
    action: Action
    data: Any
    nim: str
    slot: int
    id: str


def read_compost(delivery: Delivery) -> Compost:
    """The compost in a delivery from the humus; raises Poison if it is none."""
    body = load_object(delivery.data, "compost")
    entity, action = body.get("entity"), body.get("action")
    if not isinstance(entity, str) or not is_key(entity):
        raise Poison("bad-field", f"compost: {entity!r} is not a key of the soil")
    if action not in ACTIONS:
        raise Poison("unknown-action", f"compost: {action!r}")
    if action != "delete" and body.get("data") is None:
        raise Poison("missing-field", f"compost: {action} needs data")
    return Compost(entity, action, body.get("data"), str(body.get("nim", "")), delivery.seq, delivery.id)


class Humus:
    """The stream HUMUS. `clock` gives seconds since the epoch."""

    def __init__(self, jet: Jet, clock: Callable[[], float], metrics: ForestMetrics, *, replicas: int = 1) -> None:
        self._jet = jet
        self._clock = clock
        self._metrics = metrics
        self._replicas = replicas

    async def open(self) -> None:
        """Make sure that the stream exists."""
        await self._jet.ensure_stream(
            StreamConfig(
                name=STREAM,
                description="State changes, applied to the soil by the decomposer",
                subjects=["humus.>"],
                retention=RetentionPolicy.LIMITS,
                storage=StorageType.FILE,
                discard=DiscardPolicy.OLD,
                max_age=7 * 24 * 3600,
                max_msgs=1_000_000,
                num_replicas=self._replicas,
            )
        )

    async def compost(self, nim: str, entity: str, action: Action, data: Any = None, *, msg_id: str = "") -> Stored:
        """Record a state change of `entity` (a key of the soil); returns when it is stored.

        `data` is the entity's complete new state (any JSON value; unused for delete). Raises ValueError for invalid
        arguments, Unavailable, Refused.
        """
        if not is_literal(nim) or "." in nim:
            raise ValueError(f"{nim!r} cannot name a nim")
        if not is_key(entity):
            raise ValueError(f"{entity!r} is not a key of the soil")
        if action not in ACTIONS:
            raise ValueError(f"{action!r} is no action")
        if action != "delete" and data is None:
            raise ValueError(f"{action} needs data")
        body = {
            "entity": entity,
            "action": action,
            "data": data,
            "nim": nim,
            "ts": format_time(datetime.fromtimestamp(self._clock(), UTC)),
        }
        stored = await self._jet.publish(
            f"humus.{nim}.{action}", json.dumps(body, allow_nan=False).encode(), msg_id=msg_id
        )
        name = "forest_composts_duplicate_total" if stored.duplicate else "forest_composts_total"
        self._metrics.count(name, nim=nim, action=action)
        return stored

    async def adjust_replicas(self, replicas: int) -> bool:
        """Give the stream `replicas` copies; False if nothing had to change."""
        if replicas < 1:
            raise ForestError(f"a stream cannot have {replicas} replicas")
        self._replicas = replicas
        return await self._jet.set_replicas(STREAM, replicas)
