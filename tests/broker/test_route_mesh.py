"""Clients of one server reach clients of another."""

from __future__ import annotations

from tests.broker.peer import Peer
from tests.broker.route_stand import mesh, settled


async def test_three_servers_become_a_full_mesh_by_gossip() -> None:
    async with mesh("a", "b", "c") as (a, b, c):
        assert set(a.connected()) == {"b", "c"}
        assert set(b.connected()) == {"a", "c"}
        assert c.connected() == {"a": f"127.0.0.1:{a.port}", "b": f"127.0.0.1:{b.port}"}


async def test_publish_reaches_each_server_once() -> None:
    async with mesh("a", "b", "c") as tables:
        one, two, three = [await Peer.connect(table.broker.port) for table in tables]
        await one.sync(b"SUB t.* 1\r\nSUB t.> 2\r\n")
        await two.sync(b"SUB t.x 7\r\n")
        await settled(*tables)
        for _ in range(3):  # unknown subject, plan kept, known line
            await three.sync(b"PUB t.x 2\r\nhi\r\nPUB t.x re.ply 2\r\nhi\r\nHPUB t.x 12 13\r\nNATS/1.0\r\n\r\nx\r\n")
        await settled(*tables)
        assert sorted(await two.sync()) == sorted(
            [b"MSG t.x 7 2", b"hi", b"MSG t.x 7 re.ply 2", b"hi", b"HMSG t.x 7 12 13", b"NATS/1.0", b"", b"x"] * 3
        )
        assert [line for line in await one.sync() if b"MSG" in line].count(b"MSG t.x 1 2") == 3
