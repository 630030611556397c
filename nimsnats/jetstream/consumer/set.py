"""All consumers of one stream: the consumer half of the stream's replicated state machine.

Owns the applying of consumer entries, the proposing of operations that clients ask for, and what the stream tells its
consumers. What a single consumer does is in `consumer.py`, how its deeds reach the log in `journal.py`; the stream
itself is seen through `MessageSource`.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import JsonObject
from nimsnats.jetstream.consumer.alarm import Alarm
from nimsnats.jetstream.consumer.audience import Audience
from nimsnats.jetstream.consumer.config import ConsumerConfig
from nimsnats.jetstream.consumer.consumer import Consumer
from nimsnats.jetstream.consumer.delivery import Delivery
from nimsnats.jetstream.consumer.entries import (
    Acks,
    Deliveries,
    Operation,
    name_in,
    read_acks,
    read_deliveries,
    read_kept,
    read_operation,
    read_restored,
)
from nimsnats.jetstream.consumer.journal import Journal
from nimsnats.jetstream.consumer.listening import Listening
from nimsnats.jetstream.consumer.request import DELETED, LEADERSHIP
from nimsnats.jetstream.consumer.retention import Retention
from nimsnats.jetstream.consumer.rules import (
    EPHEMERAL_THRESHOLD,
    ServerLimits,
    StreamTraits,
    check_update,
    check_workqueue,
    paused,
    with_level,
)
from nimsnats.jetstream.consumer.start import Beginning, place
from nimsnats.jetstream.consumer.state import ConsumerState, Delivered
from nimsnats.jetstream.consumer.tallies import Tallies
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.kinds import (
    CONSUMER_ACKS,
    CONSUMER_CREATE,
    CONSUMER_DELETE,
    CONSUMER_DELIVERED,
    CONSUMER_PAUSE,
    CONSUMER_RESET,
)
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.source import MessageSource
from nimsnats.raft.machine import BadEntry, Entry, EntryRefused, NotLeader
from nimsnats.runtime import Runtime
from nimsnats.storage import StorageError

if TYPE_CHECKING:
    from nimsnats.broker.account import Account

Changing = Generator[None, None, Consumer]
"""The steps of an operation; its result is the consumer."""
_READ_AGAIN: Final = 1_000_000_000
"""Nanoseconds until a message that could not be read is tried again: it is not passed over."""


class ConsumerSet:
    """See the module. All methods are called on the loop.

    `traits` tells the stream's present configuration; `listening` is shared by all streams of the account.
    """

    def __init__(
        self,
        source: MessageSource,
        account: Account,
        runtime: Runtime,
        traits: Callable[[], StreamTraits],
        limits: ServerLimits,
        log: logging.Logger,
        domain: str = "",
        listening: Listening | None = None,
    ) -> None:
        self.source = source
        self.account = account
        self.runtime = runtime
        self.traits = traits
        self.limits = limits
        self.log = log
        self.domain = domain
        self.leading = False
        self.cluster: Callable[[], JsonObject | None] = lambda: None
        """What infos say about leader and replicas; None where there is but one node."""
        self._consumers: dict[str, Consumer] = {}
        self._names: list[str] = []
        self._by_id: dict[int, Consumer] = {}
        self.audience = Audience()
        self._retention = Retention(source, self.audience)
        self._exposed: dict[Consumer, None] = {}
        """Consumers that may have something to do with messages that are removed."""
        self._noting = False
        """Whether subjects of removed messages are noted, because consumers with filters count what is left."""
        self.journal = Journal(self, log)
        self.tallies = Tallies(runtime)
        self._loads: dict[Delivery, asyncio.Task[None]] = {}
        """Messages that are being read, by who waits for them."""
        self._by_token: dict[bytes, Consumer] = {}
        self.alarm = Alarm(runtime, self.now, self._by_id.get)
        self._listening = listening or Listening(account)
        self._anchor = runtime.time_ns() - int(runtime.monotonic() * 1e9)

    # --- look-up

    def __len__(self) -> int:
        return len(self._consumers)

    def names(self) -> list[str]:
        """Names of all consumers, sorted: not to be changed."""
        return self._names

    def get(self, name: str) -> Consumer | None:
        """A consumer by name."""
        return self._consumers.get(name)

    def interested(self, subject: bytes) -> bool:
        """Whether any consumer's filter matches (deterministic, for interest retention)."""
        return self.audience.wanted(subject)

    def now(self) -> int:
        """The consumers' clock: nanoseconds since the epoch that advance steadily with the loop's clock."""
        return self._anchor + int(self.runtime.monotonic() * 1e9)

    # --- proposing

    def propose_create(
        self, config: ConsumerConfig, *, name: str, generated: bool, action: str
    ) -> asyncio.Future[JsonObject]:
        """Create or update a consumer; the result is its info before anything was delivered, or ApiError."""
        body = {
            "name": name,
            "config": config.to_json(),
            "created": self.runtime.time_ns(),
            "generated": generated,
            "action": action,
        }
        return self._propose(CONSUMER_CREATE, body)

    def propose_delete(self, name: str) -> asyncio.Future[JsonObject]:
        """Delete a consumer; the result is its last info, or ApiError 10014."""
        return self._propose(CONSUMER_DELETE, {"name": name})

    def propose_pause(self, name: str, until: int) -> asyncio.Future[JsonObject]:
        """Pause until a time (nanoseconds since the epoch; 0 resumes)."""
        return self._propose(CONSUMER_PAUSE, {"name": name, "until": until})

    def propose_reset(self, name: str, start: int) -> asyncio.Future[JsonObject]:
        """Begin again at a stream sequence."""
        self.journal.write_all(self._consumers.values())
        return self._propose(CONSUMER_RESET, {"name": name, "start": start})

    def propose_removal(self, consumer: Consumer) -> None:
        """Delete a consumer that nobody uses any more."""
        self.log.debug("consumer %s > %s is removed: inactive", consumer.stream, consumer.name)
        future = self._propose(CONSUMER_DELETE, {"name": consumer.name, "id": consumer.id})
        future.add_done_callback(lambda done: done.exception())

    def write_down(self) -> None:
        """Propose what has been delivered and acknowledged so far: before leadership is handed over."""
        if self.leading:
            self.journal.write_all(self._consumers.values())

    def _propose(self, kind: int, body: dict[str, Any]) -> asyncio.Future[JsonObject]:
        operation = Operation(self.runtime.loop.create_future())
        try:
            self.source.propose(kind, pack(body), operation)
        except NotLeader:
            operation.fail(errors.CLUSTER_NOT_AVAIL())
        return operation.future

    # --- applying

    def apply(self, entry: Entry) -> Generator[None, None, None] | None:
        """Apply one consumer entry, all at once or in the steps that are returned. Either raises BadEntry, before
        anything is changed."""
        context = entry.context
        if entry.kind == CONSUMER_DELIVERED:
            local = isinstance(context, Deliveries)
            self._apply_delivered(context.items if local else read_deliveries(entry.data, self.source))
            if local:
                self.runtime.fence.run(self._delivered, context)
        elif entry.kind == CONSUMER_ACKS:
            self._apply_acks(context.items if isinstance(context, Acks) else read_acks(entry.data, self._pending))
            if isinstance(context, Acks):
                self.runtime.fence.run(self.journal.applied, context)
        else:
            return self._operate(entry)
        return None

    def _operate(self, entry: Entry) -> Generator[None, None, None]:
        operation = entry.context if isinstance(entry.context, Operation) else None
        try:
            consumer = yield from self._apply_operation(entry)
        except ApiError as error:
            if operation is not None:
                operation.fail(error)
        else:
            if operation is not None:
                self.runtime.fence.run(self._succeeded, operation, consumer)

    def _pending(self, id: int) -> Collection[int]:
        """What waits for an acknowledgement of the consumer with this id."""
        consumer = self._by_id.get(id)
        return consumer.state.pending if consumer is not None else ()

    def _delivered(self, deliveries: Deliveries) -> None:
        """Deliveries of this node are written down."""
        if deliveries.repeated:
            self._acknowledge_again(deliveries)
        for consumer, outbox, parcels in deliveries.held:
            outbox.release(parcels)
            if consumer.outbox is outbox:
                consumer.mark()

    def _succeeded(self, operation: Operation, consumer: Consumer) -> None:
        """An operation is done: its answer tells how many messages the consumer has yet to deliver."""
        if consumer.count():
            self._answer(operation, consumer)
        else:
            self.tallies.ask(consumer, partial(self._counted, operation, consumer))

    def _counted(self, operation: Operation, consumer: Consumer) -> None:
        if self._consumers.get(consumer.name) is consumer:
            consumer.answered()
            self._answer(operation, consumer)
        else:  # somebody has deleted it meanwhile
            operation.fail(errors.CONSUMER_NOT_FOUND())

    def _answer(self, operation: Operation, consumer: Consumer) -> None:
        try:
            operation.succeed(consumer.info())
        except Exception:
            operation.fail(errors.CONSUMER_CREATE(err="it is done, but cannot be shown"))
            raise

    def _apply_operation(self, entry: Entry) -> Changing:
        kind, body = entry.kind, read_operation(entry)
        if kind == CONSUMER_CREATE:
            config, existing = ConsumerConfig.of_entry(body["config"]), self._consumers.get(body["name"])
            if existing is not None:
                return (yield from self._update(existing, config, body["action"]))
            return (yield from self._create(entry.index, config, body))
        consumer = self._consumers.get(body["name"])
        if consumer is None or body.get("id", consumer.id) != consumer.id:
            raise errors.CONSUMER_NOT_FOUND()
        if kind == CONSUMER_DELETE:
            yield from self._delete(consumer)
        elif kind == CONSUMER_PAUSE:
            consumer.state.paused_until = body["until"]
            consumer.configure(paused(consumer.config, body["until"]))
            if self.leading:
                self.runtime.fence.run(consumer.pause_changed, self.now())
        else:
            assert kind == CONSUMER_RESET, kind
            self._reset(consumer, entry.index, body["start"])
        return consumer

    def _create(self, index: int, config: ConsumerConfig, body: dict[str, Any]) -> Changing:
        if body["action"] == "update":
            raise errors.CONSUMER_DOES_NOT_EXIST()
        traits = self.traits()
        begin = Beginning.of(config)
        if 0 < traits.max_consumers <= len(self._consumers):
            raise errors.MAXIMUM_CONSUMERS_LIMIT()
        if traits.retention == "workqueue":
            yield from check_workqueue(config, [other.config for other in self._consumers.values()], updating=False)
        if not config.durable and not config.inactive_threshold:
            config.inactive_threshold = EPHEMERAL_THRESHOLD
        consumer = Consumer(self, index, body["name"], config, body["created"], body["generated"])
        consumer.state = yield from place(config, consumer.filters, self.source, begin)
        consumer.state.paused_until = begin.paused_until
        self._add(consumer)
        if self.leading:
            self.runtime.fence.run(self._created, consumer)
        return consumer

    def _created(self, consumer: Consumer) -> None:
        self._lead(consumer)
        consumer.advise("CREATED", "consumer_action", {**consumer.names(), "action": "create"})

    def _update(self, consumer: Consumer, config: ConsumerConfig, action: str) -> Changing:
        config = with_level(replace(config, pause_until=consumer.config.pause_until))
        if action == "create":
            if config != consumer.config:
                raise errors.CONSUMER_ALREADY_EXISTS()
            return consumer
        if self.traits().retention == "workqueue":
            others = [other.config for other in self._consumers.values() if other is not consumer]
            yield from check_workqueue(config, others, updating=True)
        check_update(consumer.config, config, bound=False)
        before = consumer.filters
        consumer.configure(config)
        if before != consumer.filters:
            self.audience.add(consumer, consumer.filters)
            yield from self._retention.unneeded(before, consumer.state)
        if self.leading:
            self.runtime.fence.run(consumer.reconfigured, self.now())
            self.runtime.fence.run(self._listening.watch, consumer)
        return consumer

    def _delete(self, consumer: Consumer) -> Generator[None, None, None]:
        del self._consumers[consumer.name]
        del self._names[bisect_left(self._names, consumer.name)]
        self._by_id.pop(consumer.id, None)
        del self._by_token[consumer.name.encode()]
        self.audience.remove(consumer)
        self._exposed.pop(consumer, None)
        if not self._exposed:
            self._note_no_more()
        self.runtime.fence.run(self._listening.forget, consumer)
        self.runtime.fence.run(self.journal.forget, consumer)
        if self.leading:
            self.runtime.fence.run(self._deleted, consumer)
        yield from self._retention.unneeded(consumer.filters, consumer.state)

    def _deleted(self, consumer: Consumer) -> None:
        consumer.follow(DELETED)
        consumer.advise("DELETED", "consumer_action", {**consumer.names(), "action": "delete"})

    def _reset(self, consumer: Consumer, index: int, start: int) -> None:
        self._by_id.pop(consumer.id, None)
        consumer.id = index
        consumer.state.reset(start)
        self._by_id[index] = consumer
        if self.leading:
            self.runtime.fence.run(consumer.restart, self.now())

    def _apply_delivered(self, items: Sequence[list[Any]]) -> None:
        for id, time, last_number, last_seq, fresh, again, exhausted in items:
            consumer = self._by_id.get(id)
            if consumer is None:
                continue
            state, delivery = consumer.state, consumer.delivery
            if delivery is not None:
                delivery.landed(fresh)
            if consumer.config.ack_policy == "none":
                state.advance(last_number, last_seq, time)
                state.floor_to_delivered()
                self._retention.settle(consumer, list(fresh))
                continue
            state.deliver(last_number, last_seq, fresh, time)
            self._exposed[consumer] = None
            for seq, deliveries in again:
                state.redeliver(seq, deliveries, time)
            if exhausted:
                state.exhaust(exhausted, consumer.config.max_deliver)

    def _acknowledge_again(self, deliveries: Deliveries) -> None:
        """Acknowledgements that were applied before these deliveries had no effect; they are proposed once more."""
        for id, _, _, _, fresh, _, _ in deliveries.items:
            consumer = self._by_id.get(id)
            if consumer is not None and consumer.delivery is not None:
                consumer.acked += [seq for seq in fresh if seq in consumer.delivery.acking]
                self.journal.mark(consumer)

    def _apply_acks(self, items: Sequence[list[Any]]) -> None:
        for id, time, acked, to, touched in items:
            consumer = self._by_id.get(id)
            if consumer is None:
                continue
            state = consumer.state
            settled = state.ack(acked, time) if acked else []
            if to is not None:
                settled += state.ack_all(to[0], to[1], time)
            for index in range(0, len(touched), 2):
                state.touch(touched[index], touched[index + 1])
            if consumer.delivery is not None:
                consumer.delivery.acking.difference_update(settled)
            self._retention.settle(consumer, settled)

    def refuse(self, context: object, error: Exception) -> None:
        """A proposal was dropped: operations fail, deliveries and acknowledgements are proposed again while leading.
        One that was refused would be so again: then the consumers begin anew with what is written down."""
        lost = isinstance(error, NotLeader)
        if isinstance(context, Operation):
            if isinstance(error, EntryRefused):
                context.fail(errors.CONSUMER_CREATE(err=str(error)))
            else:
                context.fail(errors.CLUSTER_NOT_AVAIL() if lost else errors.INSUFFICIENT_RESOURCES())
        elif isinstance(context, Deliveries | Acks) and isinstance(error, EntryRefused):
            self.journal.given_up(context, [item[0] for item in context.items])
        elif isinstance(context, Deliveries | Acks) and self.leading and not lost:
            self.journal.refused(context, error)

    def begin_anew(self, id: int) -> None:
        """Something that a consumer did cannot be written down: while this node leads, it goes on from what is."""
        consumer = self._by_id.get(id)
        if consumer is not None and consumer.delivery is not None:
            consumer.restart(self.now())

    # --- what the stream tells

    def stored(self, first: int, last: int) -> None:
        """Messages were added: consumers that wait for new ones, and for these subjects, have work."""
        del last
        self.journal.feed()
        if self.audience.waiting:
            for seq, subject in self.source.arrivals(first):
                for consumer in self.audience.arrived(subject):
                    if consumer.delivery is not None:
                        consumer.delivery.arrived(seq)
                        if consumer.waits:
                            self.journal.mark(consumer)

    def settled_down(self) -> None:
        """A change of the stream that took several turns is done: deliveries go on."""
        self.journal.go_on()

    def expose(self, consumer: Consumer) -> None:
        """A consumer has to hear from now on which messages are removed."""
        self._exposed[consumer] = None
        if consumer.delivery is not None:
            consumer.delivery.backlog.hears = True
            if consumer.filters and not self._noting:
                self._noting = True
                self.source.take_struck(True)

    def counted(self, consumer: Consumer) -> asyncio.Future[None] | None:
        """What to wait for until it is counted how many messages the consumer has yet to deliver; None when it is."""
        if consumer.count():
            return None
        done: asyncio.Future[None] = self.runtime.loop.create_future()
        self.tallies.ask(consumer, lambda: None if done.done() else done.set_result(None))
        return done

    def removed(self, seqs: Sequence[int]) -> None:
        """Single messages are gone."""
        struck = self.source.take_struck(True) if self._noting else {}
        counting = False
        for consumer in list(self._exposed):
            gone = consumer.state.forget(seqs) if consumer.state.pending else {}
            delivery = consumer.delivery
            if delivery is not None:
                self.runtime.fence.run(self._lost, consumer, delivery, seqs, gone, struck)
            if not consumer.state.pending and (delivery is None or not delivery.exposed):
                del self._exposed[consumer]
                if delivery is not None:
                    delivery.backlog.hears = False
            elif consumer.filters and delivery is not None:
                counting = True
        if not counting:
            self._note_no_more()

    def _note_no_more(self) -> None:
        """Nobody counts any more what is left: subjects of removed messages would pile up."""
        if self._noting:
            self._noting = False
            self.source.take_struck(False)

    def _lost(
        self,
        consumer: Consumer,
        delivery: Delivery,
        seqs: Sequence[int],
        forgotten: dict[int, Delivered],
        struck: dict[int, bytes],
    ) -> None:
        told = delivery.lost(seqs, forgotten, struck)
        if told:
            delivery.last_acked_at = self.now()
            self.journal.mark(consumer)
        for seq, number, deliveries in told:
            consumer.terminated(seq, number, deliveries, "Unacknowledged message was deleted")

    def purged(self) -> None:
        """Many messages are gone: compare everything with the stream."""
        if self._noting:
            self.source.take_struck(True)
        for consumer in self._consumers.values():
            consumer.state.purge(self.source.first_seq, self.source.live)
            if consumer.delivery is not None:
                self.runtime.fence.run(consumer.delivery.purged)
                self.runtime.fence.run(self.journal.mark, consumer)

    # --- leadership

    def leadership(self, leading: bool) -> None:
        """This node became, or stopped being, the one that delivers."""
        if leading == self.leading:
            return
        self.leading = leading
        if leading:
            self._listening.add(self.source.name, self._by_token)
            for consumer in list(self._consumers.values()):
                self._lead(consumer)
        else:
            self._quiet(LEADERSHIP)

    def _lead(self, consumer: Consumer) -> None:
        consumer.lead(self.now())
        self._listening.watch(consumer)
        self.journal.mark(consumer)

    def _quiet(self, status: bytes) -> None:
        self._listening.remove(self.source.name, self._by_token)
        for consumer in self._consumers.values():
            self.runtime.fence.run(consumer.follow, status)
        self.alarm.stop()
        self.journal.stop()
        self.tallies.stop()
        for task in self._loads.values():
            task.cancel()
        self._loads.clear()  # one that is cancelled before its first step does not tidy up itself

    async def close(self, *, deleted: bool = False) -> None:
        """Stop for good: open requests hear that the stream was deleted, or that the server stops."""
        if self.leading:
            if not deleted:
                self.journal.write_all(self._consumers.values())
            self.leading = False
            self._quiet(DELETED if deleted else b"")
        loads = list(self._loads.values())
        await asyncio.gather(*loads, return_exceptions=True)

    # --- snapshots

    def snapshot(self) -> object:
        """All consumers, in msgpack's types."""
        return [
            [c.id, c.name, c.config.to_json(), c.created, c.generated, c.state.snapshot()]
            for c in self._consumers.values()
        ]

    def restore(self, snapshot: Any) -> list[str]:
        """Become what `snapshot` returned. Consumers that an earlier version let in and that cannot be read are left
        out, and the rest is kept; returns what is wrong with each of them."""
        for known in (self._consumers, self._names, self._by_id, self._by_token, self._exposed):
            known.clear()
        self.audience.clear()
        self._note_no_more()
        left_out: list[str] = []
        for each in cast("list[Any]", snapshot):
            try:
                id, name, config, created, generated, state = read_kept(each)
                consumer = Consumer(self, id, name, ConsumerConfig.of_entry(config), created, generated)
                consumer.state = ConsumerState.restored(state)
            except BadEntry as error:
                left_out.append(f"{name_in(each)} of the snapshot: {error}")
            else:
                self._add(consumer)
        return left_out

    def _add(self, consumer: Consumer) -> None:
        insort(self._names, consumer.name)
        self._consumers[consumer.name] = consumer
        self._by_id[consumer.id] = consumer
        self._by_token[consumer.name.encode()] = consumer
        self.audience.add(consumer, consumer.filters)
        if consumer.state.pending:
            self._exposed[consumer] = None

    def add_restored(self, index: int, body: Any) -> None:
        """Apply a consumer of an archive, with its state; the stream is not served yet. Raises BadEntry."""
        body = read_restored(body)
        config, state = ConsumerConfig.of_entry(body["config"]), ConsumerState.restored(body["state"])
        if body["name"] in self._consumers:
            raise BadEntry("there is a consumer of that name")
        consumer = Consumer(self, index, body["name"], config, body["created"], body["generated"])
        consumer.state = state
        self._add(consumer)

    # --- reading from disk

    def loading(self, consumer: Consumer) -> bool:
        """Whether a message of this consumer is being read."""
        return consumer.delivery in self._loads

    def load(self, consumer: Consumer, seq: int) -> None:
        """Read a message for a consumer that leads; one at a time."""
        delivery = consumer.leading
        if delivery not in self._loads:
            name = f"load {consumer.stream} > {consumer.name}"
            self._loads[delivery] = self.runtime.tend(self._load(consumer, delivery, seq), name)

    async def _load(self, consumer: Consumer, delivery: Delivery, seq: int) -> None:
        try:
            message = await self.source.load(seq)
        except StorageError:
            if consumer.delivery is delivery:
                consumer.wake(self.now() + _READ_AGAIN)
            return
        except Exception as error:
            self.runtime.fence.caught(self.source.load, error)
            if consumer.delivery is delivery:
                consumer.wake(self.now() + _READ_AGAIN)
            return
        finally:
            self._loads.pop(delivery, None)
        if consumer.delivery is delivery:
            delivery.loaded(seq, message, self.now())
            self.journal.mark(consumer)
