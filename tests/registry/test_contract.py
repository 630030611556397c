"""What every registry client promises, run on each of them. The registry's time is manual."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, Protocol

import pytest

from nimsnats.registry import NodeInfo, RegistryUnavailableError
from nimsnats.registry.local import LocalRegistry
from nimsnats.registry.member import RegistryMember
from nimsnats.registry.memory import MemoryHub
from nimsnats.registry.morpheus import MorpheusRegistry
from nimsnats.registry.server import DATABASE, RegistryServer
from nimsnats.runtime import Runtime
from tests.registry.clock import ManualRuntime
from tests.registry.watching import until, watching

TTL = 30.0


class World(Protocol):
    """A registry, clients of it, and the faults that it can be given."""

    def client(self, service: str = "nimsforest") -> RegistryMember: ...

    async def advance(self, seconds: float) -> None: ...

    async def fail(self) -> None: ...

    async def heal(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.runtime = ManualRuntime()
        self.hub = MemoryHub(self.runtime, ttl=TTL)

    def client(self, service: str = "nimsforest") -> RegistryMember:
        return self.hub.registry(service)

    async def advance(self, seconds: float) -> None:
        await self.runtime.advance(seconds)

    async def fail(self) -> None:
        self.hub.fail()

    async def heal(self) -> None:
        self.hub.heal()

    async def close(self) -> None:
        await self.hub.close()


class HttpWorld:
    """Our server on a manual clock, clients on the real one (their sockets are real)."""

    def __init__(self, watch: Literal["sse", "long-poll", "poll"], data_dir: Path) -> None:
        self.runtime = ManualRuntime()
        self.watch = watch
        self.port = 0
        self.data_dir = data_dir

    async def open(self) -> None:
        self.server = RegistryServer(self.runtime, ttl=TTL, data_dir=self.data_dir)
        await self.server.start(f"127.0.0.1:{self.port}")
        self.port = self.server.port

    def client(self, service: str = "nimsforest") -> RegistryMember:
        return MorpheusRegistry(
            f"http://127.0.0.1:{self.port}",
            service,
            runtime=Runtime.real(),
            watch=self.watch,
            poll_interval=0.02,
        )

    async def advance(self, seconds: float) -> None:
        await self.runtime.advance(seconds)

    async def fail(self) -> None:
        await self.server.stop()

    async def heal(self) -> None:
        self.runtime.now += 1  # no server restarts in no time
        await self.open()

    async def close(self) -> None:
        await self.server.stop()


class LocalWorld(HttpWorld):
    """A node on the registry that it embeds; the server beside it only provides the directory."""

    def client(self, service: str = "nimsforest") -> RegistryMember:
        return LocalRegistry(self.server.directory, service)


@pytest.fixture(params=["memory", "local", "sse", "long-poll", "poll"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryWorld | HttpWorld]:
    if request.param == "memory":
        made: MemoryWorld | HttpWorld = MemoryWorld()
    else:
        made = LocalWorld("poll", tmp_path) if request.param == "local" else HttpWorld(request.param, tmp_path)
        await made.open()
    yield made
    await made.close()


def node(name: str, port: int = 6222, **more: str) -> NodeInfo:
    return NodeInfo(name, "127.0.0.1", port, **more)


async def test_peers_see_each_other_and_not_themselves(world: MemoryWorld | HttpWorld) -> None:
    async with world.client() as one, world.client() as two:
        await one.register(node("one", instance="i1", http="http://127.0.0.1:8222"))
        assert await one.get_peers() == []
        await two.register(node("two", 6223))
        (seen,) = await two.get_peers()
        assert (seen.name, seen.cluster_addr, seen.instance) == ("one", "127.0.0.1:6222", "i1")
        assert seen.http == "http://127.0.0.1:8222"
        assert seen.registered_at.year >= 2023
        assert [peer.name for peer in await one.get_peers()] == ["two"]
        assert one.status.connected and one.status.registered and one.status.last_success is not None
        await one.deregister()
        await two.deregister()


async def test_list_shows_this_node_too_and_when_it_was_asked(world: MemoryWorld | HttpWorld) -> None:
    async with world.client() as one:
        await one.register(node("one"))
        first = await one.list_nodes()
        second = await one.list_nodes()
        assert first.find("one") is not None and first.find("two") is None
        assert first.requested_ns <= second.requested_ns


async def test_watch_begins_with_those_present_and_follows(world: MemoryWorld | HttpWorld) -> None:
    async with world.client() as one, world.client() as two, world.client() as three:
        await one.register(node("one"))
        await two.register(node("two", 6223))
        async with watching(one) as seen:
            assert await seen.next() == ("added", "two")
            await three.register(node("three", 6224))
            assert await seen.next() == ("added", "three")
            await two.deregister()
            assert await seen.next() == ("removed", "two")
            await two.register(node("two", 6223))
            assert await seen.next() == ("added", "two")
            assert one.status.watch != ""
            assert seen.nothing()


async def test_watch_begins_with_the_difference_to_what_is_known(world: MemoryWorld | HttpWorld) -> None:
    async with world.client() as one, world.client() as two:
        await one.register(node("one"))
        await two.register(node("two", 6223))
        async with watching(one, [node("two", 6223), node("gone", 1)]) as seen:
            assert await seen.next() == ("removed", "gone")
            await two.deregister()
            assert await seen.next() == ("removed", "two")


async def test_a_changed_endpoint_is_removed_and_added(world: MemoryWorld | HttpWorld) -> None:
    async with world.client() as one, world.client() as two:
        await one.register(node("one"))
        await two.register(node("two", 6223, instance="a"))
        async with watching(one) as seen:
            assert await seen.next() == ("added", "two")
            for changed in (node("two", 7000, instance="a"), node("two", 7000, instance="b")):
                await two.register(changed)
                assert await seen.next() == ("removed", "two")
                event = await seen.event()
                assert (event.type, event.node.port, event.node.instance) == ("added", 7000, changed.instance)
            await two.register(node("two", 7000, instance="b"))
            await two.deregister()
            assert await seen.next() == ("removed", "two")


async def test_a_silent_node_expires_and_its_own_name_comes_back(world: MemoryWorld | HttpWorld) -> None:
    async with world.client() as one, world.client() as two:
        await one.register(node("one"))
        await two.register(node("two", 6223))
        await two.close()  # no heartbeats any more
        async with watching(one) as seen:
            assert await seen.next() == ("added", "two")
            await world.advance(TTL - 1)
            await one.heartbeat()
            assert seen.nothing()
            await world.advance(2)
            assert await seen.next() == ("removed", "two")
            assert [peer.name for peer in await one.get_peers()] == []
        await two.heartbeat()
        assert two.lease.lapses == 1
        assert [peer.name for peer in await one.get_peers()] == ["two"]


async def test_an_outage_is_an_error_but_not_an_event(world: MemoryWorld | HttpWorld) -> None:
    if isinstance(world, LocalWorld):
        pytest.skip("the registry in the same process cannot be away")
    async with world.client() as one, world.client() as two:
        await one.register(node("one"))
        await two.register(node("two", 6223))
        async with watching(one) as seen:
            assert await seen.next() == ("added", "two")
            await world.fail()
            with pytest.raises(RegistryUnavailableError):
                await one.get_peers()
            assert not one.status.connected and one.status.last_error
            await world.heal()
            await one.heartbeat()
            await two.heartbeat()
            assert one.status.connected and not one.status.last_error
            assert [peer.name for peer in await one.get_peers()] == ["two"]
            assert seen.nothing()


async def test_registering_during_an_outage_fails_now_and_works_later(
    world: MemoryWorld | HttpWorld, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(world, LocalWorld):
        pytest.skip("the registry in the same process cannot be away")
    caplog.set_level(logging.INFO)
    await world.fail()
    async with world.client() as one, world.client() as two:
        with pytest.raises(RegistryUnavailableError):
            await one.register(node("one"))
        assert not one.status.registered
        await world.heal()
        await two.register(node("two", 6223))
        if isinstance(world, MemoryWorld):
            await world.advance(10)
        await until(lambda: one.status.registered)
        assert [peer.name for peer in await two.get_peers()] == ["one"]
    assert f"Registered in registry at {one.status.url}" in caplog.text


async def test_a_restarted_registry_without_memory_learns_its_nodes_again(world: MemoryWorld | HttpWorld) -> None:
    if isinstance(world, LocalWorld | MemoryWorld):
        pytest.skip("only a server can lose its memory")
    async with world.client() as one:
        await one.register(node("one"))
        since = one.lease.since_ns
        await world.fail()
        (world.data_dir / DATABASE).unlink()
        await world.heal()
        await one.heartbeat()
        assert one.lease.lapses == 1 and one.lease.since_ns > since
        assert (await one.list_nodes()).find("one") is not None


async def test_heartbeats_keep_the_lease_unbroken(world: MemoryWorld | HttpWorld) -> None:
    async with world.client() as one:
        await one.register(node("one"))
        since = one.lease.since_ns
        await one.heartbeat()
        assert one.lease.since_ns == since and one.lease.lapses == 0
        assert one.lease.ttl_ns == int(TTL * 1e9)
        assert one.lease.unbroken(one.lease.renewed_ns + int(29e9))
        assert not one.lease.unbroken(one.lease.renewed_ns + int(30e9))
        await one.deregister()
        assert not one.lease.unbroken(since)


async def test_a_second_instance_takes_the_name_and_the_first_says_so(
    world: MemoryWorld | HttpWorld, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.client() as first, world.client() as second:
        await first.register(node("one", instance="a"))
        await second.register(node("one", 6999, instance="b"))
        for _ in range(2):
            with pytest.raises(Exception, match="another instance"):
                await first.heartbeat()
        assert first.status.connected and not first.status.registered
        assert caplog.text.count("Node name one is taken by another node") == 1
        await second.deregister()
        await first.heartbeat()
        assert first.status.registered


async def test_a_late_farewell_does_not_take_the_next_one_of_that_name_away(world: MemoryWorld | HttpWorld) -> None:
    async with world.client() as former, world.client() as latter, world.client() as observer:
        await former.register(node("one", instance="i1"))
        await latter.register(node("one", 6223, instance="i2"))
        await former.deregister()
        await observer.register(node("two"))
        assert [(peer.name, peer.instance) for peer in await observer.get_peers()] == [("one", "i2")]
        await latter.deregister()
        assert await observer.get_peers() == []


async def test_deregistering_twice_or_never_is_harmless(world: MemoryWorld | HttpWorld) -> None:
    async with world.client() as one:
        await one.deregister()
        await one.register(node("one"))
        await one.deregister()
        await one.deregister()
        assert one.name == ""
        await one.close()
        await one.close()


async def test_services_do_not_see_each_other(world: MemoryWorld | HttpWorld) -> None:
    async with world.client() as one, world.client("another") as other:
        await one.register(node("one"))
        await other.register(node("two"))
        assert await one.get_peers() == []
        assert await other.get_peers() == []
