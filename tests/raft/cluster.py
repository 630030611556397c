"""Several hosts in one process on virtual time: a network that delays, loses, repeats, cuts; disks that crash.

`run(test)` executes a coroutine on a loop whose clock jumps to the next timer when nothing is ready, so that a
history of minutes takes a moment. With real databases, whose threads take real time, the clock runs fast instead.
"""

from __future__ import annotations

import asyncio
import logging
import random
import selectors
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from nimsnats.raft.group import HostedGroup
from nimsnats.raft.host import Host
from nimsnats.raft.machine import NotLeader
from nimsnats.raft.transport import member_name, node_of
from nimsnats.runtime import Runtime
from nimsnats.storage import Database, open_database
from tests.raft.disks import MemoryDisk
from tests.raft.recorder import MESSAGES, Recorder

_HASTE = 20


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only when nobody can run; with `threads`, whose time passes 20 times faster."""

    def __init__(self, threads: bool) -> None:
        self.now = 0.0
        self._threads = threads
        super().__init__(_Jumping(self, threads))

    def time(self) -> float:
        return super().time() * _HASTE if self._threads else self.now


class _Jumping(selectors.SelectSelector):
    """Instead of sleeping, moves the clock."""

    def __init__(self, loop: VirtualLoop, threads: bool) -> None:
        super().__init__()
        self._loop = loop
        self._threads = threads

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._threads or timeout is None:
            return super().select(timeout and timeout / _HASTE)
        ready = super().select(0)
        if not ready:
            self._loop.now += timeout
        return ready


def run(test: Callable[[], Coroutine[Any, Any, None]], *, threads: bool = False) -> None:
    """Execute a test on virtual time."""
    loop = VirtualLoop(threads)
    try:
        loop.run_until_complete(test())
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class Node:
    """A node: its disk, and while it runs its host and machines."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.instance = f"i{cluster.random.randrange(10**6)}"
        self.disk = MemoryDisk(cluster.runtime)
        self.database: Database | None = None
        self.host: Host | None = None
        self.machines: dict[str, Recorder] = {}
        self.life = 0

    @property
    def member(self) -> str:
        return member_name(self.name, self.instance)

    def send(self, peer: str, frame: bytes) -> None:
        """Implements Transport."""
        self.cluster.carry(self.name, node_of(peer), frame)

    async def start(self) -> Host:
        assert self.host is None
        storage: Any = self.disk
        if self.cluster.path is not None:
            path = self.cluster.path / self.member
            self.database = storage = await open_database(
                path, self.cluster.runtime, self.name, log=self.cluster.log, scrub_rate=0
            )
        self.host = Host(storage, self.cluster.runtime, self.name, self.cluster.log, instance=self.instance)
        self.host.transport = self
        self.machines = {}
        return self.host

    async def open(self, group: str, founders: Sequence[str] | None, storage: Any = "file") -> HostedGroup:
        assert self.host is not None
        machine = self.machines[group] = Recorder()
        handle = await self.host.open_group(group, machine, members=founders, storage=storage)
        assert isinstance(handle, HostedGroup)
        return handle

    async def stop(self) -> None:
        host, self.host = self.host, None
        if host is not None:
            await host.stop()
        if self.database is not None:
            await self.database.close()
            self.database = None

    def crash(self) -> None:
        """As by kill -9 and a power cut (memory disks only)."""
        host, self.host = self.host, None
        assert host is not None and self.database is None
        self.life += 1
        self.disk.crash()
        host.transport = None
        host.abandon()

    def wipe(self) -> None:
        """A new disk, hence a new instance."""
        assert self.host is None
        self.instance = f"i{self.cluster.random.randrange(10**6)}"
        self.disk = MemoryDisk(self.cluster.runtime)


class Cluster:
    """Nodes, and the network between them."""

    def __init__(self, names: str, seed: int = 1, path: Path | None = None) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.random = random.Random(seed)
        self.runtime = Runtime(lambda: 10**18 + int(loop.time() * 1e9), self.random, loop)
        self.log = logging.getLogger("tests.raft")
        self.path = path
        self.cut: set[tuple[str, str]] = set()
        self.loss = 0.0
        self.delay = 0.001
        self.frames = 0
        self.nodes = {name: Node(self, name) for name in names}

    def members(self, names: str) -> list[str]:
        return [self.nodes[name].member for name in names]

    async def start(self, names: str = "") -> None:
        for name in names or self.nodes:
            await self.nodes[name].start()

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.stop()

    def carry(self, sender: str, to: str, frame: bytes) -> None:
        self.frames += 1
        if (sender, to) in self.cut or self.random.random() < self.loss:
            return
        delay = self.delay * (1 + self.random.random() * 3)
        self.runtime.call_later(delay, self._arrive, sender, to, frame)
        if self.loss and self.random.random() < self.loss:
            self.runtime.call_later(delay * 2, self._arrive, sender, to, frame)

    def _arrive(self, sender: str, to: str, frame: bytes) -> None:
        node = self.nodes.get(to)
        if node is not None and node.host is not None and (sender, to) not in self.cut:
            node.host.receive(sender, frame)

    def isolate(self, *names: str) -> None:
        """Cut these nodes off from all others."""
        for one in self.nodes:
            for two in self.nodes:
                if (one in names) != (two in names):
                    self.cut.add((one, two))

    def group(self, name: str, group: str = "S") -> HostedGroup:
        host = self.nodes[name].host
        assert host is not None
        found = host.group(group)
        assert found is not None
        return found

    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.host is not None]

    def leader(self, group: str = "S") -> Node | None:
        """Who leads, if exactly one that a majority would follow does: the highest term."""
        leading = [node for node in self.running() if (found := node.host and node.host.group(group)) and found.leading]
        return max(leading, key=lambda node: self.group(node.name, group).term, default=None)

    async def until(self, condition: Callable[[], object], patience: float = 60.0) -> None:
        """Let virtual time pass until the condition holds."""
        loop = self.runtime.loop
        end = loop.time() + patience
        while not condition():
            assert loop.time() < end, "it does not happen"
            await self.runtime.sleep(0.01)

    async def elected(self, group: str = "S") -> Node:
        await self.until(lambda: self.leader(group))
        found = self.leader(group)
        assert found is not None
        return found

    async def write(self, data: bytes, group: str = "S", patience: float = 60.0) -> None:
        """Append through whoever leads, until it is acknowledged. A retry may write it twice."""
        loop = self.runtime.loop
        end = loop.time() + patience
        while loop.time() < end:
            node = await self.elected(group)
            machine = node.machines[group]
            before, refused = len(machine.contexts), len(machine.refused)
            try:
                self.group(node.name, group).propose(MESSAGES, data, data, 1)
            except NotLeader:
                await self.runtime.sleep(0.05)
                continue
            while loop.time() < end and node.host is not None and node.machines.get(group) is machine:
                if data in machine.contexts[before:]:
                    return
                if any(context == data for context, _ in machine.refused[refused:]):
                    break
                await self.runtime.sleep(0.002)
        raise AssertionError(f"{data!r} is not acknowledged")

    async def agreed(self, names: str, group: str = "S") -> dict[int, bytes]:
        """Wait until these members have applied the same, and return it."""

        def same() -> bool:
            tops = {self.group(name, group).applied for name in names}
            leader = self.leader(group)
            return leader is not None and len(tops) == 1 and self.group(leader.name, group).core.log.last == tops.pop()

        await self.until(same)
        held = [self.nodes[name].machines[group].entries for name in names]
        assert all(each == held[0] for each in held), "members differ"
        return held[0]
