"""What monitoring says about routes, beside what the Go server at the other end says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import nats

from nimsnats.broker.options import User
from nimsnats.monitor.peers import routez
from nimsnats.monitor.system import SystemServices
from nimsnats.monitor.varz import varz
from nimsnats.monitor.view import NodeView
from tests.broker.peer import Peer, until
from tests.broker.route_stand import mesh, routed, settled
from tests.conformance.go_mesh import joined
from tests.monitor.conftest import monitored


async def test_routez_has_the_go_servers_shape(tmp_path: Path) -> None:
    async with routed("ours", broker={"cluster_name": "X"}) as table:
        with joined(tmp_path, table, config="http: 127.0.0.1:-1") as go:
            await until(lambda: table.routes)
            client = await Peer.connect(go.port)
            await client.sync(b"SUB foo 1\r\nSUB foo q 2\r\n")
            await settled(table)
            theirs = await monitored(go).get("/routez?subs=detail")
            view = NodeView(table.broker)
            ours = routez(view, subscriptions_detail=True)
            assert ours.keys() == theirs.keys()
            assert (ours["num_routes"], theirs["num_routes"]) == (1, 1)
            (here,), (there,) = ours["routes"], theirs["routes"]
            assert here.keys() ^ there.keys() <= {"rtt", "subscriptions_list_detail"}, "ours has routed nothing"
            assert (here["did_solicit"], there["did_solicit"]) == (False, True)
            assert (here["remote_name"], there["remote_name"]) == (theirs["server_name"], "ours")
            assert {"subject": "foo", "qgroup": "q"}.items() <= here["subscriptions_list_detail"][-1].items()
            assert "foo" in routez(view, subscriptions=True)["routes"][0]["subscriptions_list"]
            their_block = (await monitored(go).get("/varz"))["cluster"]
            our_block = varz(view)["cluster"]
            assert our_block.keys() <= their_block.keys() | {"urls"}
            assert our_block["name"] == their_block["name"] == "X"


async def test_varz_tells_traffic_of_clients_from_that_of_routes() -> None:
    async with mesh("a", "b", broker={"cluster_name": "X"}) as (a, b):
        subscriber, publisher = await Peer.connect(b.broker.port), await Peer.connect(a.broker.port)
        await subscriber.sync(b"SUB foo 1\r\n")
        await settled(b)
        await publisher.sync(b"PUB foo 5\r\nhello\r\n" * 4)
        await settled(a)
        await subscriber.sync()
        numbers = [varz(NodeView(table.broker)) for table in (a, b)]
        assert [shown["routes"] for shown in numbers] == [1, 1]
        assert [shown["remotes"] for shown in numbers] == [1, 1]
        names = ("in_msgs", "in_client_msgs", "out_msgs", "out_client_msgs", "in_bytes", "in_client_bytes")
        assert [numbers[0][name] for name in names] == [4, 4, 4, 0, 20, 20]
        assert [numbers[1][name] for name in names] == [4, 0, 4, 4, 20, 0]


async def test_each_server_lists_the_other(tmp_path: Path) -> None:
    """What `nats server list` asks for, on either side."""
    login = "accounts { $SYS { users: [{ user: s, password: s }] } }"
    async with routed("ours", broker={"users": [User("s", "s", "$SYS")]}) as table:
        services = SystemServices(NodeView(table.broker))
        services.start()
        with joined(tmp_path, table, config=login) as go:
            await until(lambda: table.routes)
            await settled(table)
            for port in (go.port, table.broker.port):
                client = await nats.connect(f"nats://s:s@127.0.0.1:{port}")
                inbox = client.new_inbox()
                answers = await client.subscribe(inbox)
                await client.publish("$SYS.REQ.SERVER.PING", b"", reply=inbox)
                async with asyncio.timeout(20):
                    said = [json.loads((await answers.next_msg(20)).data) for _ in range(2)]
                ours, theirs = sorted(said, key=lambda answer: answer["server"]["name"] != "ours")
                (here,), (there, *_) = ours["statsz"]["routes"], theirs["statsz"]["routes"]
                assert here.keys() <= there.keys()
                assert ours["statsz"]["active_servers"] == 2
                assert {answer["server"]["id"] for answer in said} == {table.broker.server_id, *table.routes}
                await client.close()
        services.stop()
