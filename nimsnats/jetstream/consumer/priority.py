"""Priority groups (ADR-42): which of the open pull requests may be served.

Owns the checks on arrival, the choice between requests and the pinned client. One group is tracked, as in nats-server:
the first of the configuration. Lives on the leader only.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, cast

from nimsnats.identity import nuid
from nimsnats.jetstream.clock import ZERO_TIME, format_time
from nimsnats.jetstream.consumer import request as statuses
from nimsnats.jetstream.consumer.delivery import NEVER
from nimsnats.jetstream.consumer.request import PullRequest
from nimsnats.jetstream.consumer.waiting import ALIKE, Waiting

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer


class Groups:
    """The priority policy of one consumer at work."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._pin = ""
        self._pinned_at = 0
        self._pin_expires = NEVER
        self.configure()

    def configure(self) -> None:
        """Take over the consumer's configuration."""
        policy = self._consumer.config.priority_policy
        self.free = policy in ("none", "prioritized")
        """Whether the first request may always be served."""
        self.absent = policy == "none"
        self._policy = policy
        if policy != "pinned_client":
            self._pin = ""

    def refuse(self, request: PullRequest, now: int) -> bytes:
        """The status block for a request that breaks the rules; empty when it is fine."""
        policy = self._policy
        if request.plain:
            return b""
        if policy != "none":
            if not request.group:
                return statuses.bad_request("Priority Group missing")
            if request.group not in self._consumer.config.priority_groups:
                return statuses.bad_request("Invalid Priority Group")
        if policy != "overflow" and (request.min_pending > 0 or request.min_ack_pending > 0):
            return statuses.bad_request("Not a Overflow Priority consumer")
        if policy != "pinned_client" and request.pin_id:
            return statuses.bad_request("Not a Pinned Client Priority consumer")
        if not 0 <= request.priority <= 9:
            return statuses.bad_request("Priority must be between 0 and 9")
        if policy == "pinned_client" and request.pin_id:
            if request.pin_id != self._pin:
                return statuses.PIN_MISMATCH
            self._restart(now)
        return b""

    def lane(self, request: PullRequest) -> Hashable:
        """Requests of one lane are alike to the policy: the first of them goes before the others."""
        if self.absent:
            return ALIKE
        match self._policy:
            case "prioritized":
                return request.priority
            case "overflow":
                return request.min_pending, request.min_ack_pending
            case _:
                return request.pin_id, request.plain

    def choose(self, waiting: Waiting) -> PullRequest | None:
        """The request to serve next under `overflow` and `pinned_client`."""
        if self._policy == "overflow":
            lanes = [lane for lane in waiting.lanes() if self._overflows(*cast("tuple[int, int]", lane))]
        else:
            lanes = self._pinned_lanes(waiting)
        firsts = [first for lane in lanes if (first := waiting.first(lane)) is not None]
        return min(firsts, key=lambda request: request.turn, default=None)

    def _pinned_lanes(self, waiting: Waiting) -> list[Hashable]:
        """Whom the pin, or that there is none, lets in; who has a pin that is none any more is sent away."""
        for lane in waiting.lanes():
            pin, _ = cast("tuple[str, bool]", lane)
            if pin and pin != self._pin:
                for request in waiting.of(lane):
                    self._consumer.pull.drop(request, request.status(statuses.WRONG_PIN))
        if not self._pin:
            return [("", False), ("", True)]
        return [(self._pin, False)] if waiting.first((self._pin, False)) is not None else [("", True)]

    def _overflows(self, min_pending: int, min_ack_pending: int) -> bool:
        if not min_pending and not min_ack_pending:
            return True
        delivery = self._consumer.leading
        return (0 < min_pending <= delivery.remaining()) or (0 < min_ack_pending <= delivery.outstanding)

    def header(self, request: PullRequest, now: int) -> tuple[bytes, bytes] | None:
        """The header to add to a message for this request; pins the first one that is served."""
        if self._policy != "pinned_client":
            return None
        if not self._pin and not request.plain:
            self._pin = nuid(self._consumer.runtime.random)
            self._pinned_at = self._consumer.runtime.time_ns()
            request.pin_id = self._pin
            self._restart(now)
            self._consumer.advise("PINNED", "consumer_group_pinned", self._event(pinned_id=self._pin))
        return (b"Nats-Pin-Id", self._pin.encode())

    def _restart(self, now: int) -> None:
        self._pin_expires = now + self._consumer.config.priority_timeout
        self._consumer.wake(self._pin_expires)

    def tick(self, now: int) -> int:
        """Unpin a client that has not asked for too long; when to look again."""
        if not self._pin:
            return NEVER
        if self._pin_expires <= now:
            self.unpin("timeout")
            return NEVER
        return self._pin_expires

    def unpin(self, reason: str) -> None:
        """Forget the pinned client; the next one that is served becomes it."""
        if self._pin:
            self._pin = ""
            self._consumer.advise("UNPINNED", "consumer_group_unpinned", self._event(reason=reason))
            self._consumer.mark()

    def _event(self, **more: str) -> dict[str, Any]:
        return {
            "account": self._consumer.account.name,
            "stream": self._consumer.stream,
            "consumer": self._consumer.name,
            "group": self._consumer.config.priority_groups[0],
            **more,
        }

    def info(self) -> list[dict[str, Any]]:
        """The `priority_groups` of the consumer's info; empty without groups."""
        if self._policy == "none":
            return []
        state: dict[str, Any] = {"group": self._consumer.config.priority_groups[0]}
        if self._pin:
            state["pinned_client_id"] = self._pin
        state["pinned_ts"] = format_time(self._pinned_at) if self._pin else ZERO_TIME
        return [state]
