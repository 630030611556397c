"""Whole nodes and Go servers: what the cluster's secret and TLS let through, alone and together."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nimsnats.broker.route_proof import channel_of
from nimsnats.broker.tls import TlsOptions
from tests.broker.peer import Peer, until
from tests.broker.route_stand import meshed, routed, settled
from tests.certificates import Authority, needs_openssl
from tests.cluster.test_route_nodes import node, registry_of, size
from tests.conformance.go_mesh import cluster_port, joined
from tests.security.impostor import GUARDED, SECRET


async def test_three_nodes_that_know_the_secret_and_a_registry(tmp_path: Path) -> None:
    """They form a cluster by themselves, replicate, and each is a member to each."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(node(tmp_path, "n1", secret=SECRET))
        others = [
            await stack.enter_async_context(node(tmp_path, name, registry_of(first), secret=SECRET))
            for name in ("n2", "n3")
        ]
        nodes = [first, *others]
        await until(lambda: [size(each) for each in nodes] == [3, 3, 3])
        client = await first.client()
        js = client.jetstream(timeout=5)
        info = await js.add_stream(name="S", subjects=["s.>"], num_replicas=3)
        assert info.cluster is not None and len(info.cluster.replicas or ()) == 2
        assert [(await js.publish("s.x", b"")).seq for _ in range(5)] == [1, 2, 3, 4, 5]
        assert all(route.member for each in nodes for route in _routes(each).values())
        await client.close()


def _routes(running: Any) -> dict[str, Any]:
    assert running.server.routes is not None
    return running.server.routes.routes


TLS = ["neither", "secret", "tls", "both"]


@needs_openssl
@pytest.mark.parametrize("way", TLS)
async def test_tls_alone_the_secret_alone_and_both(tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nodes that have the same meet; one that lacks either does not come in."""
    caplog.set_level(logging.ERROR)
    authority = Authority.make(tmp_path / "authority")
    tls = authority.options("node") if way in ("tls", "both") else None
    options: dict[str, Any] = {"tls": tls, **(GUARDED if way in ("secret", "both") else {"redial_refused": 0.02})}
    async with routed("a", **options) as a, routed("b", a, **options) as b, routed("c", b, a, **options) as c:
        await meshed(a, b, c)
        assert all(route.member for table in (a, b, c) for route in table.routes.values())
        for lacks in [each for each in ("secret", "tls") if way in (each, "both")]:
            without = dict(options) | ({"tls": None} if lacks == "tls" else {"user": "", "password": ""})
            before = a.refused
            async with routed(f"without-{lacks}", a, auth_timeout=0.3, **without) as stranger:
                await until(lambda before=before: a.refused > before)
                assert not stranger.routes and len(a.routes) == 2
        client = await Peer.connect(c.broker.port)
        await client.sync(b"SUB x 1\r\n")
        await settled(c)
        publisher = await Peer.connect(a.broker.port)
        await publisher.sync(b"PUB x 2\r\nhi\r\n")
        await settled(a)
        assert await client.sync() == [b"MSG x 1 2", b"hi"]


@needs_openssl
async def test_with_tls_a_proof_is_good_for_one_pair_of_certificates(tmp_path: Path) -> None:
    """Somebody in between who has a certificate of the same authority passes everything on, and gets nowhere."""
    authority = Authority.make(tmp_path / "authority")
    tls = {name: authority.options(name) for name in ("a", "b", "between")}
    async with routed("a", tls=tls["a"], **GUARDED) as a:
        async with _relayed(a.port, tls["between"]) as port, routed("b", tls=tls["b"], **GUARDED) as b:
            b.add_route(f"127.0.0.1:{port}")
            await until(lambda: a.refused > 2 and b.refused > 2)
            assert not a.routes and not b.routes
        async with routed("b", a, tls=tls["b"], **GUARDED) as b:
            await meshed(a, b)
    assert channel_of(b"x", b"y") != channel_of(b"y", b"x") and channel_of(b"", b"y") == b""


def _relayed(target: int, tls: TlsOptions) -> Any:
    """A relay that ends TLS on both sides; yields its port."""
    import asyncio
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def relay() -> Any:
        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(65536):
                    writer.write(data)
            except OSError:
                pass  # either side may be cut at any time
            writer.close()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_connection("127.0.0.1", target, ssl=tls.dialling(), server_hostname="127.0.0.1")
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls.listening(verify=True))
        yield server.sockets[0].getsockname()[1]
        server.close()

    return relay()


# -- Go servers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialling", ["go", "ours"])
async def test_a_go_server_comes_in_by_password_as_a_core_peer(tmp_path: Path, dialling: str) -> None:
    """Its clients reach ours and ours reach its, and nodes' own subjects are not for them."""
    login = f"nimsnats:{SECRET}@"
    system = "accounts { $SYS { users: [{ user: s, password: s }] } }"
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(routed("a", **GUARDED))
        go = stack.enter_context(joined(tmp_path, *([a] if dialling == "go" else []), login=login, config=system))
        routes = [f"nats://{login}127.0.0.1:{cluster_port(go)}"] if dialling == "ours" else []
        b = await stack.enter_async_context(routed("b", a, routes=routes, **GUARDED))
        table = a if dialling == "go" else b
        await until(lambda: len(a.connected()) == len(b.connected()) == 1)
        await until(lambda: len(table.routes) == 2)
        assert sorted(route.member for route in table.routes.values()) == [False, True]
        got: list[bytes] = []
        table.broker.system_account.subscribe(
            b"$NIMS.API.x", lambda _s, _r, _h, payload, _o: got.append(payload), routed=True
        )
        spy = await Peer.connect(go.port, b'CONNECT {"verbose":false,"user":"s","pass":"s"}\r\n')
        await spy.sync(b"SUB > 1\r\nSUB $NIMS.> 2\r\nSUB > $JS.S.S 3\r\n")
        here, there = await Peer.connect(table.broker.port), await Peer.connect(go.port)
        await here.sync(b"SUB t 1\r\n")
        await settled(table)
        assert table.broker.system_account.publish(b"$NIMS.API.x", b"secret") == 1, "only the handler in here"
        await spy.sync(b"PUB $NIMS.API.x 4\r\nevil\r\n" * 3)
        await there.sync(b"PUB t 2\r\nhi\r\n")
        await settled(table)
        assert await here.sync() == [b"MSG t 1 2", b"hi"]
        assert got == [b"secret"]
        assert not any(line.startswith(b"MSG $NIMS") and b" 6" in line for line in await spy.sync())


async def test_a_go_server_at_an_address_from_a_registry_hears_no_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Even a real one: whoever can write into a registry could have started it."""
    caplog.set_level(logging.ERROR)
    with joined(tmp_path, login=f"nimsnats:{SECRET}@") as go:
        async with routed("a", **GUARDED) as a:
            a.add_route(f"127.0.0.1:{cluster_port(go)}")
            opened = a.broker.next_id()
            await until(lambda: a.broker.next_id() > opened + 10)
            assert not a.routes
            assert len(caplog.records) == 1 and "does not prove the cluster's secret" in caplog.text


# -- a node that does not belong ------------------------------------------------------------------------------------


async def test_a_node_with_another_secret_stays_alone_and_both_logs_say_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with node(tmp_path, "n1", secret=SECRET) as first, node(tmp_path, "n2", secret="another") as second:
        assert first.server.routes is not None and second.server.routes is not None
        for table, other in ((first.server.routes, second), (second.server.routes, first)):
            assert other.server.routes is not None
            table.add_route(f"127.0.0.1:{other.server.routes.port}")
        said = "NATS_CLUSTER_SECRET must be the same on all nodes"
        await until(lambda: caplog.text.count(said) >= 4)
        lines = [record.getMessage() for record in caplog.records if said in record.getMessage()]
        assert sum('node "n1" does not know' in line or '"n1" - Route Error' in line for line in lines) >= 1
        assert sum('node "n2" does not know' in line or '"n2" - Route Error' in line for line in lines) >= 1
        assert SECRET not in caplog.text and "another" not in caplog.text
        assert (size(first), size(second)) == (1, 1)
