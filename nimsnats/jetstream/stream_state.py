"""What a stream is made of, how it goes into a snapshot and comes back, and what damage does to it.

Owns the parts (store, admission, expiry, compaction) and their form in snapshots. What changes them, and who may, is
`content.py`'s and `stream.py`'s business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream.admission import Admission
from nimsnats.jetstream.batch import BadBatch, Batch
from nimsnats.jetstream.blocks import DEAD_NOTE, BlockCache, Note
from nimsnats.jetstream.compaction import Compactor
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.expiry import Expiry
from nimsnats.jetstream.kinds import CONSUMER_CREATE, MESSAGES, STREAM_LOST, STREAM_TOLD
from nimsnats.jetstream.outcomes import Outcomes, read_told
from nimsnats.jetstream.packing import pack, unpack
from nimsnats.jetstream.reading import BlockReader
from nimsnats.jetstream.store import MessageStore
from nimsnats.jetstream.view import StreamView
from nimsnats.raft.machine import BadEntry, BlockRecord, Entry, Group, LogDamage, Snapshot, StoredBlock
from nimsnats.raft.refusals import Refusals
from nimsnats.runtime import Runtime

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.set import ConsumerSet

_STATE_VERSION: Final = 1
_BREATH: Final = 16
"""Blocks of a snapshot that are taken back before the rest of the node has its turn."""


class StreamState(StreamView):
    """The half of a group's `StateMachine` that keeps and gives back."""

    consumers: ConsumerSet

    def __init__(
        self, config: StreamConfig, created: int, runtime: Runtime, cache: BlockCache, log: logging.Logger
    ) -> None:
        store = MessageStore(file=config.storage == "file", cache=cache)
        super().__init__(config, store, BlockReader(store, self._read_block, runtime, log, self._give_up))
        self.created = created
        """When the stream was created, nanoseconds."""
        self.runtime = runtime
        self.log = log
        self.expiry = Expiry()
        self.leading = False
        self.configured = False
        """Whether the group itself holds the configuration (it also stands in the meta group)."""
        self.restored = 0
        """How often a snapshot of the leader has taken the place of everything here."""
        self.refusals = Refusals()
        self._lasting_below = 0
        """Below this sequence there is nothing but messages that `max_age` does not touch."""
        self._admission = Admission()
        self._outcomes = Outcomes(store)
        self._group: Group | None = None
        self.unsettled = False
        """Whether an entry is half applied."""
        self._sorting = False
        self._compactor = Compactor(store, self._read_block, self._rewrite_block, runtime, log)
        self._set_first_seq()

    @property
    def group(self) -> Group:
        """The stream's group. Only to be asked for while it is open."""
        assert self._group is not None
        return self._group

    def _read_block(self, index: int) -> Awaitable[bytes]:
        return self.group.read_block(index)

    def _rewrite_block(self, index: int, data: bytes) -> Awaitable[None]:
        return self.group.rewrite_block(index, data)

    def sort_in(self) -> None:
        """Sort in new subjects, a portion a turn of the loop."""
        if not self._sorting:
            self._sorting = True
            self.runtime.call_soon(self._sort_in)

    def _sort_in(self) -> None:
        self._sorting = self.store.index.order.settle()
        if self._sorting:
            self.runtime.call_soon(self._sort_in)

    def _set_first_seq(self) -> None:
        if self.config.first_seq > 1 and not self.store.last_seq:
            self.store.first_seq, self.store.last_seq = self.config.first_seq, self.config.first_seq - 1

    def _gone(self, seqs: list[int]) -> None:
        if seqs and len(self.consumers):
            self.consumers.removed(seqs)

    def foresee(self, entry: Entry) -> None:
        """An entry behind a loss tells what became of batches before it."""
        told = entry.data if entry.kind == STREAM_TOLD else b""
        try:
            if entry.kind == MESSAGES:
                told = Batch.decode(entry.data).told
            if told:
                self._outcomes.learn(read_told(told))
        except (BadBatch, BadEntry):
            return  # said when it is applied

    def damaged(self, damage: LogDamage) -> None:
        """Log entries are lost: their sequences are used up and named in the state."""
        self._outcomes.begin()
        for index, messages in sorted(damage.entries.items()):
            known, gone = self._outcomes.place(index)
            self._gone(gone)
            first = self.store.last_seq + 1
            self.store.lose_run(messages if known is None else known.stored)
            self._outcomes.passed(messages, known=known is not None, kept=False)
            lost = self.store.last_seq + 1 - first
            if not lost:
                self.log.error("Stream %s: entry %d is damaged (%s)", self.config.name, index, damage.reason)
                continue
            self.log.error(
                "Stream %s: entry %d is damaged (%s): %d messages lost, sequences %d to %d",
                *(self.config.name, index, damage.reason, lost, first, self.store.last_seq),
            )

    def _give_up(self, seqs: list[int]) -> None:
        """A block cannot be read any more. In a group of one nobody else has it, and the state says so from now on."""
        if self.leading and len(self.group.members) == 1:
            self.group.propose(STREAM_LOST, pack({"seqs": seqs}))

    def snapshot(self) -> Snapshot:
        """State as of the last applied entry."""
        store = self.store
        self._compactor.conclude()
        self.reader.forget()
        state = self.state()
        notes: list[BlockRecord] = []
        for block in store.blocks:
            if block.changed:
                block.changed = False
                notes.append(BlockRecord(block.index, block.note()))
        dropped = store.take_dropped()
        notes.extend(BlockRecord(index, DEAD_NOTE) for index in store.withheld)
        if self._group is not None:
            self._compactor.begin()
        return Snapshot(state, notes, dropped)

    def state(self) -> bytes:
        """Everything but the messages and where they are: the same on every replica that has applied the same."""
        store = self.store
        self.expiry.prune(self.live)
        fields = {
            "version": _STATE_VERSION,
            "config": self.config.to_stored(),
            "created": self.created,
            "first": store.first_seq,
            "last": store.last_seq,
            "time": store.last_time,
            "lost": store.lost,
            "lost_bytes": store.lost_bytes,
            "admission": self._admission.dump(),
            "expiry": self.expiry.stored(),
            "consumers": self.consumers.snapshot(),
        }
        if self.refusals.count:
            fields["refused"] = self.refusals.stored()
        return pack(fields)

    async def restore(self, state: bytes, blocks: Sequence[StoredBlock]) -> None:
        """Become the state of a snapshot; damaged blocks lose their live messages and nothing else. Without a state
        (damaged) the blocks tell what there is; consumers and what was remembered of messages are lost."""
        fields = unpack(state) if state else self._unknown(blocks)
        store = self.store
        self._compactor.abandon()
        self.reader.forget()
        for _ in store.clear():
            await asyncio.sleep(0)
        store.dropped, store.withheld = [], []
        self._lasting_below = 0
        if self._group is not None:  # a follower that was away for too long becomes what its leader is
            self.restored += 1
        self.configured = bool(state)
        self.config = StreamConfig.from_stored(fields["config"])
        self.subjects = self.config.subject_bytes
        self.created = fields["created"]
        store.last_seq = fields["last"]
        store.last_time = fields["time"]
        store.lost, store.lost_bytes = fields["lost"], fields.get("lost_bytes", 0)
        for count, stored in enumerate(blocks, 1):
            if stored.note:
                self._restore_block(stored)
            else:
                store.dropped.append(stored.index)
            if count % _BREATH == 0:
                await asyncio.sleep(0)
        store.first_seq = fields["first"]
        if store.messages or store.first_seq:
            store.advance()
        self._admission.load(fields["admission"])
        self.expiry.restore(fields["expiry"])
        self.refusals.restore(fields.get("refused"))
        for reason in self.consumers.restore(fields["consumers"]):
            self.refusals.note(0, CONSUMER_CREATE, reason)
            self.log.error("Stream %s: left out is %s", self.config.name, reason)

    def _unknown(self, blocks: Sequence[StoredBlock]) -> dict[str, Any]:
        """What stands for a state that is lost."""
        notes = [Note(stored.note) for stored in blocks if stored.note]
        last = max((max([note.first + note.count - 1, *note.live[-1:]]) for note in notes), default=0)
        return {
            "config": self.config.to_stored(),
            "created": self.created,
            "first": 0,
            "last": last,
            "time": 0,
            "lost": [],
            "lost_bytes": 0,
            "admission": [b"", []],
            "expiry": [[], [], []],
            "consumers": [],
        }

    def _restore_block(self, stored: StoredBlock) -> None:
        note = Note(stored.note)
        data = stored.data
        reason = "checksum failed"
        if data is not None:
            try:
                self.store.restore_block(stored.index, note.first, note.live, note.rejected, Batch.decode(data))
                return
            except BadBatch as error:
                reason = str(error)
        lost = list(note.live)
        self.store.lost.extend(lost)
        self.store.lost_bytes += note.stored
        self.store.dropped.append(stored.index)
        self.log.error(
            "Stream %s: block %d is damaged (%s): %d messages lost, sequences %d to %d",
            *(self.config.name, stored.index, reason, len(lost), note.first, note.first + note.count - 1),
        )
