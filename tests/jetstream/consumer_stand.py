"""A test stand for consumers: virtual time, a stream in memory, a real account, entries that apply one turn later."""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from nimsnats.broker.account import Account
from nimsnats.broker.stats import BrokerStats
from nimsnats.jetstream.consumer.config import ConsumerConfig
from nimsnats.jetstream.consumer.consumer import Consumer
from nimsnats.jetstream.consumer.pull import PullSide
from nimsnats.jetstream.consumer.rules import ServerLimits, StreamTraits, check, with_defaults
from nimsnats.jetstream.consumer.set import ConsumerSet
from nimsnats.jetstream.message import StoredMessage
from nimsnats.jetstream.source import Filters
from nimsnats.protocol.subject import matches
from nimsnats.raft.machine import Entry
from nimsnats.runtime import Runtime

START = 1_700_000_000 * 1_000_000_000


class VirtualLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as the consumers use, on a clock that only `advance` moves."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0

    def get_debug(self) -> bool:
        return False

    def time(self) -> float:
        return self._now

    def call_soon(self, callback, *args, context=None):  # type: ignore[no-untyped-def]
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[no-untyped-def]
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):  # type: ignore[no-untyped-def]
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro, *, name=None, context=None):  # type: ignore[no-untyped-def]
        return asyncio.Task(coro, loop=self, name=name)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise AssertionError(context)

    def settle(self) -> None:
        """Run until nothing is ready."""
        for _ in range(100_000):
            if not self._ready:
                return
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()
        raise AssertionError("the loop does not come to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        self.settle()
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, handle = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            if not handle.cancelled():
                handle._run()
            self.settle()
        self._now = end

    def pass_by(self, seconds: float) -> None:
        """Let time pass in the middle of a turn: timers that are due run in turns behind it."""
        self._now += seconds
        while self._timers and self._timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(self._timers)[2])


class Stream:
    """`MessageSource` over a dictionary. `held` entries wait until `release`; `cold` sequences have to be loaded."""

    def __init__(self, stand: Stand, retention: str) -> None:
        self._stand = stand
        self.name = "S"
        self.retention = retention
        self.messages: dict[int, StoredMessage] = {}
        self.last_seq = 0
        self.struck: dict[int, bytes] | None = None
        self.most = 1 << 62
        """Messages that are looked at, at most, before others have their turn."""
        self.lists = False
        """Whether matching messages are listed beforehand."""
        self.cold: set[int] = set()
        self.entries: list[Entry] = []
        self.history: list[tuple[str, Any]] = []
        """Everything that was applied, in log order: stored messages, entries, removals, purges."""
        self.held: list[Entry] | None = None
        self.refusing = False
        self.accepting = True
        self.index = 0

    @property
    def first_seq(self) -> int:
        return min(self.messages, default=self.last_seq + 1 if self.last_seq else 0)

    def _matching(self, filters: Filters) -> list[int]:
        wanted = [s for s, m in self.messages.items() if not filters or any(matches(m.subject, f) for f in filters)]
        return sorted(wanted)

    def next_match(self, filters: Filters, start: int) -> int:
        return next((seq for seq in self._matching(filters) if seq >= start), 0)

    def last_match(self, filters: Filters) -> int:
        return max(self._matching(filters), default=0)

    def sorting(self) -> Iterator[None]:
        yield

    def last_per_subject(self, filters: Filters) -> Iterator[list[int] | None]:
        yield None
        yield sorted({self.messages[seq].subject: seq for seq in self._matching(filters)}.values())

    def count_match(self, filters: Filters, start: int) -> int:
        return sum(seq >= start for seq in self._matching(filters))

    def covers(self, filters: Filters) -> bool:
        return not filters

    def count(self, filters: Filters, start: int, looks: int) -> tuple[int, int]:
        seqs = range(start, min(self.last_seq + 1, start + min(looks, self.most)))
        matching = set(self._matching(filters))
        return sum(seq in matching for seq in seqs), max(seqs.stop, start)

    def seek(self, filters: Filters, start: int, looks: int) -> tuple[int, int]:
        end = min(self.last_seq + 1, start + min(looks, self.most))
        found = self.next_match(filters, start)
        return (found, end) if found < end else (0, max(end, start))

    def upcoming(self, filters: Filters, start: int) -> tuple[list[int], int] | None:
        if not self.lists:
            return None
        end = min(self.last_seq, start + self.most)
        return [seq for seq in self._matching(filters) if start <= seq <= end], end

    def seq_at_time(self, time_ns: int) -> int:
        return next((s for s, m in sorted(self.messages.items()) if m.time >= time_ns), self.last_seq + 1)

    def get(self, seq: int) -> StoredMessage | None:
        return None if seq in self.cold else self.messages.get(seq)

    def subject(self, seq: int) -> bytes | None:
        return self.messages[seq].subject if seq in self.messages else None

    def arrivals(self, first: int) -> list[tuple[int, bytes]]:
        lowest: dict[bytes, int] = {}
        for seq in range(self.last_seq, first - 1, -1):
            if seq in self.messages:
                lowest[self.messages[seq].subject] = seq
        return sorted((seq, subject) for subject, seq in lowest.items())

    def strike(self, seq: int) -> None:
        message = self.messages.pop(seq, None)
        if message is not None and self.struck is not None:
            self.struck[seq] = message.subject

    def take_struck(self, more: bool) -> dict[int, bytes]:
        struck, self.struck = self.struck, {} if more else None
        return struck or {}

    def live(self, seq: int) -> bool:
        return seq in self.messages

    async def load(self, seq: int) -> StoredMessage | None:
        future = self._stand.loop.create_future()
        self._stand.loop.call_soon(future.set_result, None)
        await future
        self.cold.discard(seq)
        return self.messages.get(seq)

    def propose(self, kind: int, data: bytes, context: object | None = None) -> None:
        self.index += 1
        entry = Entry(self.index, 1, kind, data, context)
        if self.held is not None:
            self.held.append(entry)
        else:
            self._stand.loop.call_soon(self._apply, entry)

    def release(self) -> None:
        """Apply what was held back."""
        held, self.held = self.held or [], None
        for entry in held:
            self._apply(entry)
        self._stand.loop.settle()

    def _apply(self, entry: Entry) -> None:
        if self.refusing:
            self._stand.consumers.refuse(entry.context, OSError("disk full"))
            return
        self.entries.append(Entry(entry.index, entry.term, entry.kind, entry.data))
        self.history.append(("entry", self.entries[-1]))
        self._stand.apply(entry)

    def settled(self, seqs: list[int]) -> None:
        for seq in seqs:
            self.strike(seq)
        self._stand.consumers.removed(seqs)


class Message:
    """What arrived at an inbox."""

    def __init__(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        self.subject, self.reply, self.headers, self.payload = subject, reply, headers, payload
        tokens = reply.split(b".")
        if reply.startswith(b"$JS.ACK"):
            self.deliveries, self.seq, self.number, self.time, self.pending = map(int, tokens[4:])

    @property
    def status(self) -> str:
        """The status line without `NATS/1.0`, or the payload of a message."""
        if self.headers.startswith(b"NATS/1.0 "):
            return self.headers.split(b"\r\n")[0].decode()[9:]
        return self.payload.decode()

    def header(self, name: str) -> str | None:
        for line in self.headers.decode().split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key == name:
                return value
        return None


class Stand:
    """Everything together. Calls return when the loop has come to rest."""

    def __init__(self, retention: str = "limits", traits: StreamTraits | None = None) -> None:
        self.loop = VirtualLoop()
        self.runtime = Runtime(lambda: START + int(self.loop.time() * 1e9), random.Random(1), self.loop)
        self.account = Account("$G", BrokerStats(), 1, self.runtime.fence)
        self.stream = Stream(self, retention)
        self.traits = traits or StreamTraits("S", retention, ["s.>"])
        self.consumers = self.new_set()
        self.consumers.leadership(True)
        self.created: dict[str, Any] = {}
        """The answer to the last `create`."""
        self.arrived: dict[bytes, list[Message]] = {}
        self._inboxes: dict[bytes, Any] = {}

    def new_set(self) -> ConsumerSet:
        return ConsumerSet(
            self.stream, self.account, self.runtime, lambda: self.traits, ServerLimits(), logging.getLogger("test")
        )

    def apply(self, entry: Entry) -> None:
        """Apply an entry, with all its steps."""
        for _ in self.consumers.apply(entry) or ():
            pass

    def publish(self, *subjects: str, size: int = 0) -> None:
        first = self.stream.last_seq + 1
        for subject in subjects:
            seq = self.stream.last_seq = self.stream.last_seq + 1
            payload = f"m{seq}".encode() + b"x" * size
            message = StoredMessage(seq, self.runtime.time_ns(), subject.encode(), b"", payload)
            self.stream.messages[seq] = message
            self.stream.history.append(("stored", message))
        self.consumers.stored(first, self.stream.last_seq)
        self.loop.settle()

    def remove(self, *seqs: int) -> None:
        for seq in seqs:
            self.stream.strike(seq)
        self.stream.history.append(("removed", seqs))
        self.consumers.removed(seqs)
        self.loop.settle()

    def purge(self, below: int) -> None:
        """Remove every message below a sequence."""
        self.stream.messages = {seq: m for seq, m in self.stream.messages.items() if seq >= below}
        self.stream.history.append(("purged", below))
        self.consumers.purged()
        self.loop.settle()

    def create(self, name: str = "c", *, action: str = "", **fields: Any) -> Consumer:
        fields.setdefault("ack_policy", "explicit")
        config = ConsumerConfig(name=name, durable_name=name)
        if not fields.pop("durable", True):
            config.durable_name = ""
        for key, value in fields.items():
            setattr(config, key, value)
        config = with_defaults(config, self.traits, ServerLimits())
        check(config, self.traits, ServerLimits())
        future = self.consumers.propose_create(config, name=name, generated=False, action=action)
        self.loop.settle()
        self.created = future.result()
        consumer = self.consumers.get(name)
        assert consumer is not None
        return consumer

    def listen(self, subject: str = "inbox", queue: str = "") -> list[Message]:
        messages: list[Message] = self.arrived.setdefault(subject.encode(), [])

        def handler(shown: bytes, reply: bytes, headers: bytes, payload: bytes, origin: object) -> None:
            messages.append(Message(shown, reply, headers, payload))

        self._inboxes[subject.encode()] = self.account.subscribe(subject.encode(), handler, queue.encode())
        self.loop.settle()
        return messages

    def silence(self, subject: str = "inbox") -> None:
        self.account.unsubscribe(self._inboxes.pop(subject.encode()))
        self.loop.settle()

    def pull(self, consumer: Consumer, inbox: str = "inbox", **body: Any) -> list[Message]:
        """Send a request; the inbox's messages, old and new."""
        if inbox.encode() not in self._inboxes:
            self.listen(inbox)
        assert isinstance(consumer.side, PullSide)
        consumer.side.request(json.dumps(body).encode() if body else b"", inbox.encode(), self.consumers.now())
        self.loop.settle()
        return self.arrived[inbox.encode()]

    def ack(self, message: Message, payload: bytes = b"", reply: bytes = b"") -> int:
        reached = self.account.publish(message.reply, payload, reply=reply)
        self.loop.settle()
        return reached

    def advance(self, seconds: float) -> None:
        self.loop.advance(seconds)

    def advisories(self, kind: str) -> list[dict[str, Any]]:
        """Advisories of a kind from now on."""
        events: list[dict[str, Any]] = []
        record: Callable[..., None] = lambda s, r, h, payload, o: events.append(json.loads(payload))  # noqa: E731
        self.account.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.{kind}.>".encode(), record)
        return events

    def replay(self) -> Stand:
        """Another replica that has applied the same history and does not lead."""
        other = Stand(self.stream.retention, self.traits)
        other.loop._now = self.loop.time()
        other.consumers = other.new_set()
        for kind, what in self.stream.history:
            if kind == "stored":
                other.stream.messages[what.seq] = what
                other.stream.last_seq = what.seq
            elif kind == "entry":
                other.apply(what)
            elif kind == "removed":
                for seq in what:
                    other.stream.messages.pop(seq, None)
                other.consumers.removed(what)
            else:
                other.stream.messages = {seq: m for seq, m in other.stream.messages.items() if seq >= what}
                other.consumers.purged()
        return other


def texts(messages: list[Message]) -> list[str]:
    """Statuses and payloads in order."""
    return [message.status for message in messages]
