"""One stream: the replicated state machine that stores messages and applies every change to them.

Owns what an entry of a stream's group means: deletes, purges, expiry, configuration, and (passed on to `content.py`)
message batches and (to the `ConsumerSet`) everything about consumers. `apply` is deterministic: it uses the replicated
state and the times that the leader wrote into the entries. It talks to no client: `publish.py` takes messages in and
hands out acknowledgements, `api/` answers requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from nimsnats.jetstream import errors, removal, search, typed
from nimsnats.jetstream.admission import LAST_SEQUENCE
from nimsnats.jetstream.blocks import BlockCache
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.content import Publication, Steps, StreamContent, answer
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.index import covers_all
from nimsnats.jetstream.kinds import (
    CONSUMER_FIRST,
    CONSUMER_LAST,
    CONSUMER_RESTORED,
    MESSAGES,
    RESTORED,
    STREAM_CONFIG,
    STREAM_DELETE_MESSAGE,
    STREAM_EXPIRE,
    STREAM_LOST,
    STREAM_PURGE,
    STREAM_RESTORED,
    STREAM_TOLD,
)
from nimsnats.jetstream.outcomes import read_told
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.removal import Removed
from nimsnats.raft.machine import BadEntry, Entry, Group, NotLeader
from nimsnats.runtime import Runtime

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.jetstream.consumer.set import ConsumerSet

_DONE: Final = object()
_STEPS: Final = 4
"""So many steps of an entry are taken at once: most have no more."""


@dataclass(slots=True)
class Environment:
    """What a node lends to its streams."""

    runtime: Runtime
    cache: BlockCache
    log: logging.Logger
    consumers: Callable[[Stream], ConsumerSet]
    """Makes the stream's consumer set."""


class Stream(StreamContent):
    """See the module. Implements `StateMachine` for its group and `MessageSource` for its consumers."""

    def __init__(self, account: Account, config: StreamConfig, created: int, environment: Environment) -> None:
        super().__init__(config, created, environment.runtime, environment.cache, environment.log)
        self.account = account
        self.environment = environment
        self.led_since = 0
        """When this node began to lead, nanoseconds; 0 while it does not."""
        self.on_leadership: Callable[[bool], None] | None = None
        self.on_config: Callable[[StreamConfig], None] | None = None
        """Called when a configuration was applied, with the one before."""
        self._waiting: list[asyncio.Future[None]] = []
        """Of those who wait for the other half."""
        self.consumers = environment.consumers(self)

    # Life

    def opened(self, group: Group) -> None:
        """The group is open; if this member leads, it serves from now on."""
        self._group = group
        if self._outcomes.shifted:
            # Of what was under way together with the lost batches, nobody can tell any more what had been refused.
            self.log.warning(
                "Stream %s: the last messages may have higher sequences than those acknowledged, by as many as the "
                "damaged entries held messages that were refused",
                self.config.name,
            )
        self._outcomes.forget()
        if self.leading:
            self._serve(True)
            if self._outcomes.due:
                self._tell_soon()

    async def close(self, *, deleted: bool = False) -> None:
        """Stop to serve; the group is closed by its owner. `deleted` is what consumers tell their clients."""
        self.leading = False
        await self.consumers.close(deleted=deleted)
        await self._compactor.close()
        await self.reader.close()
        self.store.close()

    async def free(self) -> None:
        """Give the memory back, a part at a time; the stream is closed, and its group is removed."""
        for _ in self.store.clear():
            await asyncio.sleep(0)

    # Proposing

    @property
    def accepting(self) -> bool:
        """Whether consumers may deliver now (MessageSource)."""
        return not self.unsettled and (self._group is None or self._group.accepting)

    def propose(self, kind: int, data: bytes, context: object | None = None) -> None:
        """Propose a consumer entry (MessageSource)."""
        self.group.propose(kind, data, context)

    def propose_batch(self, publication: Publication, data: bytes) -> None:
        """Propose a batch of messages. Raises NotLeader."""
        self.group.propose(MESSAGES, data, publication, messages=len(publication.batch))

    async def change(self, kind: int, fields: dict[str, Any]) -> Any:
        """Propose a stream operation and wait until it is applied; returns its result. Raises ApiError."""
        done: asyncio.Future[Any] = self.runtime.loop.create_future()
        try:
            self.group.propose(kind, pack(fields), done)
        except NotLeader as error:
            raise errors.CLUSTER_NOT_AVAIL() from error
        return await done

    # StateMachine

    def apply(self, entry: Entry) -> Iterator[None] | None:
        """Apply one committed entry, or begin to: what is left is returned. Raises BadEntry."""
        steps = self._apply(entry)
        if steps is None or any(next(steps, _DONE) is _DONE for _ in range(_STEPS)):
            return None
        rest = self._rest_of(steps)
        next(rest)
        return rest

    def _rest_of(self, steps: Steps) -> Steps:
        """What is left of an entry; whoever reads the stream waits for its end."""
        self.unsettled = True
        try:
            yield
            yield from steps
        finally:
            self.unsettled = False
            self.runtime.fence.run(self.consumers.settled_down)
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)

    async def settled_down(self) -> None:
        """Wait until no entry is half applied: what is read then is the same on every member that has applied as
        much."""
        while self.unsettled:
            waiting: asyncio.Future[None] = self.runtime.loop.create_future()
            self._waiting.append(waiting)
            await waiting

    def _apply(self, entry: Entry) -> Steps | None:
        kind = entry.kind
        if kind == MESSAGES:
            return self._apply_messages(entry)
        if kind == RESTORED:
            self._apply_restored(entry)
        elif kind == STREAM_TOLD:
            self._outcomes.heard(read_told(entry.data))
        elif kind == CONSUMER_RESTORED:
            self.consumers.add_restored(entry.index, typed.opened(entry.data))
            answer(entry, None)
        elif CONSUMER_FIRST <= kind <= CONSUMER_LAST:
            return self.consumers.apply(entry)
        else:
            return self._apply_operation(entry)
        return None

    def _apply_operation(self, entry: Entry) -> Steps | None:
        operation: Callable[[dict[str, Any]], Any] | None = {
            STREAM_CONFIG: self._apply_config,
            STREAM_DELETE_MESSAGE: self._apply_delete,
            STREAM_PURGE: self._apply_purge,
            STREAM_EXPIRE: self._apply_expire,
            STREAM_LOST: self._apply_lost,
            STREAM_RESTORED: self._apply_end_of_restore,
        }.get(entry.kind)
        if operation is None:
            raise BadEntry("its kind is unknown")
        fields = typed.mapping(typed.opened(entry.data), _FIELDS[entry.kind], _CREATED)
        return self._operate(entry, operation, fields)

    @staticmethod
    def _operate(entry: Entry, operation: Callable[[dict[str, Any]], Any], fields: dict[str, Any]) -> Steps:
        result: Any = None
        error: ApiError | None = None
        try:
            result = operation(fields)
            if isinstance(result, Generator):
                result = yield from cast("Generator[None, None, Any]", result)
        except ApiError as refused:
            error = refused
        answer(entry, result, error)

    def refuse(self, context: object, error: Exception) -> None:
        """A local proposal was dropped."""
        if isinstance(context, asyncio.Future):
            if not context.done():
                context.set_exception(errors.STREAM_STORE_FAILED(err=error))
        elif isinstance(context, Publication):
            context.refused(error)
        else:
            self.consumers.refuse(context, error)

    def leadership(self, leading: bool, term: int) -> None:
        """This member starts or stops to serve the stream."""
        del term
        self.leading = leading
        self.led_since = self.runtime.time_ns() if leading else 0
        if self._group is not None:
            self._serve(leading)

    def _serve(self, leading: bool) -> None:
        self.consumers.leadership(leading)
        if self.on_leadership is not None:
            self.on_leadership(leading)

    # Operations: each returns the result that the proposer waits for

    def _apply_config(self, fields: dict[str, Any]) -> Steps:
        """`config` (stored form) and, when the stream is new, `created`."""
        before, self.config = self.config, StreamConfig.of_entry(fields["config"])
        self.configured = True
        self.subjects = self.config.subject_bytes
        if "created" in fields:
            self.created = fields["created"]
            self._set_first_seq()
        yield from self._enforce_all(subjects=self.config.max_msgs_per_subject != before.max_msgs_per_subject)
        if self.on_config is not None:
            self.runtime.fence.run(self.on_config, before)

    def _apply_delete(self, fields: dict[str, Any]) -> bool:
        """`seq`: remove one message."""
        seq: int = fields["seq"]
        if not self.store.remove(seq):
            raise errors.SEQUENCE_NOT_FOUND(seq=seq)
        self._gone([seq])
        return True

    def _apply_purge(self, fields: dict[str, Any]) -> Generator[None, None, int]:
        """`filter` (empty: all subjects), `seq` (purge below), `keep` (newest to leave); how many were removed."""
        store = self.store
        wanted: bytes = fields["filter"]
        seq: int = fields["seq"]
        keep: int = fields["keep"]
        before = store.messages
        if wanted and not covers_all((wanted,), self.subjects):
            yield from self._take(removal.of_subjects(store, (wanted,), seq, keep))
        elif seq > store.last_seq + 1 and not keep:
            freeing = store.clear()
            store.last_seq, store.first_seq = seq - 1, seq
            yield from freeing
        elif seq or keep:
            yield from self._take(removal.below(store, seq or search.front(store, store.messages - keep, 0)))
        else:
            yield from store.clear()
        self.reader.forget()
        self.consumers.purged()
        return before - store.messages

    @staticmethod
    def _take(removing: Removed) -> Steps:
        """Give up messages of which the consumers hear at the end."""
        for _ in removing:
            yield

    def _apply_expire(self, fields: dict[str, Any]) -> Steps:
        """`now`: remove what has run out by then."""
        return self._expire(fields["now"])

    def _apply_lost(self, fields: dict[str, Any]) -> None:
        """`seqs`: messages that are damaged."""
        self._gone(self.store.lose(fields["seqs"]))
        self.reader.forget()

    def _apply_end_of_restore(self, fields: dict[str, Any]) -> Steps:
        """`last`, `time`, `lost` and `lost_bytes` of the archived stream; `now`."""
        store = self.store
        store.lost, store.lost_bytes = fields["lost"], fields["lost_bytes"]
        store.last_seq = max(store.last_seq, fields["last"])
        store.last_time = max(store.last_time, fields["time"])
        if not store.messages and store.last_seq:
            store.first_seq = store.last_seq + 1
        self._admission.forget_ids(fields["now"] - self.config.duplicate_window)
        yield from self._enforce_all(subjects=True)


_FIELDS: Final[dict[int, dict[str, typed.Test]]] = {
    STREAM_CONFIG: {"config": typed.anything},
    STREAM_DELETE_MESSAGE: {"seq": typed.integer},
    STREAM_PURGE: {"filter": typed.octets, "seq": typed.integer, "keep": typed.integer},
    STREAM_EXPIRE: {"now": typed.integer},
    STREAM_LOST: {"seqs": typed.naturals},
    STREAM_RESTORED: {
        "last": lambda seq: typed.natural(seq) and seq <= LAST_SEQUENCE,
        "time": typed.integer,
        "lost": typed.naturals,
        "lost_bytes": typed.natural,
        "now": typed.integer,
    },
}
"""What the bodies of operations hold."""
_CREATED: Final[dict[str, typed.Test]] = {"created": typed.integer}
