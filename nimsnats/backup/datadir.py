"""The data directory of a node that does not run: is it whole, and what is in it?

Owns the off-line replay: every group's snapshot and log go through the real state machines, in memory, and what comes
out is compared with itself. Reading and row checksums are `nimsnats.storage.audit`'s. Nothing is written.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from nimsnats.broker.account import Account
from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.server import Broker
from nimsnats.jetstream.batch import BadBatch, Batch
from nimsnats.jetstream.blocks import BlockCache, Loaded
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.consumer.rules import ServerLimits, traits_of
from nimsnats.jetstream.consumer.set import ConsumerSet
from nimsnats.jetstream.kinds import name_of
from nimsnats.jetstream.meta import META_PREFIX, Meta
from nimsnats.jetstream.stream import Environment, Stream
from nimsnats.protocol.archive import ArchivedMessage
from nimsnats.raft.core import MEMBERSHIP
from nimsnats.raft.home import MEMORY_MARK, PROVISIONAL_MARK, STAGED_MARK
from nimsnats.raft.machine import Entry, StateMachine, StoredBlock
from nimsnats.raft.membership import Membership
from nimsnats.raft.refusals import OF_THIS_NODE, refused
from nimsnats.runtime import Runtime
from nimsnats.storage import StoredGroup
from nimsnats.storage.audit import Audit, auditing

STREAM: Final = "S-"
"""What names of streams' groups begin with."""
_CACHE: Final = 1 << 20


@dataclass(slots=True)
class Report:
    """What a directory holds, and what is wrong with it, one line each."""

    contents: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])


class _Complaints(logging.Handler):
    """Turns what the state machines log about damage into problems."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        self._problems.append(record.getMessage())


class Unreadable(Exception):
    """A group whose record ends in the middle."""


async def verify(path: Path, runtime: Runtime) -> Report:
    """Check a data directory. Raises StorageError when it cannot be looked at: in use, not ours, of a newer version."""
    report = Report()
    with auditing(path) as audit:
        report.problems += audit.damage()
        replay = Replay(audit, runtime, report.problems)
        for group in audit.groups():
            report.contents.append(await replay.check(group))
        report.problems += replay.compare_catalogue()
    report.problems = list(dict.fromkeys(report.problems))
    return report


async def messages(path: Path, runtime: Runtime, wanted: frozenset[str]) -> AsyncIterator[tuple[str, ArchivedMessage]]:
    """The messages of the streams (all when none is wanted), with their stream's name. Damaged ones are left out; use
    `verify` to hear of them. Raises StorageError."""
    with auditing(path) as audit:
        replay = Replay(audit, runtime, [])
        for group in audit.groups():
            if group.name.startswith(STREAM) and (stream := await replay.stream(group)) is not None:
                if wanted and stream.name not in wanted:
                    continue
                for message in _messages(audit, group, stream):
                    yield stream.name, message


def _messages(audit: Audit, group: StoredGroup, stream: Stream) -> Iterator[ArchivedMessage]:
    for block in stream.store.blocks:
        data = audit.block(group, block.index)
        if data is None:
            continue
        try:
            loaded = Loaded(block.first, Batch.decode(data), block.rejected)
        except BadBatch:
            continue
        for at in block.live_positions():
            found = loaded.get(block.seq_at(at))
            if found is not None:
                yield ArchivedMessage(found.seq, found.time, found.subject, found.headers, found.payload)


class Replay:
    """Groups brought back into memory. `members` is the newest membership of each that was looked at, `catalogue` the
    newest catalogue; what is wrong is added to the problems."""

    def __init__(self, audit: Audit, runtime: Runtime, problems: list[str]) -> None:
        self._audit = audit
        self._runtime = runtime
        self._problems = problems
        self._log = logging.Logger("nimsnats.verify")
        self._log.addHandler(_Complaints(problems))
        self._account: Account = Broker(BrokerOptions(), runtime, self._log).global_account
        self._seen: set[str] = set()
        self.members: dict[str, Membership] = {}
        self.catalogue: Meta | None = None

    async def check(self, group: StoredGroup) -> str:
        """Bring a group back and look at it; what it is, in a line."""
        name = group.name
        try:
            if name.startswith(STREAM):
                self._seen.add(name)
                stream = await self.stream(group)
                return f"{name}: unreadable" if stream is None else self._check_stream(name, stream, group)
            if name.startswith(META_PREFIX):
                meta = await self.meta(group)
                return f"{name}: catalogue of {len(meta.streams)} streams, {self._raft(group)}"
        except Unreadable as error:
            self._problems.append(f"group {name}: {error}")
            return f"{name}: unreadable"
        marks = {
            MEMORY_MARK: "votes of a memory stream",
            STAGED_MARK: "a snapshot that was on its way, to be removed at the next start",
            PROVISIONAL_MARK: "a restore that was interrupted, to be removed at the next start",
        }
        return f"{name}: {marks.get(name[0], 'unknown')}"

    async def meta(self, group: StoredGroup) -> Meta:
        """The catalogue as its group has it. Raises Unreadable."""
        self.catalogue = Meta(self._runtime, self._log)
        await self._bring_back(group, self.catalogue)
        return self.catalogue

    async def stream(self, group: StoredGroup) -> Stream | None:
        """A stream as its group has it; None when nothing tells its configuration."""
        stream = Stream(self._account, StreamConfig("?"), 0, self._environment())
        try:
            await self._bring_back(group, stream)
        except Unreadable as error:
            self._problems.append(f"group {group.name}: {error}")
        return stream if stream.configured else None

    def _environment(self) -> Environment:
        def consumers(stream: Stream) -> ConsumerSet:
            return ConsumerSet(
                stream, self._account, self._runtime, lambda: traits_of(stream.config), ServerLimits(), self._log
            )

        return Environment(self._runtime, BlockCache(_CACHE), self._log, consumers)

    async def _bring_back(self, group: StoredGroup, machine: StateMachine) -> None:
        """Snapshot, then log. Raises Unreadable where a log ends too early."""
        audit = self._audit
        if group.snapshot_index:
            if group.state is None:
                raise Unreadable("; ".join(group.damage))
            blocks = [StoredBlock(i, note, load=partial(audit.block, group, i)) for i, note in group.blocks]
            await machine.restore(group.state, blocks)
        self._check_members(group, group.members)
        expected, term = group.snapshot_index + 1, group.snapshot_term
        for stored in audit.log(group):
            if stored.data is None or stored.index != expected:
                raise Unreadable(f"entry {expected} is damaged or missing, and so is the way to those behind it")
            if not term <= stored.term <= group.term:
                self._problems.append(f"group {group.name}: entry {expected} of term {stored.term} after term {term}")
            expected, term = expected + 1, max(term, stored.term)
            if stored.kind == MEMBERSHIP:
                self._check_members(group, stored.data)
            elif stored.kind > MEMBERSHIP:
                entry = Entry(stored.index, stored.term, stored.kind, stored.data, None, stored.messages)
                self._apply(group, machine, entry)

    def _apply(self, group: StoredGroup, machine: StateMachine, entry: Entry) -> None:
        try:
            for _ in machine.apply(entry) or ():
                pass
        except OF_THIS_NODE:
            raise
        except Exception as error:  # a node refuses it likewise, and goes on
            refusal = refused(machine, entry, error)
            self._problems.append(
                f"group {group.name}: entry {entry.index} ({name_of(entry.kind)}) is refused: {refusal.reason}"
            )

    def _check_members(self, group: StoredGroup, members: bytes) -> None:
        try:
            self.members[group.name] = Membership.decode(members)
        except (ValueError, TypeError) as error:
            self._problems.append(f"group {group.name}: its membership cannot be read ({error})")

    def _raft(self, group: StoredGroup) -> str:
        members = self.members.get(group.name, "membership unreadable")
        return f"term {group.term}, snapshot {group.snapshot_index}, last entry {group.last}, {members}"

    def _check_stream(self, name: str, stream: Stream, group: StoredGroup) -> str:
        store, complain = stream.store, self._problems.append
        last = live = 0
        for block in store.blocks:
            if block.first <= last:
                complain(f"stream {stream.name}: sequences of block {block.index} overlap those before it")
            last, live = block.last, live + block.live
        if last > store.last_seq or live != store.messages:
            complain(f"stream {stream.name}: its blocks hold {live} messages up to {last}, its state says otherwise")
        for consumer_name in stream.consumers.names():
            self._check_consumer(stream, consumer_name)
        lost = f", {len(store.lost)} lost to damage" if store.lost else ""
        return (
            f"{name}: stream {stream.name}, {store.messages} messages, sequences {store.first_seq} to "
            f"{store.last_seq}{lost}, {len(stream.consumers)} consumers, {self._raft(group)}"
        )

    def _check_consumer(self, stream: Stream, name: str) -> None:
        consumer = stream.consumers.get(name)
        assert consumer is not None
        state, where = consumer.state, f"stream {stream.name}, consumer {name}"
        if state.floor_seq > state.delivered_seq or state.floor_number > state.delivered_number:
            self._problems.append(f"{where}: acknowledged beyond what was delivered")
        gone = [seq for seq in state.pending if seq > state.delivered_seq or not stream.live(seq)]
        if gone:
            self._problems.append(f"{where}: waits for the acknowledgement of message {gone[0]}, which is not there")
        if state.pending and list(state.pending) != sorted(state.pending):
            self._problems.append(f"{where}: its unacknowledged messages are out of order")

    def compare_catalogue(self) -> list[str]:
        """Streams that the catalogue knows and storage does not, or the other way round."""
        meta = self.catalogue
        if meta is None:
            return ["there is no catalogue"] if self._seen else []
        known = {record.group for record in meta.streams.values()}
        return [f"group {group}: not in the catalogue" for group in sorted(self._seen - known - meta.removed)]
