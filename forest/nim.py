"""Nim: catches leaves and does business with them.

Owns: the base class, the shape that a plain class needs to be a nim, and the handler that connects it to a worker. A
nim's durable consumer is its queue group: all nodes share it, each leaf goes to one of them, and it is settled only
when `handle` has returned, that is when its composts and leaves have been taken over durably. A leaf may come
twice, so what a nim makes of it needs an identity derived from the leaf: `drop` and `compost` do that by default.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol, cast, runtime_checkable

from forest.ground import Ground
from forest.humus import Action
from forest.jet import Stored
from forest.leaf import Leaf
from forest.soil import Entry
from forest.worker import Delivery, Handler


@runtime_checkable
class NimLike(Protocol):
    """What makes a class a nim: the leaf subjects it wants (patterns allowed), and `handle(leaf)`."""

    subjects: Sequence[str]

    def handle(self, leaf: Leaf, /) -> Awaitable[None] | None: ...


@dataclass(slots=True)
class _Occasion:
    """The leaf being handled, and how many things without an identity of their own were derived from it."""

    leaf: Leaf
    derived: int = 0


_occasion: ContextVar[_Occasion | None] = ContextVar("forest_occasion", default=None)


class Nim:
    """Base class for nims. Set `subjects`, write `handle`; declare unusual leaf subjects in `leaves`."""

    name: str = ""
    subjects: Sequence[str] = ()
    leaves: Sequence[str] = ()

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.name = self.name or type(self).__name__

    def handle(self, leaf: Leaf, /) -> Awaitable[None] | None:
        """Do business with one leaf; returns when all consequences are durable."""
        raise NotImplementedError(f"{type(self).__name__}.handle")

    async def drop(self, subject: str, data: Any, *, leaf_id: str = "") -> Stored:
        """Drop a leaf on the wind; returns when it has been taken over."""
        moment = datetime.fromtimestamp(self.ground.clock(), UTC)
        return await self.ground.wind.drop(Leaf(subject, data, self.name, moment, leaf_id or self._identity(subject)))

    async def compost(self, entity: str, action: Action, data: Any = None, *, msg_id: str = "") -> Stored:
        """Record a state change of `entity`; returns when the humus has it."""
        identity = msg_id or self._identity(f"{action}:{entity}")
        return await self.ground.humus.compost(self.name, entity, action, data, msg_id=identity)

    async def dig(self, key: str) -> Entry:
        """The current state of `key`. Raises KeyMissing."""
        return await self.ground.soil.dig(key)

    def _identity(self, what: str) -> str:
        occasion = _occasion.get()
        if occasion is None or not occasion.leaf.id:
            return ""
        occasion.derived += 1
        return f"{occasion.leaf.id}:{self.name}:{occasion.derived}:{what}"


def nim_handler(nim: NimLike) -> Handler:
    """The worker's handler for one nim."""

    async def handle(delivery: Delivery) -> None:
        leaf = Leaf.from_json(delivery.data, delivery.id)
        if leaf.subject != delivery.subject:
            leaf = replace(leaf, subject=delivery.subject)
        token = _occasion.set(_Occasion(leaf))
        try:
            result = cast("Callable[[Leaf], Any]", nim.handle)(leaf)
            if inspect.isawaitable(result):
                await result
        finally:
            _occasion.reset(token)

    return handle
