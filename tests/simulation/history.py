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
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from nimsnats.raft.transport import node_of
from tests.simulation.client import Client, Disconnected, NoResponders
from tests.simulation.nemesis import Nemesis
from tests.simulation.observer import Observer, watching
from tests.simulation.publishing import Publisher, Stream, check_named, check_publishes
from tests.simulation.world import NodeLog, Violation, World

_CONVERGE = 90.0
"""Virtual seconds within which a healed cluster must be whole."""


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
    elections: int = 0
    applied: int = 0


KEPT: Final[list[object]] = []
"""Histories that have ended, so that nothing of them is cleaned up."""


class History:
    """One run. `seed` and `steps` decide everything."""

    def __init__(self, seed: int, steps: int, *, aloud: bool = False) -> None:
        self.world = World(seed, aloud=aloud)
        self.steps = steps
        self.random = Random(self.world.random.getrandbits(64))
        self.observer = Observer(self.world)
        self.log = NodeLog(self.world)
        self.streams = [Stream("S", self.random.choice([1, 3, 3, 3]))]
        self.publishers: list[Publisher] = []
        self.admin = Client(self.world, "admin")
        self.nemesis = Nemesis(self.world)

    async def _main(self) -> None:
        world = self.world
        await self._form(3)
        for stream in self.streams:
            await self._create(stream)
            for _ in range(self.random.choice([1, 2, 3])):
                self.publishers.append(Publisher(world, stream, len(self.publishers) + 1))
        running = [publisher.client.process.spawn(publisher.run()) for publisher in self.publishers]
        await asyncio.sleep(1.0)
        await self.nemesis.run(self.steps)
        await self.nemesis.heal()
        before = sum(publisher.acknowledged for publisher in self.publishers)
        await self._until("the cluster converges", self._whole)
        await self._until(
            "publishers go on", lambda: sum(each.acknowledged for each in self.publishers) > before + len(running)
        )
        for publisher in self.publishers:
            publisher.stopping = True
        await self._until("publishers end", lambda: all(task.done() for task in running))
        await self._until("replicas agree", self._agreed)
        for stream in self.streams:
            await self._check(stream)
        for task in running:
            task.result()

    async def _form(self, count: int) -> None:
        for machine in self.world.machines[:count]:
            machine.start()
            await self._until(f"{machine.name} starts", lambda machine=machine: machine.up)

    async def _create(self, stream: Stream) -> None:
        config = {"name": stream.name, "subjects": [f"{stream.name}.>"], "num_replicas": stream.replicas}
        answer = await self.ask(f"$JS.API.STREAM.CREATE.{stream.name}", config)
        if "error" in answer:
            raise Violation(f"{stream.name} cannot be created: {answer['error']}")

    async def ask(self, subject: str, body: object) -> dict:
        """An API request that is repeated until it is answered."""
        while True:
            await self.admin.process.spawn(self.admin.connect())
            asking = self.admin.process.spawn(self.admin.request(subject.encode(), json.dumps(body).encode()))
            try:
                return json.loads((await asking)[1])
            except (Disconnected, NoResponders, TimeoutError):
                await asyncio.sleep(0.2)

    async def _until(self, what: str, condition: Callable[[], object]) -> None:
        end = self.world.loop.now + _CONVERGE
        while not condition():
            self.observer.check()
            if self.world.loop.now > end:
                raise Violation(f"does not happen within {_CONVERGE:g} s: {what}. {self._state()}")
            await asyncio.sleep(0.05)

    # What must become true

    def _state(self) -> str:
        lines = []
        for machine in self.world.used:
            engine = machine.engine
            if engine is None or not machine.up:
                lines.append(f"{machine.name} up={machine.up} running={machine.running}")
                continue
            groups = ", ".join(
                f"{group.name}: term {group.term} leader {group.leader} members {list(map(node_of, group.members))}"
                f" learners {list(map(node_of, group.learners))} applied {group.applied}"
                f" committed {group.committed} last {group.core.log.last} impaired={group.impaired}"
                for group in engine.host.groups()
            )
            joining = engine.cluster is not None and engine.cluster.joining
            lines.append(f"{machine.name} joining={joining} {groups}")
        return "; ".join(lines)

    def _whole(self) -> bool:
        names = sorted(machine.name for machine in self.world.used)
        for machine in self.world.used:
            engine = machine.engine
            if not machine.up or engine is None or engine.cluster is None or engine.cluster.joining:
                return False
            if sorted(map(node_of, engine.meta.group.members)) != names or not engine.meta.group.leader:
                return False
        return all(self._placed(stream) for stream in self.streams)

    def _placed(self, stream: Stream) -> bool:
        """Whether a stream has all its replicas and a leader."""
        holders = self._holders(stream)
        wanted = min(stream.replicas, len(self.world.used))
        leaders = [served for served in holders.values() if served.stream.leading]
        if len(leaders) != 1 or len(holders) != wanted:
            return False
        group = leaders[0].stream.group
        return sorted(map(node_of, group.members)) == sorted(holders) and not group.learners

    def _holders(self, stream: Stream) -> dict:
        found = {}
        for machine in self.world.used:
            engine = machine.engine
            if engine is not None and "$G" in engine.accounts:
                served = engine.accounts["$G"].streams.get(stream.name)
                if served is not None:
                    found[machine.name] = served
        return found

    def _agreed(self) -> bool:
        for stream in self.streams:
            tops = {served.stream.group.applied for served in self._holders(stream).values()}
            commits = {served.stream.group.committed for served in self._holders(stream).values()}
            if not self._placed(stream) or len(tops) != 1 or tops != commits:
                return False
        return True

    async def _check(self, stream: Stream) -> None:
        copies = {}
        for name, served in self._holders(stream).items():
            process = self.world.machine(name).process
            assert process is not None
            copies[name] = await process.spawn(_content(served))
        first, held = next(iter(copies.items()))
        for name, other in copies.items():
            if other != held:
                seqs = [seq for seq in sorted(held.keys() | other.keys()) if held.get(seq) != other.get(seq)]
                raise Violation(f"{stream.name} differs on {first} and {name} at {seqs[:5]}")
        messages = {seq: each[:2] for seq, each in held.items()}
        check_publishes(stream, messages)
        check_named(stream, [each for each in self.publishers if each.stream is stream], messages)

    def run(self) -> None:
        """Raises Violation, or whatever a bug raises."""
        world = self.world
        with watching(self.observer):
            root = logging.getLogger("nimsnats")
            level, propagate = root.level, root.propagate
            root.addHandler(self.log)
            root.propagate = False
            root.setLevel(logging.DEBUG if world.trace.aloud else logging.INFO)
            try:
                world.loop.run(self._main(), 3600.0)
            finally:
                root.removeHandler(self.log)
                root.propagate = propagate
                root.setLevel(level)
        self.observer.check()
        if self.log.failures:
            raise Violation(self.log.failures[0])
        if world.loop.broken:
            raise Violation(f"escaped: {world.loop.broken[0]}") from world.loop.broken[0].get("exception")


async def _content(served) -> dict[int, tuple[bytes, bytes, bytes, int]]:
    stream = served.stream
    held = {}
    for seq in range(max(stream.first_seq, 1), stream.last_seq + 1):
        if stream.live(seq):
            message = stream.get(seq) or await stream.load(seq)
            if message is None:
                raise Violation(f"{stream.name} cannot read {seq}")
            held[seq] = (message.subject, message.payload, message.headers, message.time)
    return held


def run_history(seed: int, steps: int, *, aloud: bool = False, mutation: str = "") -> Result:
    """Run one seed in this process and say what came of it. The process must end soon after, without cleaning up: what
    killed processes leave behind is not fit to be run (see `child.py`)."""
    gc.disable()
    began = time.process_time()
    history = History(seed, steps, aloud=aloud)
    result = Result(seed, steps)
    try:
        history.run()
    except Violation as error:
        result.failure = str(error)
    except Exception as error:
        result.failure = f"{error!r}\n{''.join(traceback.format_exception(error))}"
    world = history.world
    result.tail = world.trace.tail(60) if result.failure else ""
    result.trace, result.events, result.virtual = world.trace.hash, world.loop.events, world.loop.now
    result.cpu = time.process_time() - began
    result.acknowledged = sum(publisher.acknowledged for publisher in history.publishers)
    result.elections, result.applied = history.observer.elections, history.observer.applied
    KEPT.append(history)
    return result
