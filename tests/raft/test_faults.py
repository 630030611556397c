"""Whole hosts under faults, by seed: cuts, loss, crashes that lose what was not synced, changes of members.

What was acknowledged is on every member at the end, once and in order.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from nimsnats.raft.machine import NotLeader
from tests.raft.cluster import Cluster, Node, run
from tests.raft.recorder import MESSAGES


class Chaos:
    """One seeded history of a group on three of four nodes, whose members change."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.founders = cluster.members("abc")
        self.acknowledged: list[bytes] = []
        self.sent = 0
        self.over = False

    async def open(self, node: Node) -> None:
        await node.start()
        await node.open("S", self.founders)

    async def produce(self) -> None:
        """Propose through whoever leads, remember what was acknowledged in the order of the acknowledgements."""
        cluster = self.cluster
        while not self.over:
            node = cluster.leader()
            if node is not None:
                data = b"%d" % self.sent
                with contextlib.suppress(NotLeader):
                    cluster.group(node.name).propose(MESSAGES, data, data, 1)
                    self.sent += 1
                machine = node.machines["S"]
                for context in machine.contexts:
                    assert isinstance(context, bytes)
                    self.acknowledged.append(context)
                machine.contexts.clear()
            await cluster.runtime.sleep(cluster.random.random() * 0.05)

    async def fault(self) -> None:
        """Something goes wrong, or is well again."""
        cluster, dice = self.cluster, self.cluster.random.random()
        running = cluster.running()
        if dice < 0.25 and len(running) > 2:
            node = cluster.random.choice(running)
            self._collect(node)
            node.crash()
        elif dice < 0.55:
            for node in cluster.nodes.values():
                if node.host is None:
                    await self.open(node)
        elif dice < 0.65:
            cluster.isolate(*cluster.random.sample("abcd", cluster.random.randrange(1, 3)))
        elif dice < 0.8:
            cluster.cut.clear()
            cluster.loss = cluster.random.choice([0, 0, 0.1])
        elif dice < 0.9:
            for node in running:
                cluster.group(node.name).compact()
        else:
            await self._change()

    def _collect(self, node: Node) -> None:
        self.acknowledged.extend(node.machines["S"].contexts)  # pyright: ignore[reportArgumentType]
        node.machines["S"].contexts.clear()

    async def _change(self) -> None:
        node = self.cluster.leader()
        if node is not None:
            wanted = self.cluster.members("".join(self.cluster.random.sample("abcd", 3)))
            with contextlib.suppress(NotLeader, TimeoutError):
                await asyncio.wait_for(self.cluster.group(node.name).change_members(wanted), 5)

    async def heal(self) -> None:
        """No more faults: everything works again and is where it should be."""
        cluster = self.cluster
        cluster.cut.clear()
        cluster.loss = 0
        for node in cluster.nodes.values():
            if node.host is None:
                await self.open(node)
        self.over = True
        while True:
            node = await cluster.elected()
            with contextlib.suppress(NotLeader):
                await cluster.group(node.name).change_members(cluster.members("abcd"))
                break
            await cluster.runtime.sleep(0.1)
        held = list((await cluster.agreed("abcd")).values())
        for node in cluster.running():
            self._collect(node)
        assert len(set(held)) == len(held), "something is there twice"
        places = {data: place for place, data in enumerate(held)}
        assert all(data in places for data in self.acknowledged), "something acknowledged is lost"


def _history(seed: int, faults: int) -> Chaos:
    kept: list[Chaos] = []

    async def test() -> None:
        cluster = Cluster("abcd", seed)
        chaos = Chaos(cluster)
        kept.append(chaos)
        for node in cluster.nodes.values():
            await chaos.open(node)
        producer = asyncio.ensure_future(chaos.produce())
        for _ in range(faults):
            await cluster.runtime.sleep(cluster.random.random() * 3)
            if producer.done():
                break
            await chaos.fault()
        await chaos.heal()
        await producer
        await cluster.stop()

    run(test)
    return kept[0]


@pytest.mark.parametrize("seed", range(8))
def test_nothing_acknowledged_is_lost(seed: int) -> None:
    chaos = _history(seed, 30)
    assert len(chaos.acknowledged) > 100


@pytest.mark.extended
@pytest.mark.timeout(1800)
def test_campaign() -> None:
    for seed in range(1000, 1300):
        try:
            _history(seed, 60)
        except BaseException:
            print("seed", seed)
            raise
