"""At the limit of descriptors: clients are told, what is stored stays and goes on, and everything comes back."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nimsnats.descriptors import Descriptors, reserve_of
from nimsnats.runtime import Runtime
from nimsnats.storage import open_database
from nimsnats.storage.runway import Runway
from tests.chaos.process import SERVER_READY, NodeProcess
from tests.chaos.workload import Ledger, check_stream, connect, make_order_stream

LIMIT = 128


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Transport(asyncio.BaseTransport):
    """A connection whose descriptor has a number of our choice."""

    def __init__(self, number: int) -> None:
        self._number = number

    def get_extra_info(self, name: str, default: object = None) -> object:
        assert name == "socket"
        return self

    def fileno(self) -> int:
        return self._number


@pytest.mark.parametrize(("limit", "reserve"), [(64, 16), (128, 16), (256, 32), (1024, 64), (1 << 20, 64), (8, 16)])
def test_reserve(limit: int, reserve: int) -> None:
    assert reserve_of(limit) == reserve
    assert Descriptors(logging.getLogger("test"), limit).clients == max(limit - reserve, 0)


def test_the_log_hears_of_each_shortage_once(caplog: pytest.LogCaptureFixture) -> None:
    descriptors = Descriptors(logging.getLogger("nimsnats.test"), 256)
    caplog.set_level(logging.INFO)
    assert descriptors.admit(None) and descriptors.admit(Transport(223))
    assert not any(descriptors.admit(Transport(number)) for number in (224, 230, 255))
    assert descriptors.admit(Transport(223)) and not descriptors.admit(Transport(224))
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert descriptors.admit(Transport(20)) and not descriptors.admit(Transport(224))
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO", "ERROR"]
    assert "224 of 256" in caplog.messages[0] and descriptors.refused == 5


async def refused(port: int) -> bytes:
    """What a client is told that comes too late: all of it, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("sync", [pytest.param("always", marks=pytest.mark.extended), "interval"])
async def test_flood(tmp_path: Path, sync: str) -> None:
    """Every descriptor taken by clients, publishes meanwhile; then they leave."""
    config = tmp_path / "node.conf"
    config.write_text(f"jetstream {{ sync: {sync} }}\n")
    node = NodeProcess(tmp_path / "data", "-c", str(config), command="server", ready=SERVER_READY)
    node.enter = limited(LIMIT // 2, LIMIT)
    ledger = Ledger()
    async with node:
        assert any(f"At most {LIMIT - 16} clients" in line for line in node.log)
        assert (await node.get("/varz"))["max_connections"] == LIMIT - 16
        client = await connect(node.url)
        js = client.jetstream()
        await make_order_stream(js)

        async def publish(name: str) -> None:
            for number in range(20):
                identity = f"{name}-{number}"
                ack = await js.publish("orders.x", identity.encode().ljust(2000, b"."), timeout=10)
                ledger.publish_acknowledged(ack.seq, identity)

        await publish("before")
        held = [await asyncio.open_connection("127.0.0.1", node.client_port) for _ in range(40)]
        flood = asyncio.gather(*(refused(node.client_port) for _ in range(LIMIT)))
        await publish("meanwhile")
        # Those that got in before the limit was reached hold their place; all others are sent away.
        while (await node.get("/varz"))["connections"] < LIMIT // 3:
            await publish("waiting")
        told = await refused(node.client_port)
        assert told.startswith(b"INFO ") and told.endswith(b"-ERR 'maximum connections exceeded'\r\n")
        assert (await node.get("/healthz"))["status"] == "ok"
        await publish("full")
        assert len([line for line in node.log if "Clients are refused: " in line]) == 1
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        while (await node.get("/varz"))["connections"] > 1:
            await publish("leaving")
        again = await connect(node.url)
        await again.flush()
        await again.close()
        await publish("after")
        await check_stream(js, ledger)
        assert not any("Traceback" in line or "Storage failed" in line for line in node.log)
        await client.close()
        await node.kill()
        await node.start()
        client = await connect(node.url)
        await check_stream(client.jetstream(), ledger)
        await client.close()


@pytest.mark.parametrize("always", [True, False])
async def test_storage_needs_no_further_descriptor(tmp_path: Path, always: bool) -> None:
    """Commits, syncs, checkpoints, turns of the witness and reads while not one descriptor is to be had."""
    runtime = Runtime.real()
    database = await open_database(
        tmp_path / "data", runtime, "oak", sync_always=always, sync_interval=0.001, wal_bytes=1 << 18, scrub_rate=0
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        lowest = probe.fileno()
    group = database.create_group("S", 1, "oak", b"")
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError):
            socket.socket()
        for index in range(1, 200):
            database.append(group, index, 1, 0x81, 1, index, bytes(4000))
            done = runtime.loop.create_future()
            database.sync(done.set_result)
            assert await done is None
            if index % 50 == 0:
                database._witness.rotate()
        await database.idle()
        assert database.failure is None
        assert len(await database.read_block(group, 100)) == 4000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await database.close()
    database = await open_database(tmp_path / "data", runtime, "oak", scrub_rate=0)
    assert database.damage == []
    assert [entry.index for entry in await database.read_log(1, 1, 199, 1 << 30)] == list(range(1, 200))
    await database.close()


def test_runway_comes_back(tmp_path: Path) -> None:
    wal = tmp_path / "wal"
    wal.write_bytes(bytes(6000))
    runway = Runway(wal, 64 << 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        lowest = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        runway.extend()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert wal.stat().st_size == 6000
    assert not runway.short(6000) and runway.short(4 << 20)


@pytest.mark.extended
async def test_the_cluster_port_leaves_storage_its_descriptors(tmp_path: Path) -> None:
    """Strangers on the cluster port: those in the reserve are cut at once, and clients are served again afterwards."""
    config = tmp_path / "node.conf"
    config.write_text('cluster { name: c, listen: "127.0.0.1:-1" }\n')
    node = NodeProcess(tmp_path / "data", "-c", str(config), command="server", ready="Listening for route connections")
    node.enter = limited(LIMIT, LIMIT)
    async with node:
        (line,) = [line for line in node.log if "Listening for route connections on" in line]
        port = int(line.rpartition(":")[2])
        client = await connect(node.url)
        js = client.jetstream()
        await make_order_stream(js)
        strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(LIMIT)]
        for _, writer in strangers:
            writer.write(b"PING\r\n")
        cut = asyncio.gather(*(reader.read() for reader, _ in strangers), return_exceptions=True)
        for number in range(50):
            await js.publish("orders.x", b"%d" % number, timeout=10)
        await cut  # the rest by the time-out of their introduction
        for _, writer in strangers:
            writer.close()
        again = await connect(node.url)
        await again.flush()
        await again.close()
        assert (await js.stream_info("ORDERS")).state.messages == 50
        assert not any("Traceback" in line or "Storage failed" in line for line in node.log)
        await client.close()


@pytest.mark.parametrize("command", [[], ["server"], ["registry"]], ids=["node", "server", "registry"])
def test_a_process_that_cannot_open_anything_says_so_in_one_line(command: list[str]) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "nimsnats", *command],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12)),
    )
    (line,) = made.stderr.splitlines()
    assert "may have only 12 files open" in line and "LimitNOFILE" in line
    assert made.returncode == 1
