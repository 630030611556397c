"""A real broker, storage and JetStream on an ephemeral port, in this process; and the Go server beside it as oracle."""

from __future__ import annotations

import asyncio
import shutil
import sysconfig
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
from nats.aio.client import Client

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.server import Broker
from nimsnats.jetstream.engine import JetStream
from nimsnats.jetstream.options import JetStreamOptions
from nimsnats.jetstream.stream import Stream
from nimsnats.raft.host import Host
from nimsnats.runtime import Runtime
from nimsnats.storage import Database, open_database
from nimsnats.storage.batch import Disk, RealDisk


@dataclass
class Stand:
    """One running server and a client on it."""

    broker: Broker
    host: Host
    database: Database
    engine: JetStream
    client: Client

    def stream(self, name: str) -> Stream:
        """A stream of the global account."""
        return self.engine.accounts["$G"].stream(name)


@asynccontextmanager
async def running(directory: Path, disk: Disk | None = None, **options: object) -> AsyncIterator[Stand]:
    """Start on `directory` (kept, so that a second start recovers), stop in order."""
    runtime = Runtime.real()
    broker = Broker(BrokerOptions(host="127.0.0.1", port=-1, jetstream=True), runtime)
    database = await open_database(directory, runtime, disk=disk or RealDisk())
    host = Host(database, runtime, "test")
    engine = JetStream(broker, host, JetStreamOptions(directory, **options), runtime)  # type: ignore[arg-type]
    async with AsyncExitStack() as ending:  # a thread of the database that is left behind would keep the process alive
        ending.push_async_callback(database.close)
        ending.push_async_callback(host.stop)
        await engine.start()
        ending.push_async_callback(engine.stop)
        await broker.start()
        ending.push_async_callback(broker.stop)
        client = await nats.connect(f"nats://127.0.0.1:{broker.port}", allow_reconnect=False)
        ending.push_async_callback(client.close)
        yield Stand(broker, host, database, engine, client)


def go_server() -> str | None:
    """The Go server's program, if it is installed."""
    packaged = Path(sysconfig.get_path("scripts")) / "nats-server"
    return str(packaged) if packaged.exists() else shutil.which("nats-server")


@asynccontextmanager
async def oracle(directory: Path) -> AsyncIterator[Client]:
    """A client on a Go server with JetStream."""
    program = go_server()
    assert program is not None
    ports = directory / "ports"
    ports.mkdir(parents=True)
    process = await asyncio.create_subprocess_exec(
        program,
        *("-js", "-sd", str(directory / "store"), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(ports)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        port = 0
        while line := await process.stderr.readline():
            if b"Listening for client connections on" in line:
                port = int(line.rsplit(b":", 1)[1])
            if b"Server is ready" in line:
                break
        drain = asyncio.create_task(process.stderr.read())
        client = await nats.connect(f"nats://127.0.0.1:{port}", allow_reconnect=False)
        try:
            yield client
        finally:
            await client.close()
            process.terminate()
            await drain
    finally:
        if process.returncode is None:
            await process.wait()
