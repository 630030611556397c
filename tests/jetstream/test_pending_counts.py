"""What a consumer says it has yet to deliver is what a plain recount finds, however messages go away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from nimsnats.jetstream import content, kinds, removal
from nimsnats.jetstream import stream as streams
from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.consumer import retention
from nimsnats.jetstream.consumer.config import ConsumerConfig
from nimsnats.jetstream.consumer.consumer import Consumer
from nimsnats.jetstream.consumer.rules import ServerLimits, check, traits_of, with_defaults
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.stream import Stream
from nimsnats.protocol.subject import any_matcher
from nimsnats.raft.machine import Entry, StoredBlock
from tests.jetstream.test_stream_machine import Log, header, new_stream

SECOND = 10**9
FILTERS = [
    ["s.1.*", "s.2.b", "s.5.>"],
    ["s.2.a", "s.3.>"],
    ["s.*.a"],
    ["s.0.a", "s.1.b", "s.4.*"],
    ["s.none", "s.5.b"],
    [],
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a few messages."""
    for module, name, value in (
        (removal, "_MESSAGES", 3),
        (removal, "_SUBJECTS", 2),
        (removal, "_SORTED", 10),
        (streams, "_STEPS", 1),
        (content, "_AT_ONCE", 4),
        (content, "_CHECKED", 2),
        (retention, "_STEP", 2),
    ):
        monkeypatch.setattr(module, name, value)


class Stepping(Log):
    """Takes the steps of an entry one by one, and has a look between two of them."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self.between: Callable[[], None] = lambda: None
        self.steps = 0
        self._applying = False
        self._waiting: list[Entry] = []

    def propose(self, kind: int, data: bytes, context: object | None = None, messages: int = 0) -> None:
        entry = Entry(len(self.entries) + 1, 1, kind, data, context, messages)
        self.entries.append(Entry(entry.index, 1, kind, data, None, messages))
        self._waiting.append(entry)
        if self._applying:
            return
        self._applying = True
        while self._waiting:
            for _ in self.stream.apply(self._waiting.pop(0)) or ():
                self.steps += 1
                self.between()
        self._applying = False


class Life:
    """A stream with consumers through one random history."""

    def __init__(self, seed: int, retention: str) -> None:
        self.draw = random.Random(seed)
        self.now = SECOND
        self.notes: dict[int, bytes] = {}
        """Of the blocks, as of the last snapshot."""
        self.settings: dict[str, Any] = {
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
            "retention": retention,
            "max_age": 40 * SECOND,
        }
        self.stream, self.log = self._open()
        self.lead()

    def _open(self) -> tuple[Stream, Stepping]:
        stream, _ = new_stream(**self.settings)
        log = Stepping(stream)
        stream._group = log  # type: ignore[assignment]
        log.between = self._between
        return stream, log

    def lead(self) -> None:
        self.stream.leadership(True, 1)

    # What is true

    def held(self) -> dict[int, bytes]:
        stream = self.stream
        found = ((seq, stream.subject(seq)) for seq in range(1, stream.last_seq + 1))
        return {seq: subject for seq, subject in found if subject is not None}

    def consumers(self) -> list[Consumer]:
        consumers = self.stream.consumers
        return [one for name in consumers.names() if (one := consumers.get(name)) is not None]

    def check(self) -> None:
        held = self.held()
        assert (self.stream.store.messages, len(self.stream.store.index)) == (len(held), len(set(held.values())))
        for consumer in self.consumers():
            matches = any_matcher(consumer.filters) if consumer.filters else bool
            start = consumer.leading.next_seq
            told = consumer.info()["num_pending"]
            assert told == sum(seq >= start and bool(matches(held[seq])) for seq in held), consumer.filters

    def _between(self) -> None:
        """In the middle of a change: somebody asks, nobody is given anything, and what is told holds together."""
        stream = self.stream
        assert stream.unsettled and not stream.accepting
        held = self.held()
        assert (stream.store.messages, stream.store.first_seq) == (
            len(held),
            min(held, default=stream.store.last_seq + 1 if stream.store.last_seq else 0),
        )
        for consumer in self.consumers():
            before = consumer.leading.next_number
            if self.draw.random() < 0.3:
                consumer.info()
            consumer.serve(stream.consumers.now())
            assert consumer.leading.next_number == before

    # What happens

    def publish(self) -> None:
        draw, self.now = self.draw, self.now + SECOND
        kinds_of_headers = [b"", b"", b"", header(Nats_Rollup="sub"), header(Nats_TTL=f"{draw.randrange(1, 9)}s")]
        if draw.random() < 0.1:
            kinds_of_headers.append(header(Nats_Rollup="all"))
        subjects = [b"s.%d.%b" % (draw.randrange(6), draw.choice((b"a", b"b"))) for _ in range(draw.choice((1, 3, 12)))]
        headers = [draw.choice(kinds_of_headers) for _ in subjects] if draw.random() < 0.5 else None
        batch = Batch(self.now, subjects, [b"x"] * len(subjects), headers)
        self.log.propose(kinds.MESSAGES, batch.encode(), messages=len(batch))

    def propose(self, kind: int, **fields: Any) -> None:
        self.log.propose(kind, pack(fields))

    def configure(self, **changes: Any) -> None:
        self.settings |= changes
        self.propose(kinds.STREAM_CONFIG, config={**self.stream.config.to_stored(), **changes})

    def remove(self) -> None:
        draw, last = self.draw, self.stream.last_seq
        purge: dict[str, Any] = {"filter": b"", "seq": 0, "keep": 0}
        match draw.randrange(10):
            case 0 | 1 | 2:
                self.propose(kinds.STREAM_DELETE_MESSAGE, seq=draw.randrange(1, last + 2))
            case 3:
                wanted = draw.choice((b"s.1.*", b"s.*.a", b"s.2.b"))
                self.propose(kinds.STREAM_PURGE, **{**purge, "filter": wanted, "keep": draw.choice((0, 0, 2))})
            case 4:
                self.propose(kinds.STREAM_PURGE, **{**purge, "seq": draw.randrange(max(last - 20, 1), last + 2)})
            case 5:
                self.propose(kinds.STREAM_PURGE, **{**purge, "keep": draw.randrange(1, 15)})
            case 6:
                if draw.random() < 0.2:
                    self.propose(kinds.STREAM_PURGE, **purge)
            case 7:
                self.configure(max_msgs=draw.choice((-1, 30, 15)))
            case 8:
                self.configure(max_msgs_per_subject=draw.choice((-1, 3, 1)))
            case _:
                self.configure(max_age=draw.choice((40, 10)) * SECOND)
                self.propose(kinds.STREAM_EXPIRE, now=self.now)

    def create(self, name: str, action: str = "") -> None:
        traits = traits_of(self.stream.config)
        config = ConsumerConfig(name=name, durable_name=name, ack_policy="explicit")
        config.filter_subjects = self.draw.choice(FILTERS)
        config = with_defaults(config, traits, ServerLimits())
        check(config, traits, ServerLimits())
        done = self.stream.consumers.propose_create(config, name=name, generated=False, action=action)
        done.add_done_callback(lambda done: done.exception())

    async def read(self) -> None:
        consumers = self.consumers()
        if consumers:
            one = self.draw.choice(consumers)
            one.pull.request(b'{"batch":%d,"no_wait":true}' % self.draw.choice((1, 5)), b"inbox", one.owner.now())
            await self.rest()

    async def rest(self) -> None:
        """Until nothing is done any more."""
        for _ in range(12):
            await asyncio.sleep(0)

    async def restart(self) -> None:
        """From a snapshot."""
        await self.rest()
        self.stream.consumers.write_down()
        taken = self.stream.snapshot()
        entries = self.log.entries
        self.notes |= {record.index: record.note for record in taken.blocks}
        blocks = [
            StoredBlock(block.index, self.notes[block.index], entries[block.index - 1].data)
            for block in self.stream.store.blocks
        ]
        await self.stream.close()
        steps = self.log.steps
        self.stream, self.log = self._open()
        self.log.entries, self.log.steps = entries, steps
        await self.stream.restore(taken.state, blocks)
        self.lead()

    async def go(self, steps: int) -> None:
        for number in range(3):
            self.create(f"c{number}")
        for _ in range(steps):
            choice = self.draw.random()
            if choice < 0.4:
                self.publish()
            elif choice < 0.7:
                self.remove()
            elif choice < 0.9:
                await self.read()
            elif choice < 0.95:
                self.create(f"c{self.draw.randrange(3)}", self.draw.choice(("", "update")))
            elif choice < 0.97:
                done = self.stream.consumers.propose_delete(f"c{self.draw.randrange(3)}")
                done.add_done_callback(lambda done: done.exception())
            elif choice < 0.98:
                await self.restart()
            if self.draw.random() < 0.6:
                self.check()
        await self.rest()
        self.check()
        assert self.log.steps or steps < 100
        await self.stream.close()


@pytest.mark.parametrize("retention", ["limits", "interest"])
@pytest.mark.parametrize("seed", range(4))
async def test_a_pending_count_is_what_a_recount_finds(seed: int, retention: str) -> None:
    await Life(seed, retention).go(150)


@pytest.mark.extended
@pytest.mark.timeout(900)
@pytest.mark.parametrize("retention", ["limits", "interest"])
async def test_it_is_so_in_many_lives(retention: str) -> None:
    for seed in range(100, 200):
        await Life(seed, retention).go(400)
