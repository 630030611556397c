"""What goes wrong, and when: one seeded choice after the other, until everything is made well again.

Owns the faults and their limits: only what the cluster promises to survive is done to it. Each history draws which
kinds of faults it has at all, so that some are calm in all respects but one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from tests.simulation.world import Machine, World


class Nemesis:
    """The faults of one history."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = Random(world.random.getrandbits(64))
        faults: list[Callable[[], Awaitable[None] | None]] = [
            self.kill,
            self.kill,
            self.restart,
            self.restart,
            self.partition,
            self.isolate,
            self.one_way,
            self.reset,
            self.freeze,
            self.slow_host,
            self.slow_disk,
            self.clock,
            self.mend,
            self.mend,
        ]
        kept = [fault for fault in faults if self.random.random() < 0.6]
        self.faults = kept or faults
        self.pace = self.random.choice([0.5, 1.5, 4.0])
        self._tasks: list[asyncio.Task[Any]] = []

    async def run(self, steps: int) -> None:
        """Do so many things."""
        for _ in range(steps):
            await asyncio.sleep(self.pace * self.random.expovariate(1.0))
            self.random.choice(self.faults)()

    def say(self, what: str, detail: object = "") -> None:
        """Tell."""
        self.world.trace("##", what, detail)

    def _one(self, machines: list[Machine]) -> Machine | None:
        return self.random.choice(machines) if machines else None

    # Processes

    def kill(self) -> None:
        """kill -9, or the power goes; comes back soon, or when something mends it."""
        machine = self._one([each for each in self.world.machines if each.running and not each.stopping])
        if machine is None:
            return
        machine.kill(power=self.random.random() < 0.5)
        if self.random.random() < 0.7:
            self.world.loop.call_later(self.random.expovariate(0.5), self._back, machine)

    def _back(self, machine: Machine) -> None:
        if not machine.running:
            machine.start()

    def restart(self) -> None:
        """All that are down come back."""
        for machine in self.world.used:
            self._back(machine)

    def freeze(self) -> None:
        """A process does not run for a while (SIGSTOP)."""
        machine = self._one([each for each in self.world.machines if each.up])
        if machine is not None and machine.process is not None and not machine.process.frozen:
            seconds = self.random.choice([0.3, 1.5, 5.0, 12.0]) * self.random.random()
            self.say("freeze", f"{machine.name} {seconds:.1f}s")
            machine.process.frozen = True
            self.world.loop.call_later(seconds, machine.process.thaw)

    def clock(self) -> None:
        """The wall clock is set."""
        machine = self._one(self.world.used)
        if machine is not None:
            machine.clock_ns += int(self.random.gauss(0, 2) * 10**9)
            self.say("clock", f"{machine.name} {machine.clock_ns / 1e9:+.1f}s")

    # The network

    def _hosts(self) -> list[str]:
        return [machine.host for machine in self.world.used]

    def partition(self) -> None:
        """Two sides that do not hear each other."""
        hosts = self._hosts()
        self.random.shuffle(hosts)
        self._cut(hosts[: self.random.randrange(1, len(hosts) + 1)])

    def isolate(self) -> None:
        """One node hears nobody; clients still reach it, or not."""
        self._cut([self.random.choice(self._hosts())])

    def _cut(self, side: list[str]) -> None:
        cut = self.world.network.cut
        for one in side:
            for other in self._hosts():
                if other not in side:
                    cut.update({(one, other), (other, one)})
        self.say("cut", f"{side} from the others")
        self.world.network.change()

    def one_way(self) -> None:
        """One direction of one link is dead."""
        hosts = self._hosts()
        if len(hosts) > 1:
            one, other = self.random.sample(hosts, 2)
            self.world.network.cut.add((one, other))
            self.say("cut", f"{one} to {other}")

    def mend(self) -> None:
        """The network works again."""
        self.say("mend")
        self.world.network.cut.clear()
        self.world.network.slow.clear()
        self.world.network.change()

    def reset(self) -> None:
        """A connection breaks."""
        transports = [each for each in self.world.network.open if not each.gone]
        if transports:
            transport = self.random.choice(transports)
            self.say("reset", f"{transport.host} {transport.get_extra_info('peername')}")
            self.world.network.reset(transport)

    def slow_host(self) -> None:
        """A host's links become slow."""
        host = self.random.choice(self._hosts())
        self.world.network.slow[host] = self.random.choice([0.005, 0.05, 0.2])
        self.say("slow", f"{host} {self.world.network.slow[host]}s")

    # Disks

    def slow_disk(self) -> None:
        """A disk becomes slow, or quick again."""
        machine = self._one(self.world.used)
        if machine is not None:
            machine.disk.delay = self.random.choice([0.001, 0.001, 0.02, 0.2])
            self.say("disk", f"{machine.name} syncs take {machine.disk.delay}s")

    # The end

    async def heal(self) -> None:
        """Nothing is wrong any more, and everybody is there."""
        self.say("heal")
        world = self.world
        world.network.cut.clear()
        world.network.slow.clear()
        world.network.change()
        for machine in world.used:
            machine.disk.delay = 0.001
            if machine.process is not None and machine.process.frozen:
                machine.process.thaw()
            self._back(machine)
