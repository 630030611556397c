"""What goes wrong, and when: one seeded choice after the other, until everything is made well again.

Owns the faults and their limits: only what the cluster promises to survive is done to it. Each history draws which
kinds of faults it has at all, so that some are calm in all respects but one. Disks are damaged or wiped only in
histories whose streams all have three replicas, one disk at a time, and the next one only when the cluster is whole
again; a process dies whenever the dice say so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from random import Random
from typing import Any, Final

from tests.simulation import inspection
from tests.simulation.client import Client, Disconnected, NoResponders
from tests.simulation.inspection import Wanted
from tests.simulation.registry import HOST
from tests.simulation.weather import Weather
from tests.simulation.world import Machine, World

_MOST: Final = 5
"""Nodes."""


class Nemesis:
    """The faults of one history. `wanted` are the streams that there should be; `client` asks for leaders to change."""

    def __init__(self, world: World, wanted: list[Wanted], client: Client) -> None:
        self.world = world
        self.wanted = wanted
        self.client = client
        self.random = Random(world.random.getrandbits(64))
        self.weather = Weather(world)
        self.tasks: list[asyncio.Task[Any]] = []
        self.healing = False
        often: list[Callable[[], None]] = [self.kill, self.restart, self.mend]
        seldom: list[Callable[[], None]] = [
            *(self.partition, self.isolate, self.one_way, self.reset, self.slow_host, self.freeze, self.clock),
            *(self.storm, self.slow_disk, self.full_disk, self.break_disk, self.leave, self.join, self.elect),
            *(self.registry_out, self.registry_forgets),
        ]
        if all(each.replicas >= 3 for each in wanted):
            seldom += [self.damage, self.wipe]
        rate = self.random.choice([0.25, 0.5, 0.8])
        self.faults = [fault for fault in seldom if self.random.random() < rate]
        self.faults += [fault for fault in often if self.random.random() < 0.8] * 2
        self.faults = self.faults or often
        self.pace = self.random.choice([0.5, 1.5, 3.0])

    async def run(self, steps: int) -> None:
        """Do so many things."""
        for _ in range(steps):
            await asyncio.sleep(self.pace * self.random.expovariate(1.0))
            self.random.choice(self.faults)()

    def _whole(self) -> bool:
        """Whether one more node may lose what it has: no change of members that only it may know of is under way."""
        if not inspection.whole(self.world, self.wanted):
            return False
        hosts = [machine.engine.host for machine in self.world.used if machine.engine is not None]
        return all(group.replica.membership_committed() for host in hosts for group in host.groups())

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

    def leave(self) -> None:
        """A node is stopped in order, and comes back later."""
        machine = self._one([each for each in self.world.machines if each.up])
        if machine is not None:
            self.tasks.append(self.world.loop.create_task(self._leave(machine)))

    async def _leave(self, machine: Machine) -> None:
        await machine.stop()
        await asyncio.sleep(self.random.expovariate(0.2))
        self._back(machine)

    def join(self) -> None:
        """A new node comes."""
        fresh = [each for each in self.world.machines[:_MOST] if not each.used]
        if fresh:
            fresh[0].start()

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
        return [machine.host for machine in self.world.used] + [HOST]

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

    def storm(self) -> None:
        """Raft's frames are lost, repeated or late, or all is calm again."""
        weather = self.weather
        weather.clear()
        if self.random.random() < 0.7:
            weather.loss = self.random.choice([0.0, 0.02, 0.2])
            weather.repeat = self.random.choice([0.0, 0.02, 0.2])
            weather.late = self.random.choice([0.0, 0.05, 0.3])
        self.say("weather", f"loss {weather.loss} repeat {weather.repeat} late {weather.late}")

    # What may happen besides

    def elect(self) -> None:
        """Somebody else is to lead."""
        subjects = [f"$JS.API.STREAM.LEADER.STEPDOWN.{each.name}" for each in self.wanted]
        subject = self.random.choice([*subjects, "$JS.API.META.LEADER.STEPDOWN"])
        self.tasks.append(self.client.process.spawn(self._ask(subject, {})))

    async def _ask(self, subject: str, body: object) -> None:
        try:
            async with asyncio.timeout(3.0):
                await self.client.connect()
            _, answer = await self.client.request(subject.encode(), json.dumps(body).encode() if body else b"")
        except (Disconnected, TimeoutError, NoResponders) as error:
            answer = type(error).__name__.encode()
        self.say(subject, answer.decode())

    def registry_out(self) -> None:
        """The registry does not answer for a while."""
        seconds = self.random.choice([1.0, 10.0, 60.0]) * self.random.random()
        self.say("registry out", f"{seconds:.1f}s")
        self.world.hub.out = True
        self.world.loop.call_later(seconds, self._registry_back)

    def _registry_back(self) -> None:
        self.world.hub.out = False

    def registry_forgets(self) -> None:
        """The registry is restarted, and has no database."""
        self.say("registry forgets")
        self.world.hub.forget()

    # Disks

    def full_disk(self) -> None:
        """No space left, for a while."""
        machine = self._one(self.world.used)
        if machine is not None:
            seconds = self.random.choice([0.5, 3.0, 10.0]) * self.random.random()
            self.say("full disk", f"{machine.name} {seconds:.1f}s")
            machine.disk.full = True
            self.world.loop.call_later(seconds, self._space, machine)

    def _space(self, machine: Machine) -> None:
        machine.disk.full = False

    def break_disk(self) -> None:
        """A sync fails: that process is good for nothing any more. It is replaced after a while."""
        machine = self._one([each for each in self.world.machines if each.up])
        if machine is not None:
            self.say("broken sync", machine.name)
            machine.disk.breaks = True
            self.world.loop.call_later(0.5 + self.random.expovariate(0.3), self._replace, machine, machine.process)

    def _replace(self, machine: Machine, process: object) -> None:
        machine.disk.breaks = False
        if machine.process is process and not machine.stopping:
            machine.kill(power=False)
            self._back(machine)

    def damage(self) -> None:
        """A process dies, and what it left on its disk has suffered."""
        machine = self._one([each for each in self.world.machines if each.up])
        if machine is not None and len(self.world.used) >= 3 and self._whole():
            machine.kill(power=True)
            self.say("damage", f"{machine.name} {machine.disk.suffer()}")
            self.world.loop.call_later(self.random.expovariate(0.5), self._back, machine)

    def wipe(self) -> None:
        """A disk is replaced by an empty one."""
        machine = self._one([each for each in self.world.machines if each.up])
        if machine is not None and len(self.world.used) >= 3 and self._whole():
            machine.kill(power=True)
            machine.wipe()
            self.world.loop.call_later(self.random.expovariate(0.5), self._back, machine)

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
        self.mend()
        self.weather.clear()
        self._registry_back()
        for machine in world.used:
            disk = machine.disk
            disk.delay, disk.full, disk.breaks = 0.001, False, False
            if machine.process is not None and machine.process.frozen:
                machine.process.thaw()
        await asyncio.gather(*self.tasks)
        for machine in world.used:
            storage = machine.disk.storage
            if storage is not None and storage.failure is not None and machine.running and not machine.stopping:
                machine.kill(power=False)
            self._back(machine)
