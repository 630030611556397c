"""Whole nodes that know a registry and nothing else: real routes under the cluster manager."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from nimsnats.broker.tls import TlsOptions
from nimsnats.config.settings import for_node
from nimsnats.node import Node
from tests.broker.peer import until
from tests.certificates import Authority, needs_openssl


@asynccontextmanager
async def node(
    directory: Path, name: str, registry: str = "", secret: str = "", tls: TlsOptions | None = None
) -> AsyncIterator[Node]:
    """A node on loopback without the forest."""
    settings = for_node()
    settings.node_name = settings.broker.server_name = name
    settings.data_dir = settings.jetstream.store_dir = directory / name
    settings.broker.host = settings.cluster.host = settings.monitor.host = "127.0.0.1"
    settings.broker.port = settings.cluster.port = settings.monitor.port = -1
    settings.broker.cluster_name = settings.cluster.name
    settings.cluster.advertise = "127.0.0.1"
    settings.cluster.user, settings.cluster.password = ("nimsnats", secret) if secret else ("", "")
    settings.cluster.tls = tls
    settings.forest.enabled = False
    settings.registry.url = registry
    async with Node(settings) as running:
        yield running


def size(running: Node) -> int:
    assert running.cluster is not None
    return running.cluster.cluster_size


def registry_of(running: Node) -> str:
    assert running.server.monitor is not None
    return f"http://127.0.0.1:{running.server.monitor.port}"


async def test_three_nodes_grow_together_and_one_leaves(tmp_path: Path) -> None:
    async with node(tmp_path, "n1") as first, AsyncExitStack() as stack:
        second = await stack.enter_async_context(node(tmp_path, "n2", registry_of(first)))
        assert (size(first), size(second)) == (2, 2), "a node has settled when it is ready"
        async with node(tmp_path, "n3", registry_of(first)) as third:
            await until(lambda: size(first) == size(second) == size(third) == 3)
            assert third.cluster is not None and third.cluster.replication_factor == 3
            assert third.cluster.state.peers == ("n1", "n2")
            one, three = await first.client(), await third.client()
            inbox = await three.subscribe("greeting")
            await three.flush()
            await until(lambda: first.server.broker.global_account.has_interest(b"greeting"))
            await one.publish("greeting", b"hello")
            assert (await inbox.next_msg(2)).data == b"hello"
            await one.close()
            await three.close()
        await until(lambda: size(first) == size(second) == 2)


async def test_a_shared_secret_lets_in_who_knows_it(tmp_path: Path) -> None:
    async with node(tmp_path, "n1", secret="right") as first:
        async with node(tmp_path, "n2", registry_of(first), secret="right"):
            assert size(first) == 2
        await until(lambda: size(first) == 1)
        assert first.server.routes is not None
        assert not first.server.routes.admits("nimsnats", "wrong")


@needs_openssl
async def test_nodes_replicate_through_tls(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "authority")
    async with node(tmp_path, "n1", tls=authority.options("n1")) as first:
        async with node(tmp_path, "n2", registry_of(first), tls=authority.options("n2")) as second:
            assert (size(first), size(second)) == (2, 2)
            client = await second.client()
            js = client.jetstream(timeout=5)
            info = await js.add_stream(name="S", subjects=["s"], num_replicas=2)
            assert info.cluster is not None and len(info.cluster.replicas or ()) == 1
            sizes = [10, 100_000, 900_000]
            assert [(await js.publish("s", b"x" * size)).seq for size in sizes] == [1, 2, 3]
            await client.close()
        other = await first.client()
        assert [len((await other.jetstream(timeout=5).get_msg("S", seq)).data or b"") for seq in (1, 2, 3)] == sizes
        await other.close()
