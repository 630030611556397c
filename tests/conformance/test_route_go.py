"""A Go nats-server as a core peer: whatever a client does on one side works for a client on the other."""

from __future__ import annotations

from pathlib import Path

import pytest

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
                lines = [line for line in await subscriber.sync() if b"MSG" in line]
                once = [b"MSG t.x 1 5", b"MSG t.x 2 5", b"MSG t.x 1 r.r 5", b"MSG t.x 2 r.r 5", b"HMSG t.x 1 18 23"]
                once += [b"HMSG t.x 2 18 23", b"MSG q.x 3 5", b"MSG q.x 3 r.r 5", b"HMSG q.x 3 18 23"]
                assert sorted(lines) == sorted(once * 3)
                await subscriber.sync(b"UNSUB 1\r\nUNSUB 2\r\nUNSUB 3\r\n")
                await settled(a)
