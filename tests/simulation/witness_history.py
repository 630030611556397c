"""Whole nodes, two of them, and a registry that may fail: histories of the witness rule with everything around it.

Owns the faults that matter to two nodes: deaths longer than the registry's TTL, cuts between the nodes, and between
either node and the registry, a registry that is out or has forgotten everything. The workload and the demands are those
of every history (`history.py`): nothing acknowledged is lost, nothing diverges, and once all is healed all is whole.

    python -m tests.simulation.witness_history --seeds 1..200 [--steps 20] [--jobs 1]
    python -m tests.simulation.witness_history --seeds 17..17 --trace
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from nimsnats.cluster import witness
from nimsnats.raft.group import HostedGroup
from tests.simulation import history
from tests.simulation.child import run_seeds
from tests.simulation.client import Client
from tests.simulation.history import History, Result
from tests.simulation.inspection import Wanted
from tests.simulation.nemesis import Nemesis
from tests.simulation.publishing import Publisher, Stream
from tests.simulation.registry import HOST
from tests.simulation.world import World


class PairNemesis(Nemesis):
    """Faults of two nodes and their witness."""

    def __init__(self, world: World, wanted: list[Wanted], client: Client) -> None:
        super().__init__(world, wanted, client)
        faults = [
            self.kill,
            self.kill,
            self.restart,
            self.apart,
            self.cut_off,
            self.lonely,
            self.one_way,
            self.reset,
            self.freeze,
            self.slow_host,
            self.clock,
            self.forget,
            self.outage,
            self.mend,
            self.mend,
        ]
        self.faults = [fault for fault in faults if self.random.random() < 0.7] or faults
        self.ttl = world.hub.directory.ttl

    async def run(self, steps: int) -> None:
        """Do so many things, and let some of them last."""
        for _ in range(steps):
            await super().run(1)
            if self.random.random() < 0.4:
                await self.last()

    async def last(self) -> None:
        """Leave everything as it is for about a TTL."""
        await asyncio.sleep(self.ttl * (0.5 + self.random.random()))

    def kill(self) -> None:
        """kill -9, or the power goes, for a moment or for longer than the registry waits."""
        machine = self._one([each for each in self.world.used if each.running and not each.stopping])
        if machine is None:
            return
        machine.kill(power=self.random.random() < 0.5)
        if self.random.random() < 0.8:
            self.world.loop.call_later(self.random.choice([1.0, self.ttl * 1.5]), self._back, machine)

    def freeze(self) -> None:
        """A process sleeps, perhaps through its own expiry."""
        machine = self._one([each for each in self.world.used if each.up])
        if machine is not None and machine.process is not None and not machine.process.frozen:
            seconds = self.random.choice([0.5, self.ttl / 2, self.ttl * 1.5])
            self.say("freeze", f"{machine.name} {seconds:.1f}s")
            machine.process.frozen = True
            self.world.loop.call_later(seconds, machine.process.thaw)

    def apart(self) -> None:
        """The two do not hear each other; the registry hears both."""
        one, other = self._nodes()
        self._sever("apart", (one, other))

    def cut_off(self) -> None:
        """One hears nobody, not even the registry."""
        hosts = self._nodes()
        self.random.shuffle(hosts)
        self._sever("cut off", (hosts[0], hosts[1]), (hosts[0], HOST))

    def _nodes(self) -> list[str]:
        return [machine.host for machine in self.world.used]

    def lonely(self) -> None:
        """One does not reach the registry, or is not reached by its answers."""
        host = self.random.choice(self._nodes())
        if self.random.random() < 0.5:
            self._sever("lonely", (host, HOST))
        else:
            self.world.network.cut.add(self.random.choice([(host, HOST), (HOST, host)]))
            self.say("lonely in one direction", host)

    def _sever(self, what: str, *ways: tuple[str, str]) -> None:
        for one, other in ways:
            self.world.network.cut.update({(one, other), (other, one)})
        self.say(what, ways)
        self.world.network.change()

    def forget(self) -> None:
        """The registry restarts with nothing."""
        self.say("forget")
        self.world.hub.forget()

    def outage(self) -> None:
        """The registry does not answer, or answers again."""
        self.world.hub.out = not self.world.hub.out
        self.say("outage", self.world.hub.out)

    def mend(self) -> None:
        """Everybody can be heard again."""
        self.world.hub.out = False
        super().mend()

    async def heal(self) -> None:
        """Nothing is wrong any more."""
        self.world.hub.out = False
        await super().heal()


class PairHistory(History):
    """Two nodes, one stream on both."""

    def __init__(self, seed: int, steps: int, *, aloud: bool = False) -> None:
        super().__init__(seed, steps, aloud=aloud)
        self.size = 2
        self.streams = [Stream("S", self.random.choice([2, 3]))]
        self.queue = self.bucket = self.stranger = None
        self.wanted = [Wanted("S", self.streams[0].replicas)]
        self.nemesis = PairNemesis(self.world, self.wanted, self.admin)
        self.seized = 0

    async def _create(self) -> None:
        (stream,) = self.streams
        # longer than any history: two nodes may wait for each other for longer than the default window
        config = {"name": "S", "subjects": ["S.>"], "num_replicas": stream.replicas, "duplicate_window": 10**13}
        await self._ask("$JS.API.STREAM.CREATE.S", config)
        for number in range(self.random.choice([1, 2, 3])):
            self.publishers.append(Publisher(self.world, stream, number + 1))

    def run(self) -> None:
        seize = HostedGroup.seize

        def counted(group: HostedGroup) -> None:
            self.seized += 1
            self.world.trace(group.host.node_name, "goes alone", group.name)
            seize(group)

        with patch.object(HostedGroup, "seize", counted):
            super().run()


def _without(*conditions: witness.Condition) -> Callable[[], AbstractContextManager[Any]]:
    """The rule less some of its conditions."""
    rule = tuple(each for each in witness.RULE if each not in conditions)
    return lambda: patch("nimsnats.cluster.pairs.obstacles", lambda facts: witness.obstacles(facts, rule))


def _impulsive() -> AbstractContextManager[Any]:
    """Whoever has lost the other goes on."""
    return patch("nimsnats.cluster.pairs.obstacles", lambda facts: ("there is a route",) if facts.route else ())


MUTATIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "shrinks without the witness": _impulsive,
    "does not ask whether the other is listed": _without(witness.listed_alone, witness.listed_since_the_loss),
}
"""Weaker rules that these histories catch; subtler ones are left to the model."""


def run_pair(seed: int, steps: int, *, aloud: bool = False, mutation: str = "") -> Result:
    """As `history.run_history`, with two nodes. `elections` of the result counts how often somebody went alone."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(history, "History", PairHistory))
        if mutation:
            stack.enter_context(MUTATIONS[mutation]())
        result = history.run_history(seed, steps, aloud=aloud)
    result.elections = next(each for each in reversed(history.KEPT) if isinstance(each, PairHistory)).seized
    return result


@contextmanager
def pairs() -> Iterator[None]:
    """While this is entered, `run_seeds` runs histories of two nodes."""
    with patch("tests.simulation.child.run_history", run_pair):
        yield


def main() -> int:
    """The exit code: 1 when a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.witness_history", description=__doc__)
    parser.add_argument("--seeds", default="1..100")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--mutation", default="", choices=["", *MUTATIONS])
    given = parser.parse_args()
    first, _, last = given.seeds.partition("..")
    failed, done, alone, cpu, acknowledged = 0, 0, 0, 0.0, 0
    with pairs():
        for result in run_seeds(
            range(int(first), int(last or first) + 1),
            given.steps,
            jobs=given.jobs,
            aloud=given.trace,
            mutation=given.mutation,
        ):
            done, alone, cpu = done + 1, alone + result.elections, cpu + result.cpu
            acknowledged += result.acknowledged
            if result.failure:
                failed += 1
                print(f"seed {result.seed}: {result.failure[:1500]}", flush=True)
    print(f"{done} seeds, {failed} failed, {alone} times alone, {acknowledged} acknowledged, {cpu:.0f} CPU s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
