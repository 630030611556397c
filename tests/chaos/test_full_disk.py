"""A disk without space: publishes are refused, what was acknowledged stays, and service resumes when there is space."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from nats.js.errors import APIError

from tests.chaos.process import SERVER_READY, NodeProcess
from tests.chaos.workload import Ledger, check_stream, connect, make_order_stream

LIMIT = 400_000


def limit_files(node: NodeProcess, size: int) -> None:
    """No file of the node may grow beyond `size` bytes: what a full disk looks like, without filling one."""
    assert node.process is not None
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def test_publishes_are_refused_and_resume(tmp_path: Path) -> None:
    ledger = Ledger()
    node = NodeProcess(tmp_path, command="server", ready=SERVER_READY)
    async with node:
        client = await connect(node.url)
        js = client.jetstream()
        await make_order_stream(js)

        async def publish(message_id: str) -> None:
            ack = await js.publish("orders.full", message_id.encode().ljust(4000, b"."), timeout=10)
            ledger.publish_acknowledged(ack.seq, message_id)

        await publish("before")
        limit_files(node, LIMIT)
        with pytest.raises(APIError) as refused:
            for number in range(2 * LIMIT // 4000):
                await publish(f"filling-{number}")
        assert refused.value.code in (500, 503)
        with pytest.raises(APIError):
            await publish("still full")
        limit_files(node, resource.RLIM_INFINITY)
        for number in range(20):
            await publish(f"after-{number}")
        await check_stream(js, ledger)
        assert len([line for line in node.log if "[ERR] Storage is full" in line]) == 1
        assert any("[INF] Storage has space again" in line for line in node.log)
        await client.close()
        await node.kill()
        await node.start()
        client = await connect(node.url)
        await check_stream(client.jetstream(), ledger)
        await client.close()
