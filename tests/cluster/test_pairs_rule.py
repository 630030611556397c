"""The witness rule on real groups: hosts, registry and time are simulated, what asks and acts is the product's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from nimsnats.cluster.pairs import Pairs
from nimsnats.jetstream.mail import Unreachable
from nimsnats.registry import NodeInfo, Registry, RegistryUnavailableError
from nimsnats.registry.member import Grant, Listed
from nimsnats.registry.memory import MemoryHub, MemoryRegistry
from tests.cluster.routes import FakeRoutes
from tests.raft.cluster import Cluster, Node, run

TTL = 5.0
LOG = logging.getLogger("tests.pairs")


class Post:
    """Questions between all sides; `held` delays answers until it is set."""

    def __init__(self) -> None:
        self.listeners: dict[str, Callable[[str, Any], Any]] = {}
        self.asked: list[tuple[str, str, int]] = []
        self.held: asyncio.Event | None = None


class Mail:
    def __init__(self, post: Post, side: Side) -> None:
        self.post = post
        self.side = side

    def listen(self, what: str, listener: Callable[[str, Any], Any]) -> None:
        self.post.listeners[self.side.node.member] = listener

    async def ask(self, to: str, what: str, body: Any, patience: float) -> Any:
        self.post.asked.append((self.side.node.name, to.partition("@")[0], len(body)))
        if to not in self.post.listeners or to.partition("@")[0] not in self.side.routes.connected():
            raise Unreachable("no route")
        answer = self.post.listeners[to](self.side.node.member, body)
        if self.post.held is not None:
            await self.post.held.wait()
        return answer


class LonelyRegistry(MemoryRegistry):
    """A client whose own way to the registry can be cut; `ttl` and `stamps` as the registry tells them."""

    cut = False
    ttl = TTL
    stamps = True

    def _reach(self) -> None:
        if self.cut:
            raise RegistryUnavailableError("no way to the registry")
        super()._reach()

    async def _send_register(self, info: NodeInfo) -> Grant:
        await super()._send_register(info)
        return Grant(self.ttl)

    async def _send_heartbeat(self, info: NodeInfo) -> Grant:
        await super()._send_heartbeat(info)
        return Grant(self.ttl)

    async def _send_list(self) -> Listed:
        listed = await super()._send_list()
        if self.stamps:
            return listed
        bare = [NodeInfo(node.name, node.address, node.port, instance=node.instance) for node in listed.nodes]
        return replace(listed, nodes=bare)


class Side:
    """One node: its host, its routes, its way to the registry, and what is under test."""

    def __init__(self, world: World, node: Node, port: int) -> None:
        self.world = world
        self.node = node
        self.info = NodeInfo(node.name, "127.0.0.1", port, instance=node.instance)
        self.routes = FakeRoutes()
        self.registry = LonelyRegistry(world.hub)
        self.mail = Mail(world.post, self)
        self.pairs = self.new_pairs()

    def new_pairs(self) -> Pairs:
        assert self.node.host is not None
        registry: Registry = self.registry
        return Pairs(lambda: self.info, registry, self.routes, self.node.host, self.mail, self.world.runtime, LOG)

    async def die(self) -> None:
        """The process ends: nobody is told."""
        await self.pairs.stop()
        await self.registry.close()
        self.world.post.listeners.pop(self.node.member, None)
        self.node.crash()
        self.world.part(self.node.name)

    def alone(self, group: str = "S") -> bool:
        """Whether this node is the whole group, and serves it."""
        found = self.world.cluster.group(self.node.name, group)
        return found.members == (self.node.member,) and found.leading

    def synced(self, other: Side, groups: int = 1) -> bool:
        peer = self.pairs._peers.get(other.node.member)
        return peer is not None and len(peer.sync) == groups


class World:
    """All sides."""

    def __init__(self, names: str) -> None:
        self.cluster = Cluster(names, 3)
        self.runtime = self.cluster.runtime
        self.runtime.boot_time_ns = lambda: 10**9 + int(self.runtime.monotonic() * 1e9)
        self.hub = MemoryHub(self.runtime, ttl=TTL)
        self.post = Post()
        self.sides: dict[str, Side] = {}

    def part(self, name: str) -> None:
        """End the routes of a node."""
        self.cluster.isolate(name)
        for other, side in self.sides.items():
            if other != name and name in side.routes.connected():
                side.routes.down(name)
            if other != name and other in self.sides[name].routes.connected():
                self.sides[name].routes.down(other)

    def meet(self) -> None:
        """Bring up a route between everybody."""
        self.cluster.cut.clear()
        for name, side in self.sides.items():
            for other, their in self.sides.items():
                if other != name and other not in side.routes.connected():
                    side.routes.instances[other] = their.node.instance
                    side.routes.up(other)


@asynccontextmanager
async def world(names: str = "ab", groups: int = 1) -> Any:
    """Nodes that are registered, connected, and share groups S, S1, S2…; both of two could go on alone."""
    made = World(names)
    cluster = made.cluster
    await cluster.start()
    for port, node in enumerate(cluster.nodes.values(), 6222):
        side = made.sides[node.name] = Side(made, node, port)
        for number in range(groups):
            await node.open(f"S{number or ''}", cluster.members(names))
        await side.registry.register(side.info)
        side.pairs.start()
    made.meet()
    try:
        if len(names) == 2:
            a, b = made.sides.values()
            await cluster.until(lambda: a.synced(b, groups) and b.synced(a, groups))
        yield made
    finally:
        for side in made.sides.values():
            await side.pairs.stop()
            await side.registry.close()
        for node in cluster.running():
            await node.stop()
        await made.hub.close()


def reasons(side: Side, name: str) -> tuple[str, ...]:
    return side.pairs.waiting.get(name, ())


@pytest.mark.parametrize("dies", "ab")
def test_the_survivor_goes_on_after_the_expiry_and_not_before(dies: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with world(groups=3) as made:
            victim, survivor = made.sides[dies], made.sides["b" if dies == "a" else "a"]
            await made.cluster.write(b"together", "S1")
            died = made.runtime.monotonic()
            await victim.die()
            await made.cluster.until(lambda: reasons(survivor, dies) == (f"the registry still lists {dies}",))
            await made.cluster.until(lambda: all(survivor.alone(group) for group in ("S", "S1", "S2")))
            assert TTL / 2 < made.runtime.monotonic() - died < TTL + 2
            await made.cluster.write(b"alone", "S1")
            assert list(survivor.node.machines["S1"].entries.values()) == [b"together", b"alone"]
            await made.cluster.until(lambda: not survivor.pairs.waiting)

    run(test)
    assert caplog.text.count("does not go on alone yet: the registry still lists") == 1, "however often it is looked at"
    assert caplog.text.count("in 3 of the 3 groups that both held: S, S1, S2") == 1


def test_both_alive_and_cut_off_from_each_other_wait() -> None:
    async def test() -> None:
        async with world() as made:
            a, b = made.sides.values()
            made.part("a")
            await made.runtime.sleep(10 * TTL)
            assert reasons(a, "b") == ("the registry still lists b",) and reasons(b, "a")
            made.meet()
            await made.cluster.write(b"after")
            assert not a.alone() and not b.alone()
            await made.cluster.until(lambda: not a.pairs.waiting and not b.pairs.waiting)

    run(test)


def test_who_has_lost_the_registry_too_never_goes_on() -> None:
    async def test() -> None:
        async with world() as made:
            a, b = made.sides.values()
            made.part("a")
            a.registry.cut = True
            await made.cluster.until(b.alone)
            await made.cluster.write(b"b alone")
            await made.runtime.sleep(3 * TTL)
            a.registry.cut = False
            b.registry.cut = True  # now the registry will show a alone
            await made.runtime.sleep(10 * TTL)
            listing = await a.registry.list_nodes()
            assert [node.name for node in listing.nodes] == ["a"]
            assert reasons(a, "b")[0] == "not in sync with b since the latest registry lapse" and not a.alone()

    run(test)


def test_a_restarted_process_has_no_right_until_it_is_in_sync() -> None:
    async def test() -> None:
        async with world() as made:
            a, b = made.sides.values()
            await a.die()
            await a.node.start()
            await a.node.open("S", made.cluster.members("ab"))
            a.registry = LonelyRegistry(made.hub)
            a.pairs = a.new_pairs()
            await a.registry.register(a.info)
            a.pairs.start()
            await b.die()
            await made.runtime.sleep(10 * TTL)
            assert "not in sync with b since this process started" in reasons(a, "b") and not a.alone()

    run(test)


def test_a_registry_that_forgets_takes_the_right_away_until_both_have_met_again() -> None:
    async def test() -> None:
        async with world() as made:
            a, b = made.sides.values()
            asked = len(made.post.asked)
            for name in "ab":
                await made.hub.withdraw(name)
            await made.runtime.sleep(2 * TTL)
            assert len(made.post.asked) > asked, "a new registration, a new question"
            assert a.synced(b) and b.synced(a)
            made.part("a")
            for name in "ab":
                await made.hub.withdraw(name)
            await made.runtime.sleep(2 * TTL)
            b.registry.cut = True
            await made.runtime.sleep(4 * TTL)
            assert reasons(a, "b")[0] == "not in sync with b since the latest registry lapse" and not a.alone()

    run(test)


def test_many_groups_need_few_questions_and_then_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nimsnats.cluster.pairs._AT_ONCE", 50)

    async def test() -> None:
        async with world(groups=120) as made:
            await made.runtime.sleep(2 * TTL)
            asked_by_a = [count for name, _, count in made.post.asked if name == "a"]
            assert len(asked_by_a) <= 6 and max(asked_by_a) == 50
            asked = len(made.post.asked)
            await made.runtime.sleep(4 * TTL)
            assert len(made.post.asked) == asked, "what is known need not be asked"
            await made.sides["b"].die()
            await made.cluster.until(lambda: all(made.sides["a"].alone(f"S{n or ''}") for n in range(120)))

    run(test)


def test_an_answer_counts_only_while_the_route_is_up() -> None:
    async def test() -> None:
        async with world() as made:
            a, b = made.sides.values()
            peer = a.pairs._peers[b.node.member]
            peer.sync.clear()
            made.post.held = asyncio.Event()
            asked = len(made.post.asked)
            await made.cluster.until(lambda: len(made.post.asked) > asked)
            made.part("a")
            made.meet()
            late, made.post.held = made.post.held, asyncio.Event()
            late.set()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not peer.sync, "it was given before the route was lost"
            made.post.held.set()
            made.post.held = None
            await made.cluster.until(lambda: a.synced(b))
            question = [["S", 0, made.cluster.group("a").committed]]
            assert b.pairs._answer(a.node.member, question)[0] >= 0
            made.part("a")
            assert b.pairs._answer(a.node.member, question) == [-1], "from now on it may go alone"
            assert b.pairs._answer("stranger@x", [["S", 0, 0], ["none", 0, 0]]) == [-1, -1]

    run(test)


def test_a_change_of_members_takes_the_right_away_while_it_lasts() -> None:
    async def test() -> None:
        async with world("abc") as made:
            a, b, c = made.sides.values()
            leader = await made.cluster.elected()
            keep = [leader.member, next(n.member for n in made.cluster.nodes.values() if n is not leader)]
            await made.cluster.group(leader.name).change_members(keep)
            one, two = (side for side in (a, b, c) if side.node.member in keep)
            await made.cluster.until(lambda: one.synced(two) and two.synced(one))
            third = next(side for side in (a, b, c) if side.node.member not in keep)
            await third.die()
            leading = one if made.cluster.group(one.node.name).leading else two
            other = two if leading is one else one
            change = asyncio.ensure_future(
                made.cluster.group(leading.node.name).change_members(made.cluster.members("abc"))
            )
            learners = made.cluster.group(other.node.name)
            await made.cluster.until(lambda: learners.learners)
            await leading.die()
            await made.runtime.sleep(4 * TTL)
            assert not other.alone() and not learners.partner(), "two others could be a majority"
            change.cancel()
            await asyncio.gather(change, return_exceptions=True)

    run(test)


def test_a_node_of_that_name_on_another_disk_is_not_the_other_member() -> None:
    async def test() -> None:
        async with world() as made:
            a, b = made.sides.values()
            await b.die()
            b.node.wipe()
            await b.node.start()
            b.info = replace(b.info, instance=b.node.instance)
            b.registry = LonelyRegistry(made.hub)
            await b.registry.register(b.info)
            made.meet()
            await made.cluster.until(a.alone, TTL)

    run(test)


@pytest.mark.parametrize("lacks", ["ttl", "stamps"])
def test_a_registry_that_proves_nothing_is_said_to_be_no_witness(lacks: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with world() as made:
            a, b = made.sides.values()
            for side in (a, b):
                setattr(side.registry, lacks, 0)
            await made.hub.withdraw("a")
            await made.hub.withdraw("b")
            await made.runtime.sleep(6 * TTL)
            await b.die()
            await made.runtime.sleep(6 * TTL)
            assert not a.alone() and reasons(a, "b")

    run(test)
    assert caplog.text.count("The registry is no witness") == 2, "once on each node"


def test_an_outage_of_the_registry_is_waited_for() -> None:
    async def test() -> None:
        async with world() as made:
            a, b = made.sides.values()
            made.hub.fail()
            await b.die()
            await made.cluster.until(lambda: "no listing of the registry since b was lost" in reasons(a, "b"))
            await made.runtime.sleep(TTL / 4)
            made.hub.heal()
            await made.cluster.until(a.alone)

    run(test)
