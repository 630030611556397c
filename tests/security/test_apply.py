"""Whatever stands in a log, `apply` is total: nothing leaves the group, it goes on, and all members agree.

Two members of a group are looked at: one that leads (through the real `HostedGroup`, with proposers who wait) and one
that follows. Afterwards both hold the same bytes, whoever proposed has an answer, and a restart from the snapshot, and
one that replays everything, make the same again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.server import Broker
from nimsnats.jetstream import kinds
from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.blocks import BlockCache
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.consumer.entries import Operation
from nimsnats.jetstream.consumer.rules import ServerLimits, traits_of
from nimsnats.jetstream.consumer.set import ConsumerSet
from nimsnats.jetstream.content import Outcome, Publication
from nimsnats.jetstream.kinds import CONSUMER_ACKS, CONSUMER_DELIVERED, CONSUMER_FIRST, CONSUMER_LAST
from nimsnats.jetstream.meta import Meta
from nimsnats.jetstream.stream import Environment, Stream
from nimsnats.raft.group import HostedGroup
from nimsnats.raft.home import Memory
from nimsnats.raft.host import Host
from nimsnats.raft.machine import BLOCK, Entry, StateMachine, StoredBlock
from nimsnats.raft.refusals import OF_THIS_NODE, refused
from nimsnats.runtime import Runtime
from nimsnats.storage import Database, open_database
from tests.broker.peer import until
from tests.security.strategies import META, STREAM, campaign, entries

LOG = logging.Logger("tests.apply", logging.CRITICAL)
Proposal = tuple[int, bytes]


class Answered(Publication):
    """Remembers that it was answered."""

    __slots__ = ("answer",)

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.answer: object = None

    def stored(self, first: int) -> None:
        self.answer = first

    def decided(self, outcomes: list[Outcome]) -> None:  # type: ignore[override]
        self.answer = outcomes

    def refused(self, error: Exception) -> None:
        self.answer = error


class Lab:
    """A host with a database, on which groups come and go."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.directory = directory
        self.number = 0
        self.runtime: Runtime
        self.database: Database
        self.host: Host

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def start(self) -> None:
        self.runtime = Runtime.real()
        self.database = await open_database(self.directory, self.runtime, "n1")
        self.host = Host(self.database, self.runtime, "n1", LOG)
        self.account = Broker(BrokerOptions(), self.runtime).global_account

    async def stop(self) -> None:
        await self.host.stop()
        await self.database.close()

    def stream(self) -> Stream:
        def consumers(stream: Stream) -> ConsumerSet:
            return ConsumerSet(
                stream, self.account, self.runtime, lambda: traits_of(stream.config), ServerLimits(), LOG
            )

        config = StreamConfig("S", subjects=["s.>"])
        return Stream(self.account, config, 1, Environment(self.runtime, BlockCache(1 << 20), LOG, consumers))

    def meta(self) -> Meta:
        return Meta(self.runtime, LOG)

    async def led(self, machine: Stream | Meta) -> HostedGroup:
        self.number += 1
        group = await self.host.open_group(f"G{self.number}", machine, storage="memory")
        machine.opened(group)
        assert isinstance(group, HostedGroup)
        return group


def apply(machine: StateMachine, entry: Entry) -> None:
    """As a member does that proposed nothing."""
    try:
        for _ in machine.apply(entry) or ():
            pass
    except OF_THIS_NODE:
        raise
    except Exception as error:
        refused(machine, entry, error)


def recorded(machine: StateMachine) -> list[Entry]:
    """What is applied to a machine from now on, as it stands in the log."""
    found: list[Entry] = []
    inner = machine.apply

    def note(entry: Entry) -> Iterator[None] | None:
        found.append(Entry(entry.index, entry.term, entry.kind, entry.data, None, entry.messages))
        return inner(entry)

    machine.apply = note  # type: ignore[method-assign]
    return found


def context_of(kind: int, stream: bool) -> tuple[object, asyncio.Future[Any]] | tuple[None, None]:
    """What a proposer of this kind waits with."""
    if kind & BLOCK or kind in (CONSUMER_DELIVERED, CONSUMER_ACKS, kinds.STREAM_TOLD):
        return None, None
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    operation = stream and CONSUMER_FIRST <= kind <= CONSUMER_LAST and kind != kinds.CONSUMER_RESTORED
    return Operation(done) if operation else done, done


async def propose_all(group: HostedGroup, proposals: list[Proposal]) -> None:
    """Have all of them applied, and everybody answered."""
    waiting: list[asyncio.Future[Any]] = []
    for kind, data in proposals:
        context, done = context_of(kind, isinstance(group.machine, Stream))
        group.propose(kind, data, context, messages=3 if kind & BLOCK else 0)
        if done is not None:
            waiting.append(done)
        await asyncio.sleep(0)
    await until(lambda: group.core.log.applied == group.core.log.last)
    assert not group.stopped and not group.failure
    assert all(done.done() for done in waiting), "a proposer waits for ever"
    for done in waiting:
        done.exception()


async def again(lab: Lab, make: Callable[[], Any], state: bytes, blocks: list[StoredBlock]) -> Any:
    machine = make()
    await machine.restore(state, blocks)
    return machine


async def check_stream(lab: Lab, proposals: list[Proposal]) -> None:
    leader, follower = lab.stream(), lab.stream()
    log = recorded(leader)
    group = await lab.led(leader)
    try:
        await propose_all(group, [*_start(), *proposals])
        batch = Batch(2**40, [b"s.z"], [b"later"])
        publication = Answered(batch)
        before = leader.last_seq
        leader.propose_batch(publication, batch.encode())
        await propose_all(group, [])
        answer = publication.answer
        stored = isinstance(answer, int) or (isinstance(answer, list) and answer == [before + 1])
        assert answer is not None and leader.last_seq == before + stored
        for entry in log:
            apply(follower, entry)
        ours = leader.snapshot()
        assert follower.snapshot().state == ours.state
        assert isinstance(group.home, Memory)
        notes = {record.index: record.note for record in ours.blocks}
        blocks = [
            StoredBlock(index, note, group.home.blocks[index][5])
            for index, note in sorted(notes.items())
            if index not in ours.dropped
        ]
        restored = await again(lab, lab.stream, ours.state, blocks)
        assert restored.snapshot().state == ours.state
        for seq in range(max(1, leader.first_seq), min(leader.last_seq, leader.first_seq + 40) + 1):
            assert leader.live(seq) == follower.live(seq) == restored.live(seq)
    finally:
        await leader.close(deleted=True)
        await lab.host.remove_group(group.name)


def _start() -> list[Proposal]:
    """A stream with a few messages and a consumer, so that there is something to harm."""
    import msgpack

    config = StreamConfig("S", subjects=["s.>"]).to_stored()
    batch = Batch(1, [b"s.a", b"s.b", b"s.a"], [b"1", b"2", b"3"])
    consumer = {
        "name": "c",
        "config": {"durable_name": "c", "deliver_policy": "all", "ack_policy": "explicit", "replay_policy": "instant"},
        "created": 1,
        "generated": False,
        "action": "",
    }
    pack = msgpack.packb
    return [
        (kinds.STREAM_CONFIG, pack({"config": config, "created": 1})),
        (kinds.MESSAGES, batch.encode()),
        (kinds.CONSUMER_CREATE, pack(consumer)),
        (CONSUMER_DELIVERED, pack([[3, 5, 3, 3, [1, 1, 5, 3], [], []]])),
    ]


async def check_meta(lab: Lab, proposals: list[Proposal]) -> None:
    leader, follower = lab.meta(), lab.meta()
    log = recorded(leader)
    group = await lab.led(leader)
    try:
        await propose_all(group, proposals)
        for entry in log:
            apply(follower, entry)
        state = leader.snapshot().state
        assert follower.snapshot().state == state
        restored = await again(lab, lab.meta, state, [])
        assert restored.snapshot().state == state and restored.streams == leader.streams
    finally:
        await lab.host.remove_group(group.name)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.run(lab.start())
    yield lab
    lab.run(lab.stop())
    lab.loop.close()


stream_logs = st.lists(entries(STREAM), min_size=1, max_size=4)
meta_logs = st.lists(entries(META, unlikely=kinds.META_GIVE_UP), min_size=1, max_size=3)


@campaign(200)
@given(proposals=stream_logs)
def test_a_stream_takes_whatever_stands_in_its_log(lab: Lab, proposals: list[Proposal]) -> None:
    lab.run(check_stream(lab, proposals))


@campaign(200)
@given(proposals=meta_logs)
def test_a_catalogue_takes_whatever_stands_in_its_log(lab: Lab, proposals: list[Proposal]) -> None:
    lab.run(check_meta(lab, proposals))


@pytest.mark.extended
@pytest.mark.timeout(3600)
@campaign(10_000)
@given(proposals=stream_logs)
def test_a_stream_takes_whatever_stands_in_its_log_at_length(lab: Lab, proposals: list[Proposal]) -> None:
    lab.run(check_stream(lab, proposals))


@pytest.mark.extended
@pytest.mark.timeout(3600)
@campaign(10_000)
@given(proposals=meta_logs)
def test_a_catalogue_takes_whatever_stands_in_its_log_at_length(lab: Lab, proposals: list[Proposal]) -> None:
    lab.run(check_meta(lab, proposals))
