"""The stream as a state machine: the same entries make the same state, with or without a proposer's memory of them."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.server import Broker
from nimsnats.jetstream import kinds
from nimsnats.jetstream.account import JetStreamAccount
from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.blocks import BlockCache
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.config_rules import checked
from nimsnats.jetstream.consumer.rules import ServerLimits, traits_of
from nimsnats.jetstream.consumer.set import ConsumerSet
from nimsnats.jetstream.content import Outcome, Publication
from nimsnats.jetstream.info import stream_state
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.publish import Markers
from nimsnats.jetstream.stream import Environment, Stream
from nimsnats.raft.machine import Entry, LogDamage, StoredBlock
from nimsnats.runtime import Runtime

assert JetStreamAccount  # the package is imported as the engine imports it

LOG = logging.getLogger("test")


class Log:
    """A group that commits at once and remembers every entry."""

    name, leading, leader, term, accepting, alone = "S", True, "", 1, True, True

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.entries: list[Entry] = []

    @property
    def applied(self) -> int:
        return len(self.entries)

    committed = applied

    def propose(self, kind: int, data: bytes, context: object | None = None, messages: int = 0) -> None:
        entry = Entry(len(self.entries) + 1, 1, kind, data, context, messages)
        self.entries.append(Entry(entry.index, 1, kind, data, None, messages))
        self.stream.apply(entry)

    def read_block(self, index: int) -> Awaitable[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        future.set_result(self.entries[index - 1].data)
        return future

    async def rewrite_block(self, index: int, data: bytes) -> None:
        self.entries[index - 1].data = data


def new_stream(**config: Any) -> tuple[Stream, Log]:
    runtime = Runtime.real()
    account = Broker(BrokerOptions(), runtime).global_account

    def consumers(stream: Stream) -> ConsumerSet:
        return ConsumerSet(stream, account, runtime, lambda: traits_of(stream.config), ServerLimits(), LOG)

    settings = checked(StreamConfig("S", subjects=["s.>"], **config), pedantic=False)
    stream = Stream(account, settings, 1, Environment(runtime, BlockCache(1 << 24), LOG, consumers))
    log = Log(stream)
    stream.opened(log)
    return stream, log


def publish(stream: Stream, log: Log, now: int, messages: list[tuple[bytes, bytes, bytes]]) -> None:
    subjects, headers, payloads = (list(column) for column in zip(*messages, strict=True))
    batch = Batch(now, subjects, payloads, headers if any(headers) else None)
    context = Publication(batch) if stream.store.last_seq % 2 else None
    log.propose(kinds.MESSAGES, batch.encode(), context, messages=len(messages))


def header(**values: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in values.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def random_history(stream: Stream, log: Log, source: random.Random) -> None:
    second = 10**9
    for step in range(1, 60):
        now = step * second // 2
        headers = [
            b"",
            b"",
            header(X="y"),
            header(Nats_Msg_Id=f"id{source.randrange(30)}"),
            header(Nats_Expected_Last_Sequence=str(stream.last_seq)),
            header(Nats_Rollup="sub"),
            header(Nats_TTL=f"{source.randrange(1, 5)}s"),
            header(Nats_TTL="never"),
        ]
        plain = source.random() < 0.5
        publish(
            stream,
            log,
            now,
            [
                (b"s.%d" % source.randrange(8), b"" if plain else source.choice(headers), b"x" * source.randrange(20))
                for _ in range(source.choice([1, 2, 15]))
            ],
        )
        action = source.random()
        if action < 0.15:
            log.propose(kinds.STREAM_DELETE_MESSAGE, pack({"seq": source.randrange(1, stream.last_seq + 2)}))
        elif action < 0.2:
            fields = {"filter": b"s.%d" % source.randrange(8), "seq": 0, "keep": source.randrange(3)}
            log.propose(kinds.STREAM_PURGE, pack(fields))
        elif action < 0.22:
            log.propose(kinds.STREAM_PURGE, pack({"filter": b"", "seq": stream.last_seq - 3, "keep": 0}))
        elif action < 0.4:
            log.propose(kinds.STREAM_EXPIRE, pack({"now": now}))
        elif action < 0.45:
            batch = Markers.at(now, [b"s.1", b"s.2"], 2 * second).batch
            log.propose(kinds.MESSAGES, batch.encode(), messages=2)


CONFIGS: list[dict[str, Any]] = [
    {},
    {"max_msgs": 25},
    {"max_bytes": 1500, "max_age": 8 * 10**9, "duplicate_window": 5 * 10**9},
    {"max_msgs_per_subject": 2, "allow_rollup_hdrs": True, "allow_msg_ttl": True},
    {"max_msgs": 30, "discard": "new", "max_msgs_per_subject": 5},
    {"subject_delete_marker_ttl": 10**9, "max_age": 10 * 10**9, "max_msg_size": 60},
    {"retention": "interest"},
    {"retention": "workqueue", "storage": "memory"},
]


async def contents(stream: Stream) -> list[Any]:
    return [await stream.load(seq) for seq in range(1, stream.last_seq + 1) if stream.live(seq)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", CONFIGS, ids=str)
async def test_replay_and_snapshots_make_the_same_stream(config: dict[str, Any], seed: int) -> None:
    source = random.Random(seed)
    stream, log = new_stream(**config)
    random_history(stream, log, source)
    expected = await contents(stream)

    replayed, other = new_stream(**config)
    other.entries = log.entries
    for entry in log.entries:
        replayed.apply(entry)
    assert stream_state(replayed) == stream_state(stream)
    assert await contents(replayed) == expected

    at = len(log.entries) * 2 // 3
    half, half_log = new_stream(**config)
    half_log.entries = log.entries
    for entry in log.entries[:at]:
        half.apply(entry)
    snapshot = half.snapshot()
    restored, restored_log = new_stream(**config)
    restored_log.entries = log.entries
    blocks = [StoredBlock(note.index, note.note, log.entries[note.index - 1].data) for note in snapshot.blocks]
    await restored.restore(snapshot.state, blocks)
    assert stream_state(restored) == stream_state(half)
    for entry in log.entries[at:]:
        restored.apply(entry)
    assert stream_state(restored) == stream_state(stream)
    assert await contents(restored) == expected
    assert json.dumps(stream_state(stream))


class Answered(Publication):
    """Remembers what became of it."""

    outcomes: Sequence[Outcome] = ()

    def stored(self, first: int) -> None:
        self.outcomes = range(first, first + len(self.batch))

    def decided(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = outcomes


def history_under_way(stream: Stream, log: Log, source: random.Random) -> dict[int, bytes]:
    """Batches that are proposed while up to two others are under way, many of their messages refused. Returns what was
    stored under every sequence."""
    truth: dict[int, bytes] = {}
    notes = [b""]
    for step in range(1, 40):
        payloads = [b"%d-%d" % (step, at) for at in range(source.choice([1, 2, 9]))]
        headers = [
            source.choice(
                [
                    b"",
                    header(Nats_Msg_Id=f"id{source.randrange(40)}"),
                    header(Nats_Expected_Last_Sequence=str(stream.last_seq)),
                    header(Nats_Expected_Last_Subject_Sequence=str(stream.last_seq)),
                ]
            )
            for _ in payloads
        ]
        batch = Batch(step, [b"s.%d" % source.randrange(4) for _ in payloads], payloads, headers)
        batch.told = notes[max(0, len(notes) - 1 - source.randrange(3))]
        context = Answered(batch)
        log.propose(kinds.MESSAGES, batch.encode(), context, messages=len(payloads))
        truth.update(
            (seq, payload) for seq, payload in zip(context.outcomes, payloads, strict=True) if isinstance(seq, int)
        )
        notes.append(stream.tell())
        if source.random() < 0.1:
            seq = stream.last_seq + source.choice([-3, 50])
            log.propose(kinds.STREAM_PURGE, pack({"filter": b"", "seq": max(seq, 1), "keep": 0}))
    log.propose(kinds.STREAM_TOLD, notes[-1])
    return truth


@pytest.mark.parametrize("config", [{}, {"max_msgs": 12, "discard": "new"}, {"max_msgs_per_subject": 3}], ids=str)
async def test_behind_lost_entries_every_message_has_the_sequence_that_was_acknowledged(config: dict[str, Any]) -> None:
    kept = given_up = 0
    for seed in range(60):
        source = random.Random(seed)
        stream, log = new_stream(**config)
        truth = history_under_way(stream, log, source)
        gone: set[int] = set()
        for _ in range(source.randrange(1, 4)):
            at = source.randrange(1, len(log.entries))
            gone |= set(range(at, min(at + source.randrange(1, 6), len(log.entries))))
        again, other = new_stream(**config)
        other.entries = log.entries
        lost: dict[int, int] = {}
        for entry in log.entries:
            if entry.index > min(gone) and entry.index not in gone:
                again.foresee(entry)
        for entry in log.entries:
            if entry.index in gone:
                lost[entry.index] = entry.messages
                continue
            if lost:
                again.damaged(LogDamage(lost, "checksum failed"))
                lost = {}
            again.apply(entry)
        named = set(again.store.lost)
        for seq in range(1, again.last_seq + 1):
            if again.live(seq):
                message = await again.load(seq)
                assert message is not None and message.payload == truth[seq], f"seed {seed}: {seq} is another message"
                kept += 1
        missing = {seq for seq in truth if stream.live(seq) and not again.live(seq)}
        assert missing <= named, f"seed {seed}: {missing - named} are gone and not named"
        assert again.last_seq == stream.last_seq, f"seed {seed}"
        given_up += len(missing)
    assert kept > given_up > 0


async def test_damage_is_named_and_sequences_are_not_used_again() -> None:
    stream, log = new_stream()
    for now in range(1, 6):
        publish(stream, log, now, [(b"s.%d" % now, b"", b"%d" % n) for n in range(10)])
    snapshot = stream.snapshot()
    again, _ = new_stream()
    blocks = [StoredBlock(note.index, note.note, log.entries[note.index - 1].data) for note in snapshot.blocks]
    blocks[1] = StoredBlock(blocks[1].index, blocks[1].note, None)
    blocks[3] = StoredBlock(blocks[3].index, blocks[3].note, b"garbage")
    await again.restore(snapshot.state, blocks)
    state = stream_state(again)
    assert (state["messages"], state["first_seq"], state["last_seq"]) == (30, 1, 50)
    assert state["lost"] == {
        "msgs": [*range(11, 21), *range(31, 41)],
        "bytes": 20 * stream.store.stored_size(b"s.1", b"", 1),
    }
    again.damaged(LogDamage({6: 7, 7: 0}, "checksum failed"))
    assert again.last_seq == 57 and len(stream_state(again)["lost"]["msgs"]) == 27
    again.apply(Entry(8, 1, kinds.MESSAGES, b"no batch at all", None, 2))
    assert again.last_seq == 59
    again.apply(Entry(9, 1, kinds.MESSAGES, Batch(9, [b"s.9"], [b"x"]).encode(), None, 1))
    assert again.last_seq == 60 and again.live(60)


async def test_when_the_state_of_a_snapshot_is_lost_the_blocks_tell_what_there_is() -> None:
    stream, log = new_stream()
    for now in range(1, 4):
        publish(stream, log, now, [(b"s.%d" % now, b"", b"%d" % n) for n in range(5)])
    log.propose(kinds.STREAM_DELETE_MESSAGE, pack({"seq": 1}))
    snapshot = stream.snapshot()
    again, _ = new_stream()
    blocks = [StoredBlock(note.index, note.note, log.entries[note.index - 1].data) for note in snapshot.blocks]
    await again.restore(b"", blocks)
    again.damaged(LogDamage({}, "both copies of the snapshot are damaged"))
    state = stream_state(again)
    assert (state["messages"], state["first_seq"], state["last_seq"]) == (14, 2, 15)
    again.apply(Entry(9, 1, kinds.MESSAGES, Batch(9, [b"s.9"], [b"x"]).encode(), None, 1))
    assert again.live(16)


@pytest.mark.parametrize("bad", range(5))
async def test_an_error_of_ours_in_a_batch_costs_the_rest_of_that_batch_alone(
    bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same place on every member, and with nothing that a later message, a snapshot or a reader trips over."""
    note = Stream._note_headers

    def broken(self: Stream, subject: bytes, block: bytes, *rest: Any) -> None:
        if b"X: bad" in block:
            raise KeyError("a bug")
        note(self, subject, block, *rest)

    monkeypatch.setattr(Stream, "_note_headers", broken)
    stream, log = new_stream()
    good, wrong = header(Nats_Expected_Stream="S"), header(Nats_Expected_Stream="S", X="bad")
    refused = header(Nats_Expected_Stream="T")
    publish(stream, log, 1, [(b"s.a", good, b"0")])
    batch = [(b"s.a", wrong if at == bad else refused if at == 1 else good, b"%d" % at) for at in range(5)]
    with pytest.raises(KeyError):
        publish(stream, log, 2, batch)
    publish(stream, log, 3, [(b"s.b", good, b"x"), (b"s.b", refused, b"y"), (b"s.b", good, b"z")])
    stored = [b"%d" % at for at in range(bad + 1) if at != 1 or bad == 1]
    assert [each[-1] for each in await contents(stream)] == [b"0", *stored, b"x", b"z"]
    again, _ = new_stream()
    for entry in log.entries:
        try:
            again.apply(entry)
        except KeyError:
            continue
    assert again.state() == stream.state()
    snapshot = stream.snapshot()
    blocks = [StoredBlock(note.index, note.note, log.entries[note.index - 1].data) for note in snapshot.blocks]
    await again.restore(snapshot.state, blocks)
    assert stream_state(again) == stream_state(stream)
