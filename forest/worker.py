"""Worker: one durable consumer of one stream, shared by all nodes of a cluster.

Owns: the pull loop and the verdict on every message. All nodes pull from the same durable consumer, so that each
message goes to one of them (a queue group with memory); a node that dies leaves its messages unacknowledged and the
server hands them to another one after `ack_wait`. The verdict follows from what the handler did:

    returned                     -> ack (the handler has made the consequences durable before it returned)
    raised Poison                -> term: logged, counted, never delivered again
    raised Unavailable, or took  -> nak with back-off, as often as it takes: nothing is lost to an outage
      longer than handler_timeout
    raised anything else         -> nak with back-off, `max_attempts` times on this node, then term

Acks are not confirmed: a lost ack is a redelivery, and every handler of the forest is idempotent. It never touches
what is inside a message.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forest.ending import end
from forest.errors import ForestError, Poison, Refused, Unavailable
from forest.jet import MSG_ID, Jet
from forest.metrics import ForestMetrics, LogGate

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

_REMEMBERED_FAILURES = 4096
_GLANCE = 0.5
"""Seconds between two looks at whether the connection is still the one that the request went out on."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as a handler sees it.

    `id` is its identity (the publisher's, or derived from stream and sequence), `attempt` counts from 1 over all
    nodes, `stored_at` is when the stream took it over (seconds since the epoch).
    """

    stream: str
    seq: int
    subject: str
    data: bytes
    id: str
    attempt: int
    stored_at: float


Handler = Callable[[Delivery], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How a worker works. Durations in seconds.

    `ack_wait`: the server redelivers after that long without a verdict; `handler_timeout` must be shorter.
    `batch` messages at most are in work at once. Retries wait `backoff * 2^n`, at most `backoff_cap`.
    """

    ack_wait: float = 10.0
    handler_timeout: float = 8.0
    batch: int = 64
    max_ack_pending: int = 1000
    expires: float = 30.0
    heartbeat: float = 5.0
    backoff: float = 0.2
    backoff_cap: float = 30.0
    max_attempts: int = 6
    stop_grace: float = 1.0


class Worker:
    """Pulls from `durable` on `stream` and handles each message. `open` before `start`, `stop` at the end."""

    def __init__(
        self,
        jet: Jet,
        stream: str,
        durable: str,
        filters: Sequence[str],
        handler: Handler,
        *,
        limits: WorkerLimits,
        metrics: ForestMetrics,
        gate: LogGate,
        rng: random.Random,
        log: logging.Logger,
    ) -> None:
        self.stream = stream
        self.durable = durable
        self.filters = tuple(filters)
        self._jet = jet
        self._handler = handler
        self._limits = limits
        self._metrics = metrics
        self._gate = gate
        self._rng = rng
        self._log = log
        self._loop_task: asyncio.Task[None] | None = None
        self._stopping = False
        self._running: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(limits.batch)
        self._failures: OrderedDict[int, int] = OrderedDict()

    async def open(self) -> None:
        """Make sure the durable consumer exists. Raises Unavailable, Refused."""
        await self._jet.ensure_consumer(
            self.stream,
            self.durable,
            self.filters,
            ack_wait=self._limits.ack_wait,
            max_ack_pending=self._limits.max_ack_pending,
        )

    def start(self) -> None:
        """Begin to pull."""
        assert self._loop_task is None
        self._stopping = False
        self._loop_task = asyncio.create_task(self._run(), name=f"forest:{self.durable}")

    async def stop(self) -> None:
        """Stop pulling, let running handlers finish for `stop_grace` seconds, then cancel them."""
        self._stopping = True  # nats-py turns a cancellation on a closed connection into an error of its own
        if self._loop_task is not None:
            await end([self._loop_task])
            self._loop_task = None
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=self._limits.stop_grace)
            await end(late)

    async def _run(self) -> None:
        pause = self._limits.backoff
        while not self._stopping:
            try:
                await self._pull_until_trouble()
                pause = self._limits.backoff
            except ForestError as error:
                if self._stopping:
                    return
                self._say(logging.WARNING, "pull", "%s: %s; trying again", self.durable, error)
                pause = min(pause * 2, self._limits.backoff_cap)
            await asyncio.sleep(pause * (0.5 + self._rng.random()))
            try:
                await self.open()  # the consumer may have been deleted, or the server may be a new one
            except ForestError as error:
                self._say(logging.WARNING, "pull", "%s: %s; trying again", self.durable, error)

    async def _pull_until_trouble(self) -> None:
        """Pull batch after batch; returns when the server says that something about the consumer has changed."""
        inbox = self._jet.client.new_inbox()
        subscription = await self._jet.subscribe(inbox)
        try:
            while True:
                limits = self._limits
                await self._jet.pull(
                    self.stream,
                    self.durable,
                    inbox,
                    batch=limits.batch,
                    expires=limits.expires,
                    heartbeat=limits.heartbeat,
                )
                if not await self._drain_request(subscription):
                    return
        finally:
            await self._jet.unsubscribe(subscription)

    async def _drain_request(self, subscription: Subscription) -> bool:
        """Handle what one pull request brings. True: it ended normally, ask again at once."""
        patience = 2 * self._limits.heartbeat + _GLANCE
        wanted, silence, connections = self._limits.batch, 0.0, self._jet.reconnects
        while wanted:
            msg = await self._jet.receive(subscription, _GLANCE)
            if msg is None:
                silence += _GLANCE
                if self._jet.reconnects != connections or silence > patience:
                    return True  # the request was lost with its connection, or its heartbeats are missing
                continue
            silence = 0.0
            status = (msg.headers or {}).get("Status", "") if not msg.data else ""
            if status == "100":
                continue
            if status:
                return status in ("404", "408")
            wanted -= 1
            await self._room.acquire()
            task = asyncio.create_task(self._work(msg), name=f"forest:{self.durable}:message")
            self._running.add(task)
            task.add_done_callback(self._finished)
        return True

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._room.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("%s: worker failed", self.durable, exc_info=error)

    async def _work(self, msg: Msg) -> None:
        meta = msg.metadata
        seq = meta.sequence.stream
        identity = (msg.headers or {}).get(MSG_ID, "")
        delivery = Delivery(
            stream=self.stream,
            seq=seq,
            subject=msg.subject,
            data=msg.data,
            id=identity or f"{self.stream}:{seq}:{meta.timestamp.timestamp():.6f}",
            attempt=meta.num_delivered,
            stored_at=meta.timestamp.timestamp(),
        )
        self._count("forest_items_received_total")
        try:
            async with asyncio.timeout(self._limits.handler_timeout):
                await self._handler(delivery)
        except Poison as poison:
            self._metrics.count("forest_items_poison_total", consumer=self.durable, reason=poison.reason)
            self._say(
                logging.WARNING,
                f"poison:{poison.reason}",
                "%s: terminated poison message %d on %s: %s",
                self.durable,
                seq,
                msg.subject,
                poison,
            )
            await self._jet.settle(msg, "term")
        except (Unavailable, TimeoutError) as error:
            reason = str(error) or "its handler took too long"
            self._say(logging.WARNING, "unavailable", "%s: message %d waits: %s", self.durable, seq, reason)
            await self._retry(msg, delivery.attempt)
        except (Exception, SystemExit) as error:  # a handler's bug, or a definite refusal: bounded, isolated
            await self._failed(msg, delivery, error)
        else:
            self._failures.pop(seq, None)
            self._count("forest_items_handled_total")
            await self._jet.settle(msg, "ack")

    async def _failed(self, msg: Msg, delivery: Delivery, error: BaseException) -> None:
        failures = self._failures.pop(delivery.seq, 0) + 1
        last = failures >= self._limits.max_attempts
        fate = "terminated" if last else "will be tried again"
        self._say(
            logging.ERROR,
            f"failed:{type(error).__name__}",
            "%s: message %d on %s failed (%d of %d), %s: %s: %s",
            self.durable,
            delivery.seq,
            delivery.subject,
            failures,
            self._limits.max_attempts,
            fate,
            type(error).__name__,
            error,
            trace=None if isinstance(error, Refused) else error,
            always=last,
        )
        if last:
            self._count("forest_items_abandoned_total")
            await self._jet.settle(msg, "term")
            return
        self._failures[delivery.seq] = failures
        while len(self._failures) > _REMEMBERED_FAILURES:
            self._failures.popitem(last=False)
        await self._retry(msg, failures)

    async def _retry(self, msg: Msg, attempt: int) -> None:
        self._count("forest_items_retried_total")
        limits = self._limits
        delay = min(limits.backoff * 2 ** min(attempt - 1, 16), limits.backoff_cap)
        await self._jet.settle(msg, "nak", delay * (0.75 + self._rng.random() / 2))

    def _count(self, name: str) -> None:
        self._metrics.count(name, consumer=self.durable)

    def _say(
        self,
        level: int,
        key: str,
        text: str,
        *args: object,
        trace: BaseException | None = None,
        always: bool = False,
    ) -> None:
        suppressed = self._gate.admit(f"{self.durable}:{key}")
        if suppressed is None and not always:
            return
        self._log.log(level, text, *args, exc_info=trace)
        if suppressed:
            self._log.log(level, "%s: %d similar lines were kept back", self.durable, suppressed)
