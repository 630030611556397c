"""Faults one after the other under a steady load with acks: what each costs, and whether every promise was kept.

Owns the order of things, the figures and the checks at the end. A pause is the longest time between two acks: `any` of
all clients together (is anything acknowledged at all?), `each` of whichever client waited longest.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

from nats.aio.client import Client
from nats.js.api import ConsumerConfig, StreamConfig

from tests.chaos import faults
from tests.chaos.disks import own_mounts
from tests.chaos.network import Network, NotPermitted
from tests.chaos.workload import (
    CONSUMER,
    STREAM,
    Home,
    Ledger,
    check_steady,
    publish_steadily,
    read_all,
    settle_orders,
)
from tests.chaos.world import HostedNode, MakeNode, World

CLIENTS: Final = "clients"
_WORKERS: Final = 4
_PACE: Final = 0.01
_EVENT: Final = 150.0
"""Seconds that an event may take with all that follows from it."""


@dataclass
class Event:
    """Something that happened, on the loop's clock."""

    began: float
    text: str = ""
    ended: float = 0.0
    """When everything was whole again."""


@dataclass
class Report:
    """What has happened and what was acknowledged when."""

    ledger: Ledger = field(default_factory=Ledger)
    events: list[Event] = field(default_factory=list)
    replicas: dict[str, int] = field(default_factory=dict)
    """Messages by node, all with the same content."""
    errors: list[str] = field(default_factory=list)

    def pauses(self, event: Event) -> tuple[float, float]:
        """Longest pause of all clients together, and of any one, from its beginning to the next event's."""
        later = [other.began for other in self.events if other.began > event.began]
        end = min(later, default=self.ledger.acks[-1][0])
        each = [_longest(self._times({worker}), event.began, end) for worker in {who for _, who in self.ledger.acks}]
        return _longest(self._times(None), event.began, end), max(each, default=0.0)

    def _times(self, workers: set[str] | None) -> list[float]:
        return [at for at, who in self.ledger.acks if workers is None or who in workers]

    def table(self) -> str:
        """The figures as lines of text."""
        start = self.events[0].began if self.events else 0.0
        lines = [f"{'at s':>7}  {'any s':>6}  {'each s':>6}  {'whole s':>7}  event"]
        for event in self.events:
            together, each = self.pauses(event)
            whole = event.ended - event.began
            lines.append(f"{event.began - start:7.1f}  {together:6.2f}  {each:6.2f}  {whole:7.1f}  {event.text}")
        copies = ", ".join(f"{name} {count}" for name, count in sorted(self.replicas.items()))
        lines.append(
            f"{len(self.ledger.published)} acknowledged publishes, {len(self.ledger.settled)} confirmed acks: "
            f"none lost, none twice, all in order; the same on every replica ({copies})"
        )
        return "\n".join(lines)


def _longest(times: Sequence[float], begin: float, end: float) -> float:
    """The longest gap between `begin` and `end`; what lies outside does not count."""
    gaps = [min(after, end) - max(before, begin) for before, after in pairwise(times) if after > begin and before < end]
    return max(gaps, default=end - begin)


class Campaign:
    """A world under load. `happen` lets something happen to it, and `conclude` judges."""

    def __init__(self, world: World, seed: int, say: Callable[[str], None]) -> None:
        self.world = world
        self.chance = Random(seed)
        self.report = Report()
        self._say = say
        self._stop = asyncio.Event()
        self._clients: list[Client] = []
        self._work: list[asyncio.Task[None]] = []
        self._homes: list[Home] = []

    async def load(self, nodes: int) -> None:
        """Start that many nodes, make the stream, and let the clients begin."""
        for _ in range(nodes):
            await self.world.grow()
        await self.world.whole()
        client = await self._client(0)
        js = client.jetstream(timeout=10)
        await js.add_stream(StreamConfig(name=STREAM, subjects=["orders.>"], num_replicas=3))
        await js.add_consumer(STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy="explicit", ack_wait=2))
        ledger = self.report.ledger
        self._work.append(asyncio.create_task(settle_orders(js, ledger, self._stop)))
        self._homes = [Home(await self.world.client(number)) for number in range(_WORKERS)]
        for number, home in enumerate(self._homes):
            steady = publish_steadily(home, ledger, f"steady{number}", self._stop, _PACE)
            self._work.append(asyncio.create_task(steady))
        await ledger.published_more(100)

    async def _client(self, first: int) -> Client:
        client = await self.world.client(first)
        self._clients.append(client)
        return client

    async def happen(self, fault: faults.Fault, patience: float = _EVENT) -> None:
        """Let it happen, wait until everything is whole, and for a few more acks; `patience` seconds at most."""
        await self._go_home()
        event = Event(asyncio.get_running_loop().time(), fault.__name__)
        self.report.events.append(event)
        try:
            async with asyncio.timeout(patience):
                event.text = await fault(self.world, self.chance)
                await self.world.whole()
                await self.world.current(STREAM)
                event.ended = asyncio.get_running_loop().time()
                await self.report.ledger.published_more(100)
        except TimeoutError:
            raise AssertionError(f"{event.text or fault.__name__}: not over in {patience:g} s") from None
        together, each = self.report.pauses(event)
        self._say(f"{event.text}: pause {together:.2f} s, of one client {each:.2f} s")
        self._check_work()

    async def _go_home(self) -> None:
        """Spread the publishers over the nodes again: after faults they are all where they were let in."""
        members = self.world.members
        for number, home in enumerate(self._homes):
            url = home.client.connected_url
            if url is None or url.hostname != members[number % len(members)].address:
                former, home.client = home.client, await self.world.client(number)
                await former.close()

    def _check_work(self) -> None:
        for task in self._work:
            if task.done():
                task.result()

    async def conclude(self) -> Report:
        """End the load, and check what was promised, on every replica. Raises AssertionError."""
        self._stop.set()
        await asyncio.gather(*self._work)
        await self.world.whole()
        self._notice_errors()
        client = await self._client(0)
        js = client.jetstream(timeout=10)
        digests: dict[str, str] = {}
        for node in await _replicas(client):
            await _lead(client, node)
            stored = await read_all(js, STREAM)
            self._say(f"{node} leads and has {len(stored)} messages")
            check_steady(self.report.ledger, stored)
            self.report.replicas[node] = len(stored)
            digests[node] = hashlib.sha256(repr(sorted(stored.items())).encode()).hexdigest()
        assert len(set(digests.values())) == 1, f"replicas differ: {digests}"
        return self.report

    def _notice_errors(self) -> None:
        """A traceback in a log is a fault, whatever came of it."""
        for node in self.world.nodes:
            for at, line in enumerate(node.log):
                if "Traceback" in line or "[FTL]" in line:
                    self.report.errors.append("\n".join([f"{node.name}:", *node.log[max(at - 2, 0) : at + 30]]))

    async def close(self) -> None:
        """Hang up."""
        self._stop.set()
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        for client in (*self._clients, *(home.client for home in self._homes)):
            await client.close()


async def _replicas(client: Client) -> list[str]:
    """The nodes that hold the stream, its leader last: so that each has to take over once."""
    answer = json.loads((await client.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout=10)).data)
    cluster = answer["cluster"]
    return [*sorted(replica["name"] for replica in cluster.get("replicas", ())), cluster["leader"]]


async def _lead(client: Client, node: str) -> None:
    """Make a node the stream's leader."""
    wish = json.dumps({"placement": {"preferred": node}}).encode()
    async with asyncio.timeout(30):
        while (await _replicas(client))[-1] != node:
            await client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}", wish, timeout=10)
            await asyncio.sleep(0.2)


@contextmanager
def world(*, disk: int = 0, make_node: MakeNode = HostedNode, secret: str = "") -> Iterator[World]:
    """A world with its own network and folder, in which this process is on the clients' host from now on.

    `disk` in megabytes gives every node a small disk in memory; `secret` is what the registry knows. Raises
    NotPermitted.
    """
    try:
        own_mounts()
    except OSError as error:
        raise NotPermitted(f"no mounts of our own here (CAP_SYS_ADMIN?): {error}") from error
    with Network() as network, tempfile.TemporaryDirectory(prefix="nims-chaos-", ignore_cleanup_errors=True) as folder:
        network.add(CLIENTS)
        made = World(network, Path(folder), disk=disk, make_node=make_node, secret=secret)
        network.enter(CLIENTS)()
        yield made


@asynccontextmanager
async def running(
    world: World, seed: int, nodes: int, say: Callable[[str], None], logs: Path | None = None
) -> AsyncIterator[Campaign]:
    """A campaign with that many nodes, under load; what the nodes logged goes to `logs` in the end."""
    async with world:
        campaign = Campaign(world, seed, say)
        try:
            await campaign.load(nodes)
            yield campaign
        finally:
            await campaign.close()
            for node in world.nodes if logs is not None else ():
                (logs / f"{node.name}.log").write_text("\n".join(node.log))


async def random_faults(campaign: Campaign, minutes: float, among: Iterable[faults.Fault]) -> Report:
    """Whatever comes, for so long."""
    chosen, loop = list(among), asyncio.get_running_loop()
    end = loop.time() + minutes * 60
    await campaign.happen(faults.quiet)
    while loop.time() < end:
        await campaign.happen(campaign.chance.choice(chosen))
    return await campaign.conclude()


async def one_more(world: World, _chance: Random) -> str:
    """A node joins."""
    node = await world.grow()
    return f"{node.name} joins: {len(world.members)} nodes"


async def one_less(world: World, chance: Random) -> str:
    """A node leaves in order."""
    node = chance.choice(world.members)
    await world.shrink(node)
    return f"{node.name} leaves: {len(world.members)} nodes"


async def growth(campaign: Campaign) -> Report:
    """From one node to two, three and five, back to one, and up again."""
    await campaign.happen(faults.quiet)
    for _ in range(4):
        await campaign.happen(one_more)
    for _ in range(4):
        await campaign.happen(one_less)
    for _ in range(2):
        await campaign.happen(one_more)
    return await campaign.conclude()


async def kills(campaign: Campaign, minutes: float, every: float) -> Report:
    """kill -9 of any node every so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + minutes * 60
    await campaign.happen(faults.quiet)
    while loop.time() < end:
        began = loop.time()
        await campaign.happen(faults.kill)
        await asyncio.sleep(max(0.0, began + every - loop.time()))
    return await campaign.conclude()


async def rolling(campaign: Campaign) -> Report:
    """All nodes are restarted in order, one by one."""

    def restart(position: int) -> faults.Fault:
        async def restarted(world: World, _chance: Random) -> str:
            node = world.members[position]
            assert await node.terminate() == 0, f"{node.name} did not end in order"
            await node.start()
            return f"restart of {node.name}"

        return restarted

    await campaign.happen(faults.quiet)
    for position in range(len(campaign.world.members)):
        await campaign.happen(restart(position))
    return await campaign.conclude()
