"""The simulated world: machines with disks, the network between them, the registry.

Owns the life of nodes: starting, stopping in order, killing, freezing, wiping. A node is the production `Node` on a
runtime, a disk and a registry of this world. What goes wrong and when is `nemesis`'s business.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from random import Random
from typing import TYPE_CHECKING, Any, Final

import nimsnats.monitor.system  # noqa: F401  (a node imports it late: once for all histories is enough)
from nimsnats.config.settings import for_node
from nimsnats.node import Node
from nimsnats.runtime import Runtime, StartError
from nimsnats.storage import StorageError
from tests.simulation.disk import Disk
from tests.simulation.loop import Process, SimFence, SimLoop, current
from tests.simulation.network import Network
from tests.simulation.registry import HOST, Hub, OwnedRuntime, SimRegistry
from tests.simulation.trace import Trace

if TYPE_CHECKING:
    from nimsnats.jetstream.engine import JetStream

EPOCH_NS: Final = 1_800_000_000 * 10**9
CLIENT_PORT: Final = 4222
ROUTE_PORT: Final = 6222


class Violation(AssertionError):
    """Something that must never be has been seen."""


class Machine:
    """One host: its disk, and while it runs its node."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"n{number}"
        self.host = f"10.0.0.{number}"
        self.random = Random(world.random.getrandbits(64))
        self.disk = Disk(Random(self.random.getrandbits(64)), self.name)
        self.worn: list[Disk] = []
        """Those that it had before."""
        self.clock_ns = self.random.randrange(-50_000_000, 50_000_000)
        """By how much the wall clock is wrong."""
        self.process: Process | None = None
        self.node: Node | None = None
        self.starting: asyncio.Task[None] | None = None
        self.stopping = False
        self.lives = 0
        self.used = False

    @property
    def running(self) -> bool:
        """Whether there is a process, started up or not, frozen or not."""
        return self.process is not None

    @property
    def up(self) -> bool:
        """Whether the node is started and serves."""
        return self.running and not self.stopping and self.starting is not None and self.starting.done()

    @property
    def engine(self) -> JetStream | None:
        """The node's JetStream."""
        return self.node.server.jetstream if self.node is not None else None

    def start(self) -> None:
        """Begin a new process; it is up when `starting` is done."""
        assert self.process is None
        world = self.world
        world.network.down.discard(self.host)
        world.network.change()
        self.lives += 1
        self.used = True
        process = self.process = Process(world.loop, self.name, self.host)
        world.processes.append(process)
        world.trace(self.name, "start", self.disk.identity.instance[-4:])
        random = Random(self.random.getrandbits(64))
        runtime = Runtime(self._wall_clock, random, world.loop, fence=SimFence(world.loop))
        runtime.boot_time_ns = lambda: int(world.loop.now * 1e9) + 10**12
        self.node = Node(
            self._settings(),
            runtime=runtime,
            open_storage=self._open_storage,
            find_registry=lambda runtime: SimRegistry(world.hub, self.host, runtime),
        )
        self.starting = process.spawn(self._start(self.node, process))

    def _start_again(self, lives: int) -> None:
        """What a service manager does."""
        if self.process is None and self.lives == lives:
            self.start()

    def _wall_clock(self) -> int:
        return EPOCH_NS + int(self.world.loop.now * 1e9) + self.clock_ns

    async def _start(self, node: Node, process: Process) -> None:
        try:
            await node.start()
        except (StartError, StorageError) as error:
            self.world.trace(self.name, "does not start", error)
            if self.process is process:
                self._ended(process)
                self.world.loop.call_later(1.0, self._start_again, self.lives, context=Context())
        except Exception as error:
            self.world.loop.broken.append({"message": f"{self.name} cannot start: {error!r}", "exception": error})
        else:
            self.world.trace(self.name, "is up")

    async def _open_storage(self, path: Any, runtime: Runtime, node_name: str = "", **how: Any) -> Any:
        await runtime.sleep(self.random.random() * 0.05)
        return self.disk.open(runtime)

    def _settings(self) -> Any:
        settings = for_node()
        settings.node_name = settings.broker.server_name = self.name
        settings.broker.host = settings.cluster.host = settings.monitor.host = self.host
        settings.broker.port, settings.cluster.port = CLIENT_PORT, ROUTE_PORT
        settings.monitor.port = 0
        settings.cluster.advertise = self.host
        settings.forest.enabled = False
        return settings

    async def stop(self) -> None:
        """End the process in order."""
        node, process = self.node, self.process
        assert node is not None and process is not None
        self.stopping = True
        self.world.trace(self.name, "stop")
        task = process.spawn(node.stop())
        await asyncio.wait([task])
        if self.process is process:
            task.result()
            self._ended(process)
            self.world.trace(self.name, "has stopped")

    def kill(self, *, power: bool) -> None:
        """End the process at once; with `power`, the whole machine."""
        process = self.process
        assert process is not None
        self.world.trace(self.name, "power off" if power else "kill -9")
        if power:
            self.world.network.down.add(self.host)
        self._ended(process)

    def _ended(self, process: Process) -> None:
        process.kill()
        self.disk.crash()
        self.world.network.killed(process)
        self.process = self.node = self.starting = None
        self.stopping = False

    def wipe(self) -> None:
        """A new, empty disk: another instance of the node."""
        assert self.process is None
        self.worn.append(self.disk)
        self.disk = Disk(Random(self.random.getrandbits(64)), self.name)
        self.world.trace(self.name, "wiped", self.disk.identity.instance[-4:])


class World:
    """Everything that one seed decides."""

    def __init__(self, seed: int, *, aloud: bool = False) -> None:
        self.random = Random(seed)
        self.loop = SimLoop()
        self.trace = Trace(self.loop.time, aloud)
        self.network = Network(self.loop, Random(self.random.getrandbits(64)), self.trace)
        self.network.delay = self.network.jitter = self.random.choice([0.0003, 0.0003, 0.003, 0.02])
        self.processes: list[Process] = []
        registry = Process(self.loop, HOST, HOST)
        self.processes.append(registry)
        runtime = OwnedRuntime(
            lambda: EPOCH_NS + int(self.loop.now * 1e9), Random(self.random.getrandbits(64)), self.loop
        )
        runtime.context = registry.context
        self.hub = Hub(self.network, runtime, ttl=self.random.choice([6.0, 12.0, 30.0]))
        self.machines = [Machine(self, number) for number in range(1, 6)]

    @property
    def used(self) -> list[Machine]:
        """Machines that are, or have been, part of the cluster."""
        return [machine for machine in self.machines if machine.used]

    def machine(self, name: str) -> Machine:
        """A machine by its node's name."""
        return next(machine for machine in self.machines if machine.name == name)


class NodeLog(logging.Handler):
    """Writes what nodes log into the trace, under the name of the node that says it. An exception that a node had to
    log is a bug, unless it is its disk's."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.level = logging.DEBUG

    def emit(self, record: logging.LogRecord) -> None:
        process = current()
        name = process.name if process is not None else "-"
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f" [{record.exc_info[1]!r}]"
            if not isinstance(record.exc_info[1], StorageError):
                self.world.loop.broken.append({"message": f"{name} logged: {text}", "exception": record.exc_info[1]})
        self.world.trace(name, record.levelname[:3], text)
