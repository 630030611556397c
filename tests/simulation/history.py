"""One history: a seed becomes a cluster, a workload and faults; then all is healed, and everything is checked.

Owns the order of things and the demands at the end: safety at every moment, then convergence within bounded virtual
time once nothing is wrong any more.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from tests.simulation import inspection
from tests.simulation.client import Client, Disconnected, NoResponders
from tests.simulation.consuming import Consumer, Puller, check_deliveries, check_queue
from tests.simulation.inspection import Wanted
from tests.simulation.keyvalue import Bucket, Writer, check_bucket
from tests.simulation.limits import small_limits
from tests.simulation.loop import Escaped
from tests.simulation.mutations import planted
from tests.simulation.nemesis import Nemesis
from tests.simulation.observer import Observer, watching
from tests.simulation.publishing import Publisher, Stream, check_named, check_publishes
from tests.simulation.stranger import STREAM, Stranger
from tests.simulation.world import NodeLog, Violation, World

_CONVERGE: Final = 90.0
"""Virtual seconds within which a healed cluster must be whole."""
KEPT: Final[list[object]] = []
"""Histories that have ended, so that nothing of them is cleaned up."""


@dataclass(slots=True)
class Result:
    """What became of one seed. `failure` is empty when all was well."""

    seed: int
    steps: int
    failure: str = ""
    trace: int = 0
    tail: str = ""
    events: int = 0
    virtual: float = 0.0
    cpu: float = 0.0
    acknowledged: int = 0
    delivered: int = 0
    written: int = 0
    elections: int = 0
    applied: int = 0


class History:
    """One run. `seed` and `steps` decide everything."""

    def __init__(self, seed: int, steps: int, *, aloud: bool = False) -> None:
        self.world = World(seed, aloud=aloud)
        self.steps = steps
        self.random = random = Random(self.world.random.getrandbits(64))
        self.observer = Observer(self.world)
        self.admin = Client(self.world, "admin")
        self.publishers: list[Publisher] = []
        self.pullers: list[Puller] = []
        self.writers: list[Writer] = []
        self.consumers: list[Consumer] = []
        self.limited = Random(seed).choice([1, 2, 3]) if seed % 4 == 3 else 0
        """`max_deliver` of one more consumer, in a quarter of all histories."""
        self.size = random.choice([1, 2, 3, 3, 3, 3, 5])
        replicas = random.choice([[3], [3], [1, 2, 3]])
        self.streams = [Stream("S", random.choice(replicas))]
        self.queue = Stream("W", random.choice(replicas)) if random.random() < 0.4 else None
        keys = [f"key{number}" for number in range(random.choice([1, 2, 4]))]
        self.bucket = Bucket("B", random.choice(replicas), keys) if random.random() < 0.5 else None
        if self.queue is not None:
            self.streams.append(self.queue)
        self.wanted = [Wanted(stream.name, stream.replicas) for stream in self.streams]
        if self.bucket is not None:
            self.wanted.append(Wanted(self.bucket.stream, self.bucket.replicas))
        self.stranger = Stranger(self.world, seed, random.choice(replicas)) if seed % 4 == 1 else None
        if self.stranger is not None:
            self.wanted.append(Wanted(STREAM, self.stranger.replicas))
        self.nemesis = Nemesis(self.world, self.wanted, self.admin)

    async def _main(self) -> None:
        world = self.world
        await self._form()
        await self._create()
        workers = [*self.publishers, *self.pullers, *self.writers]
        running = [worker.client.process.spawn(worker.run()) for worker in workers]
        if self.stranger is not None:
            running.append(self.stranger.client.process.spawn(self.stranger.run()))
        await asyncio.sleep(1.0)
        await self.nemesis.run(self.steps)
        await self.nemesis.heal()
        await self._until("the cluster converges", lambda: inspection.whole(world, self.wanted))
        before = {worker: worker.acknowledged for worker in self.publishers}
        await self._until("publishers go on", lambda: all(one.acknowledged > before[one] for one in self.publishers))
        await self._dismiss()
        for worker in (*self.publishers, *self.writers):
            worker.stopping = True
        for puller in self.pullers:
            puller.careless = False
        ends = running[: len(self.publishers)] + running[len(self.publishers) + len(self.pullers) :]
        await self._until("publishers end", lambda: all(task.done() for task in ends))
        await self._until("consumers drain", lambda: all(consumer.drained() for consumer in self.consumers))
        for puller in self.pullers:
            puller.stopping = True
        await self._until("consumers end", lambda: all(task.done() for task in running))
        await self._until("replicas agree", lambda: inspection.agreed(world, self.wanted))
        await self._check()

    async def _dismiss(self) -> None:
        """The stranger has its answers like everybody, and goes."""
        stranger = self.stranger
        if stranger is None:
            return
        before = stranger.answered
        await self._until("the stranger is answered", lambda: stranger.answered > before + 3)
        stranger.stopping = True

    # The beginning

    async def _form(self) -> None:
        machines = self.world.machines[: self.size]
        if self.random.random() < 0.25:
            for machine in machines:
                machine.start()
            await self._until("nodes start", lambda: all(machine.up for machine in machines))
            await self._until("nodes become one", lambda: inspection.whole(self.world, []))
            return
        for machine in machines:
            machine.start()
            await self._until(f"{machine.name} starts", lambda machine=machine: machine.up)

    async def _create(self) -> None:
        for stream in self.streams:
            config: dict[str, Any] = {"name": stream.name, "subjects": [f"{stream.name}.>"]}
            config |= {"num_replicas": stream.replicas, "duplicate_window": 3600 * 10**9}
            if stream is self.queue:
                config["retention"] = "workqueue"
            await self._ask(f"$JS.API.STREAM.CREATE.{stream.name}", config)
            for _ in range(self.random.choice([1, 2, 3]) if stream is not self.queue else 1):
                self.publishers.append(Publisher(self.world, stream, len(self.publishers) + 1))
            if stream is self.queue or self.random.random() < 0.5:
                consumer = Consumer(stream, "C", self.random.choice([1.0, 3.0]))
                await self._consume(consumer, self.random.choice([1, 2]))
        if self.limited:
            await self._consume(Consumer(self.streams[0], "L", 0.5, max_deliver=self.limited), 1)
        if self.stranger is not None:
            await self._ask(f"$JS.API.STREAM.CREATE.{STREAM}", self.stranger.config())
            body = {"stream_name": STREAM, "config": {"durable_name": "G", "ack_policy": "all"}}
            await self._ask(f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.G", body)
        if self.bucket is not None:
            await self._ask(f"$JS.API.STREAM.CREATE.{self.bucket.stream}", self.bucket.config())
            for _ in range(self.random.choice([1, 2, 3])):
                self.writers.append(Writer(self.world, self.bucket, len(self.writers) + 1))

    async def _consume(self, consumer: Consumer, pullers: int) -> None:
        self.consumers.append(consumer)
        subject = f"$JS.API.CONSUMER.DURABLE.CREATE.{consumer.stream.name}.{consumer.name}"
        await self._ask(subject, {"stream_name": consumer.stream.name, "config": consumer.config()})
        for _ in range(pullers):
            self.pullers.append(Puller(self.world, consumer, len(self.pullers) + 1))

    async def _ask(self, subject: str, body: object) -> None:
        """An API request that is repeated until it has succeeded. Nothing is wrong yet."""
        end = self.world.loop.now + _CONVERGE
        answer: object = None
        while self.world.loop.now < end:
            await self.admin.process.spawn(self.admin.connect())
            asking = self.admin.process.spawn(self.admin.request(subject.encode(), json.dumps(body).encode()))
            try:
                answer = json.loads((await asking)[1])
            except (Disconnected, NoResponders, TimeoutError) as error:
                answer = error
            if isinstance(answer, dict) and "error" not in answer:
                return
            self.world.trace("admin", f"asks again {subject}", answer)
            await asyncio.sleep(0.3)
        raise Violation(f"{subject} is answered with {answer}")

    async def _until(self, what: str, condition: Callable[[], object]) -> None:
        end = self.world.loop.now + _CONVERGE
        while not condition():
            if self.world.loop.now > end:
                raise Violation(f"does not happen within {_CONVERGE:g} s: {what}\n{inspection.state(self.world)}")
            await asyncio.sleep(0.05)

    # The end

    async def _check(self) -> None:
        for stream in self.streams:
            held, last = await inspection.same_everywhere(self.world, stream.name)
            messages = {seq: message[:2] for seq, message in held.items()}
            if stream is self.queue:
                (consumer,) = (each for each in self.consumers if each.stream is stream)
                check_queue(consumer, messages, last)
                gone = {seq: (b"", payload) for seq, payload in consumer.delivered.items()}
                messages = {**gone, **messages}
            check_publishes(stream, messages, last)
            check_named(stream, [each for each in self.publishers if each.stream is stream], messages)
            for consumer in self.consumers:
                if consumer.stream is stream:
                    check_deliveries(consumer, messages)
        if self.stranger is not None:
            await inspection.same_everywhere(self.world, STREAM)
            inspection.named_everywhere(self.world, STREAM)
        if self.bucket is not None:
            held, _ = await inspection.same_everywhere(self.world, self.bucket.stream)
            check_bucket(self.bucket, held)

    def run(self) -> None:
        """Raises Violation, or whatever a bug raises."""
        with ExitStack() as stack:
            stack.enter_context(watching(self.observer))
            stack.enter_context(small_limits(self.random, self.world.network.delay))
            stack.enter_context(self.nemesis.weather.over())
            stack.enter_context(_logging(NodeLog(self.world)))
            self.world.loop.run(self._main(), 3600.0)


@contextmanager
def _logging(handler: NodeLog) -> Iterator[None]:
    root = logging.getLogger("nimsnats")
    level, propagate = root.level, root.propagate
    root.addHandler(handler)
    root.propagate = False
    root.setLevel(logging.DEBUG if handler.world.trace.aloud else logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.propagate = propagate
        root.setLevel(level)


def run_history(seed: int, steps: int, *, aloud: bool = False, mutation: str = "") -> Result:
    """Run one seed in this process and say what came of it. The process must end soon after, without cleaning up: what
    killed processes leave behind is not fit to be run (see `child.py`)."""
    gc.disable()
    began = time.process_time()
    result = Result(seed, steps)
    bug = ExitStack()
    bug.enter_context(planted(mutation))
    history = History(seed, steps, aloud=aloud)
    try:
        history.run()
    except Violation as error:
        result.failure = str(error)
    except Escaped as error:
        cause = error.__cause__
        whole = "".join(traceback.format_exception(cause)) if cause is not None else ""
        result.failure = str(cause) if isinstance(cause, Violation) else f"{error}\n{whole}"
    except Exception as error:
        result.failure = f"{error!r}\n{''.join(traceback.format_exception(error))}"
    world = history.world
    result.tail = world.trace.tail(60) if result.failure else ""
    result.trace, result.events, result.virtual = world.trace.hash, world.loop.events, world.loop.now
    result.cpu = time.process_time() - began
    result.acknowledged = sum(publisher.acknowledged for publisher in history.publishers)
    result.delivered = sum(consumer.deliveries for consumer in history.consumers)
    result.written = sum(writer.written for writer in history.writers)
    result.elections, result.applied = history.observer.elections, history.observer.applied
    KEPT.extend((history, bug))
    return result
