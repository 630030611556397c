"""A stream's content: how batches of messages are stored, and what has to go for them.

Owns what a batch means in its place of the log: which of its messages are accepted, what their headers bring about,
which limits it exceeds, what becomes known of it to those who wait, and the steps in which much is given up. All that
is deterministic: checks and limits use the replicated state and the times that the leader wrote into the entries. It
knows no other kinds of entries (`stream.py`) and reads no message (`reading.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any, Final, cast

from nimsnats.jetstream import errors, removal, search
from nimsnats.jetstream.admission import EXPECTED_SUBJECT, LAST_SEQUENCE, ROLLUP, TTL, Duplicate, nats_headers
from nimsnats.jetstream.batch import MAX_MESSAGES, BadBatch, Batch
from nimsnats.jetstream.blocks import BlockCache
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.expiry import kept_ttl
from nimsnats.jetstream.kinds import STREAM_TOLD
from nimsnats.jetstream.outcomes import Placement, read_told
from nimsnats.jetstream.removal import Removed
from nimsnats.jetstream.stream_state import StreamState
from nimsnats.protocol.subject import has_wildcard
from nimsnats.raft.machine import BadEntry, Entry
from nimsnats.runtime import Runtime

Steps = Generator[None, None, None]
_CHECKED: Final = 1024
"""Messages that are checked and stored one by one in one step."""
_AT_ONCE: Final = 16384
"""Sequences that are given up in one step: twice as many as the largest batch of a publisher brings."""
Outcome = int | Duplicate | ApiError
"""What became of one published message: its sequence, or why it was not stored."""


class Publication:
    """A batch on its way, as its local proposer remembers it (the context of a MESSAGES entry)."""

    __slots__ = ("batch",)

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def stored(self, first: int) -> None:
        """All messages were stored, from sequence `first` on."""

    def decided(self, outcomes: Sequence[Outcome]) -> None:
        """What became of each message."""

    def refused(self, error: Exception) -> None:
        """Nothing of it was stored."""


class StreamContent(StreamState):
    """See the module."""

    def __init__(
        self, config: StreamConfig, created: int, runtime: Runtime, cache: BlockCache, log: logging.Logger
    ) -> None:
        super().__init__(config, created, runtime, cache, log)
        self.on_change: Callable[[], None] | None = None
        """Called when something that can expire was stored."""
        self._telling = False

    # Batches

    def _apply_messages(self, entry: Entry) -> Steps | None:
        publication = entry.context if isinstance(entry.context, Publication) else None
        if publication is not None:
            batch = publication.batch
        else:
            try:
                batch = Batch.decode(entry.data)
                if batch.base or batch.offsets is not None or batch.times is not None:
                    raise BadBatch("a published batch has no sequences and times of its own")
                told = read_told(batch.told) if batch.told else ()
            except (BadBatch, BadEntry) as error:
                self._lose_batch(entry, error)
                return None
            self._outcomes.heard(told)
        if batch.expire:
            return self._expire_and_store(entry, batch, publication)
        known, before = self._place(entry.index)
        if (known and known.refused) or not self._plain(batch, len(entry.data)):
            return self._store_checked(entry, batch, publication, known)
        self.store.append_run(entry.index, batch, cache=publication is not None)
        excess = self._enforce_limits()
        if excess is not None:
            return self._store_over_limits(entry.index, batch, publication, known, before, excess)
        self._stored(entry.index, batch, publication, known, before, [], [])
        return None

    def _store_over_limits(
        self,
        index: int,
        batch: Batch,
        publication: Publication | None,
        known: Placement | None,
        before: int,
        excess: Steps,
    ) -> Steps:
        """A batch after which much has to go."""
        yield from excess
        self._stored(index, batch, publication, known, before, [], [])

    def _place(self, index: int) -> tuple[Placement | None, int]:
        """What is known of a batch whose turn it is now, and the last sequence before it."""
        known, gone = self._outcomes.place(index)
        if gone:
            self._gone(gone)
            self._lasting_below = 0
        return known, self.store.last_seq

    def _expire_and_store(self, entry: Entry, batch: Batch, publication: Publication | None) -> Steps:
        """Delete markers: whatever has run out by their time goes first."""
        yield from self._expire(batch.time)
        known, _ = self._place(entry.index)
        yield from self._store_checked(entry, batch, publication, known)

    def _store_checked(
        self, entry: Entry, batch: Batch, publication: Publication | None, known: Placement | None
    ) -> Steps:
        """A batch whose messages cannot just be accepted."""
        before = self.store.last_seq
        outcomes: list[Outcome] = []
        rejected: list[int] = []
        yield from self._store_each(entry.index, batch, known, outcomes, rejected, cache=publication is not None)
        self._stored(entry.index, batch, publication, known, before, outcomes, rejected)

    def _stored(
        self,
        index: int,
        batch: Batch,
        publication: Publication | None,
        known: Placement | None,
        before: int,
        outcomes: list[Outcome],
        rejected: list[int],
    ) -> None:
        """A batch is stored: remember what became of it, and tell those who want to know."""
        last = self.store.last_seq
        self._outcomes.note(index, before + 1, last - before, rejected)
        self._outcomes.passed(len(batch), known=known is not None, kept=True)
        if rejected and self._group is not None:
            self._tell_soon()
        if publication is not None:
            try:
                if outcomes:
                    publication.decided(outcomes)
                else:
                    publication.stored(before + 1)
            except Exception as error:  # only this node does this; as `Fence.run`, without its price
                self.runtime.fence.caught(publication.stored, error)
        if last > before:
            try:
                if self.on_change is not None:
                    self.on_change()
                self.consumers.stored(before + 1, last)
            except Exception as error:
                self.runtime.fence.caught(self.consumers.stored, error)

    def _lose_batch(self, entry: Entry, error: Exception) -> None:
        """A batch that is none: its sequences are used up, for somebody may have been told of them."""
        self.log.error("Stream %s: entry %d: %s", self.config.name, entry.index, error)
        self.refusals.note(entry.index, entry.kind, "its batch of messages cannot be read")
        self.store.lose_run(min(entry.messages, MAX_MESSAGES))
        self.store.dropped.append(entry.index)

    def _plain(self, batch: Batch, size: int) -> bool:
        """Whether every message of the batch can only be accepted, so that the batch is stored as a whole."""
        config, headers = self.config, batch.headers
        if batch.expire or config.sealed or config.max_msgs_per_subject > 0:
            return False
        if self.store.last_seq + len(batch) > LAST_SEQUENCE:
            return False
        if headers is not None:
            if any(b"\r\nNats-" in block for block in headers) or max(map(len, headers)) > 65535:
                return False
            if self._admission.last_id or config.subject_delete_marker_ttl:
                return False
        elif self._admission.last_id:
            self._admission.last_id = b""
        if config.max_msg_size >= 0 and max(batch.sizes) + max(map(len, headers or (b"",))) > config.max_msg_size:
            return False
        if config.discard == "new" and (config.max_msgs > 0 or config.max_bytes > 0):
            if 0 < config.max_msgs < self.store.messages + len(batch):
                return False
            bound = size + len(batch) * (34 + max(map(len, batch.table)))
            if 0 < config.max_bytes < self.store.bytes + bound:
                return False
        return config.retention != "interest" or all(map(self.consumers.interested, batch.table))

    def _store_each(
        self,
        index: int,
        batch: Batch,
        known: Placement | None,
        outcomes: list[Outcome],
        rejected: list[int],
        *,
        cache: bool,
    ) -> Steps:
        """Store message by message: the way of everything that has to be checked, unless it is `known` what came of
        that. Fills in the outcomes, and the positions that were rejected, ascending."""
        store, config, admission, now = self.store, self.config, self._admission, batch.time
        per_subject = config.max_msgs_per_subject
        interest = config.retention == "interest"
        headers = batch.headers
        admission.forget_ids(now - config.duplicate_window)
        before = store.last_seq
        store.begin(index, batch)
        try:
            for at, subject in enumerate(batch.subjects):
                if at and at % _CHECKED == 0:
                    yield
                block = b"" if headers is None else headers[at]
                named = nats_headers(block) if block else {}
                admission.expected_last = None
                if EXPECTED_SUBJECT in named and has_wildcard(named[EXPECTED_SUBJECT]):
                    yield from self._look_up(named[EXPECTED_SUBJECT])
                refused: Duplicate | ApiError | None = None
                if known is not None:
                    refused = errors.SEQUENCE_NOT_FOUND(seq=0) if at in known.refused else None
                elif batch.expire and subject in store.index:
                    refused = errors.SEQUENCE_NOT_FOUND(seq=0)
                else:
                    refused = admission.check(config, store, subject, block, named, batch.sizes[at], now, batch.rules)
                if refused is not None:
                    rejected.append(at)
                    outcomes.append(refused)
                    continue
                seq = store.add(at)
                outcomes.append(seq)
                admission.stored(named, seq, now)
                if interest and not self.consumers.interested(subject):
                    self.settled([seq])
                    continue
                if named:
                    others = self._note_headers(subject, block, named, seq, now)
                    if others is not None:
                        yield from others
                elif config.subject_delete_marker_ttl and b"\r\nKV-Operation: PURGE\r\n" in block:
                    self.expiry.silent.add(seq)
                if per_subject > 0 and store.index.count(subject) > per_subject:
                    self._gone(self._evict(subject, per_subject))
                excess = self._enforce_limits()
                if excess is not None:
                    yield from excess
        except Exception:
            # an error of ours: what is stored stays, the rest of the batch is not, here as on every member
            rejected += range(store.last_seq - before + len(rejected), len(batch))
            raise
        finally:
            store.finish(rejected, cache=cache)
        self.reader.forget()

    def _look_up(self, pattern: bytes) -> Steps:
        """Find the last sequence that a wildcard of an expectation matches, for `Admission.check`."""
        yield from self.sorting()
        for found in search.last_again_in_steps(self.store, (pattern,)):
            if found is None:
                yield
            else:
                self._admission.expected_last = found
                return

    def _note_headers(
        self, subject: bytes, block: bytes, named: dict[bytes, bytes], seq: int, now: int
    ) -> Steps | None:
        """The effects of a stored message's headers: TTL, marker, roll-up. What a roll-up of everything removes is
        removed in steps."""
        self._note_lasting(block, named, seq, now)
        rollup = named.get(ROLLUP, b"").lower()
        if rollup == b"sub":
            self._gone(self._evict(subject, 1))
        elif rollup == b"all":
            return self._remove(removal.below(self.store, seq))
        return None

    def _note_lasting(self, block: bytes, named: dict[bytes, bytes], seq: int, now: int) -> None:
        """Those that outlast the moment of storing."""
        if TTL in named and self.config.allow_msg_ttl:
            try:
                self.expiry.add(seq, kept_ttl(named[TTL]), now)
            except ApiError:
                pass  # a message that is here has it all the same, out of an archive, say: it stays
        if b"Nats-Marker-Reason" in named or b"\r\nKV-Operation: PURGE\r\n" in block:
            self.expiry.silent.add(seq)

    # What became of batches, for a group of one after damage

    def tell(self) -> bytes:
        """What a batch that is proposed now says about those before it: in a group of one, where damage cannot be made
        good by others."""
        return self._outcomes.tell() if self.group.alone else b""

    def _tell_soon(self) -> None:
        """Something was refused: if no batch follows at once that tells it, an entry of its own does."""
        if not self._telling and self.leading and self.config.storage == "file" and self.group.alone:
            self._telling = True
            self.runtime.call_soon(self._tell_now)

    def _tell_now(self) -> None:
        self._telling = False
        if self._outcomes.due and self.leading and self.group.alone:
            self.group.propose(STREAM_TOLD, self._outcomes.tell())

    # What has to go

    def _evict(self, subject: bytes, keep: int) -> list[int]:
        """Remove the oldest messages of a subject until `keep` are left."""
        index = self.store.index
        excess = index.count(subject) - keep
        removed = [index.first(subject)] if excess == 1 else list(index.lowest(subject, max(excess, 0)))
        for seq in removed:
            self.store.remove(seq)
        return removed

    def settled(self, seqs: list[int]) -> None:
        """Consumers need these messages no more, or never will (interest and work-queue retention); called from
        `apply`."""
        for seq in seqs:
            self.store.remove(seq)
        if self.store.struck:
            self.store.struck.clear()  # no consumer counts them any more

    def _enforce_limits(self) -> Steps | None:
        """Discard the oldest messages above `max_msgs` and `max_bytes`; discard new keeps them, and refuses others.
        None when that is done, as where limits have been reached for long: then as much goes as comes."""
        config, store = self.config, self.store
        if config.discard == "new":
            return None
        messages = store.messages - config.max_msgs if config.max_msgs > 0 else 0
        size = store.bytes - config.max_bytes if config.max_bytes > 0 else 0
        if messages <= 0 and size <= 0:
            return None
        end = search.front(store, messages, size)
        if end - store.first_seq > _AT_ONCE:
            return self._remove(removal.below(store, end))
        self._gone(store.remove_below(end))
        return None

    def _enforce_all(self, *, subjects: bool) -> Steps:
        """Discard what is above limits that are new; `subjects`: above that of each subject, too."""
        keep = self.config.max_msgs_per_subject
        if subjects and keep > 0:
            yield from self._remove(removal.over_subject_limit(self.store, keep))
        excess = self._enforce_limits()
        if excess is not None:
            yield from excess
        self.reader.forget()

    def _expire(self, now: int) -> Steps:
        max_age = self.config.max_age
        yield from self._remove(removal.expired(self.store, self.expiry, now, max_age, self._lasting_below))
        if max_age:
            self._lasting_below = max(self._lasting_below, search.seq_at_time(self.store, now - max_age + 1))
        self._admission.forget_ids(now - self.config.duplicate_window)

    def _remove(self, removing: Removed) -> Steps:
        """Give up messages step by step, and have the consumers hear of it."""
        for removed in removing:
            self._gone(removed)
            yield
        self.reader.forget()

    # A new stream out of an archive: its loader (`snapshot/loader.py`) has checked what it proposes

    def _apply_restored(self, entry: Entry) -> None:
        """A batch of an archive. Limits are enforced at the end, and a roll-up has rolled up already."""
        try:
            batch = Batch.decode(entry.data)
        except BadBatch as error:
            self._lose_batch(entry, error)
            answer(entry, None, errors.STREAM_STORE_FAILED(err=error))
            return
        self._check_restored(batch)
        seqs = self.store.append_sparse(entry.index, batch)
        times = batch.times if batch.times is not None else [batch.time] * len(seqs)
        for seq, time, block in zip(seqs, times, batch.headers or (), strict=bool(batch.headers)):
            named = nats_headers(block) if block else {}
            self._admission.stored(named, seq, time)
            if block:
                self._note_lasting(block, named, seq, time)
        if batch.headers is None:
            self._admission.last_id = b""
        answer(entry, None)

    def _check_restored(self, batch: Batch) -> None:
        """Whether a batch brings sequences that the stream can take. Raises BadEntry."""
        offsets = batch.offsets
        if offsets is None or batch.base <= self.store.last_seq or batch.base + offsets[-1] > LAST_SEQUENCE:
            raise BadEntry("its sequences are not behind those that are there")
        if any(b <= a for a, b in pairwise(offsets)):
            raise BadEntry("its sequences do not ascend")


def answer(entry: Entry, result: Any, error: Exception | None = None) -> None:
    """Tell the local proposer of an operation what came of it."""
    waiting = cast("asyncio.Future[Any] | None", entry.context)
    if waiting is None or waiting.done():
        return
    if error is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(result)
