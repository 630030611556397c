"""Wind: where leaves travel, both to whoever listens right now and to those that must not miss any.

Owns: stream WIND, which captures the subjects of leaves (`payment.>`, `followup.>`, `email.>`, and what plug-ins
declare), and the three ways to use it:

- `drop` publishes a leaf as one NATS message that core subscribers see at once, and returns when the stream has taken
  it over. The leaf's identity is the `Nats-Msg-Id`, so a second drop is not stored again.
- `catch` is a core subscription: at most once, sees what passes by, with or without a queue group.
- `consumer` names what a worker needs to catch durably: one consumer for all nodes, each leaf to one of them.

Trade-offs, on purpose:

- Retention is *interest*: a leaf stays until every durable consumer has settled it and is not stored at all when there
  is none. So consumers are made before the first tree starts to drop, and a nim that is added later begins with
  what comes after it, instead of working through (and mailing about) a week of history.
- The stream refuses new leaves when it is full (a million, at most 7 days old): then the tree does not acknowledge,
  the river holds the item, and the pressure reaches the sender. Nothing that was accepted is dropped for room.
- Deduplication by identity hides a repeated drop from durable consumers, not from core subscribers: the server hands a
  message to them before the stream sees it. Whoever must not act twice looks at `Nats-Msg-Id`, or catches durably.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from forest.ending import end
from forest.errors import ForestError, LeafNotCaptured, Poison
from forest.jet import MSG_ID, Jet, Stored
from forest.leaf import Leaf
from forest.metrics import ForestMetrics
from forest.subject import family, is_pattern, matches, overlap

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

STREAM = "WIND"
DEFAULT_SUBJECTS: tuple[str, ...] = ("payment.>", "followup.>", "email.>")
_POLL = 60.0

Catcher = Callable[[Leaf], Awaitable[None] | None]


class Catch:
    """A core subscription to leaves; `stop` ends it."""

    def __init__(self, jet: Jet, subscription: Subscription, task: asyncio.Task[None]) -> None:
        self._jet = jet
        self._subscription = subscription
        self._task = task

    async def stop(self) -> None:
        """Unsubscribe and wait for the handler that may be running."""
        await self._jet.unsubscribe(self._subscription)
        await end([self._task])


class Wind:
    """The stream WIND over the subjects that `open` captures."""

    def __init__(
        self,
        jet: Jet,
        metrics: ForestMetrics,
        log: logging.Logger,
        *,
        subjects: Iterable[str] = DEFAULT_SUBJECTS,
        replicas: int = 1,
    ) -> None:
        self._jet = jet
        self._metrics = metrics
        self._log = log
        self._wanted = list(subjects)
        self._captured: list[str] = []
        self._replicas = replicas

    async def open(self, subjects: Iterable[str] = ()) -> None:
        """Make sure that the stream exists and captures the configured families, and those of `subjects`.

        Raises ValueError for a subject that cannot be captured, Unavailable, Refused.
        """
        wanted = _without_covered([*self._wanted, *(family(subject) for subject in subjects)])
        have = await self._jet.ensure_stream(
            StreamConfig(
                name=STREAM,
                description="Leaves, until every nim has settled them",
                subjects=wanted,
                retention=RetentionPolicy.INTEREST,
                storage=StorageType.FILE,
                discard=DiscardPolicy.NEW,
                max_age=7 * 24 * 3600,
                max_msgs=1_000_000,
                num_replicas=self._replicas,
            )
        )
        captured = list(have.subjects or [])
        missing = [subject for subject in wanted if not any(_covers(other, subject) for other in captured)]
        if missing:
            have.subjects = _without_covered([*captured, *missing])
            await self._jet.update_stream(have)
            captured = have.subjects
        self._wanted, self._captured = wanted, captured

    def captures(self, subject: str) -> bool:
        """True if a leaf with this subject is taken over durably."""
        return any(matches(pattern, subject) for pattern in self._captured)

    async def drop(self, leaf: Leaf) -> Stored:
        """Publish `leaf`; returns when the stream has it. Raises LeafNotCaptured, Unavailable, Refused."""
        captured = next((pattern for pattern in self._captured if matches(pattern, leaf.subject)), None)
        if captured is None:
            raise LeafNotCaptured(leaf.subject)
        stored = await self._jet.publish(leaf.subject, leaf.to_json(), msg_id=leaf.id)
        name = "forest_leaves_duplicate_total" if stored.duplicate else "forest_leaves_dropped_total"
        self._metrics.count(name, captured=captured)  # not the subject: leaves may name orders and customers in theirs
        return stored

    async def catch(self, pattern: str, catcher: Catcher, *, queue: str = "") -> Catch:
        """Call `catcher` with each leaf that passes by on `pattern`; with `queue`, one member of that group gets it.

        At most once: nothing is repeated for a catcher that was away or failed. Other messages are ignored.
        """
        if not is_pattern(pattern):
            raise ValueError(f"{pattern!r} is not a subject pattern")
        subscription = await self._jet.subscribe(pattern, queue)
        task = asyncio.create_task(self._catch(subscription, catcher, pattern), name=f"forest:catch:{pattern}")
        return Catch(self._jet, subscription, task)

    async def _catch(self, subscription: Subscription, catcher: Catcher, pattern: str) -> None:
        while True:
            try:
                msg = await self._jet.receive(subscription, _POLL)
            except ForestError:
                return  # the connection is closed for good
            if msg is None:
                continue
            try:
                leaf = Leaf.from_json(msg.data, (msg.headers or {}).get(MSG_ID, ""))
            except Poison as poison:
                self._log.debug("catch %s: not a leaf: %s", pattern, poison)
                continue
            try:
                result = catcher(leaf)
                if inspect.isawaitable(result):
                    await result
            except Exception:  # the catcher's own fault must not end the subscription
                self._log.exception("catch %s: the catcher failed on %s", pattern, leaf.subject)

    async def adjust_replicas(self, replicas: int) -> bool:
        """Give the stream `replicas` copies; False if nothing had to change."""
        if replicas < 1:
            raise ForestError(f"a stream cannot have {replicas} replicas")
        self._replicas = replicas
        return await self._jet.set_replicas(STREAM, replicas)


def _covers(pattern: str, other: str) -> bool:
    """True if everything that `other` selects is selected by `pattern`, for literals and families."""
    return pattern == other or matches(pattern, other)


def _without_covered(subjects: Sequence[str]) -> list[str]:
    unique = list(dict.fromkeys(subjects))
    kept = [s for s in unique if not any(other != s and _covers(other, s) for other in unique)]
    for index, subject in enumerate(kept):
        for other in kept[:index]:
            if overlap(other, subject):
                raise ValueError(f"wind subjects {other!r} and {subject!r} overlap")
    return kept
