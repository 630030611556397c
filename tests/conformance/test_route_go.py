"""A Go nats-server as a core peer: whatever a client does on one side works for a client on the other."""

from __future__ import annotations

from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from tests.broker.peer import Peer, until
from tests.broker.route_stand import routed, settled
from tests.conformance.go_mesh import cluster_port, joined

HEADED = b"HPUB %b 18 23\r\nNATS/1.0\r\nA: b\r\n\r\nhello\r\n"


@pytest.mark.parametrize("dialling", ["go", "ours"])
async def test_messages_cross_in_both_directions(tmp_path: Path, dialling: str) -> None:
    async with routed("a") as a:
        with joined(tmp_path, *([a] if dialling == "go" else [])) as go:
            if dialling == "ours":
                a.add_route(f"127.0.0.1:{cluster_port(go)}")
            await until(lambda: a.routes)
            here, there = await Peer.connect(a.broker.port), await Peer.connect(go.port)
            assert a.connected() == {}, "a core peer holds no replicas"
            for subscriber, publisher in ((here, there), (there, here)):
                await subscriber.sync(b"SUB t.* 1\r\nSUB t.> 2\r\nSUB q.x g 3\r\n")
                await settled(a)
                await publisher.sync()
                for _ in range(3):
                    await publisher.sync(
                        b"PUB t.x 5\r\nhello\r\nPUB t.x r.r 5\r\nhello\r\n" + HEADED % b"t.x"
                        + b"PUB q.x 5\r\nhello\r\nPUB q.x r.r 5\r\nhello\r\n" + HEADED % b"q.x"
                    )  # fmt: skip
                await settled(a)
                lines = [line for line in await subscriber.sync() if line.startswith((b"MSG ", b"HMSG "))]
                once = [b"MSG t.x 1 5", b"MSG t.x 2 5", b"MSG t.x 1 r.r 5", b"MSG t.x 2 r.r 5", b"HMSG t.x 1 18 23"]
                once += [b"HMSG t.x 2 18 23", b"MSG q.x 3 5", b"MSG q.x 3 r.r 5", b"HMSG q.x 3 18 23"]
                assert sorted(lines) == sorted(once * 3)
                await subscriber.sync(b"UNSUB 1\r\nUNSUB 2\r\nUNSUB 3\r\n")
                await settled(a)


async def test_three_become_a_mesh_whichever_the_kind(tmp_path: Path) -> None:
    """Ours, ours and a Go server; the Go server knows one of ours only, and each learns of the others."""
    async with routed("a") as a, routed("b", a) as b:
        with joined(tmp_path, a) as go:
            await until(lambda: len(a.routes) == len(b.routes) == 2)
            assert (set(a.connected()), set(b.connected())) == ({"b"}, {"a"})
            client = await Peer.connect(go.port)
            one, two = await Peer.connect(a.broker.port), await Peer.connect(b.broker.port)
            await client.sync(b"SUB foo 1\r\n")
            await settled(a, b)
            for peer in (one, two):
                await peer.sync(b"PUB foo 2\r\nhi\r\n")
            await settled(a, b)
            assert await client.sync() == [b"MSG foo 1 2", b"hi"] * 2
            newcomer = await Peer.connect(go.port)
            assert {f"127.0.0.1:{table.broker.port}" for table in (a, b)} < set(newcomer.info["connect_urls"])
            assert f"127.0.0.1:{go.port}" in (await Peer.connect(b.broker.port)).info["connect_urls"]
            go.stop()
            await until(lambda: len(a.routes) == len(b.routes) == 1)
            assert not a.broker.global_account.has_interest(b"foo")


async def test_requests_and_no_responders_cross(tmp_path: Path) -> None:
    async with routed("a") as a:
        with joined(tmp_path, a) as go:
            await until(lambda: a.routes)
            for asking, answering in ((go.url, a.broker.port), (f"nats://127.0.0.1:{a.broker.port}", go.port)):
                requester = await nats.connect(asking)
                server = await nats.connect(f"nats://127.0.0.1:{answering}")

                async def answer(message: Msg) -> None:
                    await message.respond(b"re:" + message.data)

                sub = await server.subscribe("svc", queue="workers", cb=answer)
                await server.flush()
                await settled(a)
                await requester.flush()
                answers = [await requester.request("svc", b"%d" % n, timeout=20) for n in range(20)]
                assert [message.data for message in answers] == [b"re:%d" % n for n in range(20)]
                await sub.unsubscribe()
                await server.flush()
                await settled(a)
                await requester.flush()
                with pytest.raises(NoRespondersError):
                    await requester.request("svc", b"", timeout=20)
                await requester.close()
                await server.close()


async def test_members_of_a_group_on_both_sides_share_the_work(tmp_path: Path) -> None:
    async with routed("a") as a:
        with joined(tmp_path, a) as go:
            await until(lambda: a.routes)
            ports = (a.broker.port, go.port)
            members = [await Peer.connect(port) for port in ports]
            for member in members:
                await member.sync(b"SUB job g 1\r\n")
            await settled(a)
            for port in ports:
                publisher = await Peer.connect(port)
                await publisher.sync(b"PUB job 1\r\nx\r\n" * 200)
                await settled(a)
                counts = [sum(line.startswith(b"MSG") for line in await member.sync()) for member in members]
                assert sum(counts) == 200
                assert min(counts) > 50


@pytest.mark.parametrize(("login", "welcome"), [("nimsnats:right@", True), ("nimsnats:wrong@", False)])
async def test_the_shared_secret_in_a_go_servers_url(tmp_path: Path, login: str, welcome: bool) -> None:
    async with routed("a", user="nimsnats", password="right") as a:
        with joined(tmp_path, a, login=login) as go:
            if welcome:
                await until(lambda: a.routes)
            else:
                log = go.directory / "oracle.log"
                await until(lambda: b"Authorization Violation" in log.read_bytes())
                assert not a.routes
