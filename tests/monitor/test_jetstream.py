"""JetStream in the monitoring: `/jsz`, varz's block, statsz and `/healthz`, compared with the Go server."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import nats
import pytest
import pytest_asyncio
from nats.js.api import StreamConfig

from nimsnats.server import Server
from tests.conformance.oracle import Oracle
from tests.monitor.conftest import monitored
from tests.monitor.sides import Side, differences, keys_in_order, shape

_SCHEMAS = Path(os.environ.get("NATS_SCHEMAS", Path(__file__).parents[3] / "shared" / "reference" / "schemas"))
_PATHS = (
    "/varz",
    "/jsz",
    "/jsz?accounts=1",
    "/jsz?acc=$G",
    "/jsz?acc=none",
    "/jsz?streams=1&limit=1",
    "/jsz?consumers=1&config=1&raft=1",
    "/healthz",
    "/healthz?details=1",
    "/healthz?account=$G",
    "/healthz?account=none",
    "/healthz?account=$G&stream=ORDERS",
    "/healthz?account=$G&stream=none",
    "/healthz?account=$G&stream=ORDERS&consumer=worker",
    "/healthz?account=$G&stream=ORDERS&consumer=none",
    "/healthz?account=$G&stream=ORDERS&consumer=none&details=1",
    "/accountz?acc=$G",
)
_CONFIG = ["+config.sync_always", "-config.sync_interval", "-limits.default_max_consumers"]


def _allowed(path: str) -> list[str]:
    """This server syncs before it acknowledges, has no limits of its own, and its version metadata is shorter."""
    below = "jetstream." if path == "/varz" else ""
    general = ["-feature_flags", "-git_commit", "-account_detail.imports"]
    return [*general, *(line[0] + below + line[1:] for line in _CONFIG)]


async def _work(side: Side) -> None:
    """A stream with a consumer that holds one message, and a KV bucket."""
    client = await nats.connect(side.url)
    stream = client.jetstream()
    await stream.add_stream(StreamConfig(name="ORDERS", subjects=["orders.*"], max_bytes=1 << 20))
    for _ in range(3):
        await stream.publish("orders.new", b"x")
    pull = await stream.pull_subscribe("orders.*", durable="worker")
    await pull.fetch(1)
    await stream.create_key_value(bucket="SOIL", history=2)
    await client.close()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """The Go server with JetStream."""
    directory = tmp_path_factory.mktemp("jetstream")
    server = Oracle(directory).start(f'jetstream {{ store_dir: "{directory}" }}', "-m", "-1")
    yield monitored(server)
    server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ours() -> AsyncIterator[Side]:
    """Ours with JetStream."""
    async with Server(monitor_port=-1) as server:
        assert server.monitor is not None
        yield Side("ours", server.port, server.monitor.port)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(theirs: Side, ours: Side) -> tuple[Side, Side]:
    """The two servers after the same work."""
    for side in (theirs, ours):
        await _work(side)
    return theirs, ours


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", _PATHS)
async def test_shape_is_the_oracles(path: str, both: tuple[Side, Side]) -> None:
    expected, answer = [await side.ask(path) for side in both]
    assert answer.status == expected.status
    found = differences(shape(expected.json), shape(answer.json))
    assert [line for line in found if line not in _allowed(path)] == []
    common = keys_in_order(answer.json)
    assert [key for key in keys_in_order(expected.json) if key in common] == common


@pytest.mark.asyncio(loop_scope="module")
async def test_numbers_are_the_oracles(both: tuple[Side, Side]) -> None:
    theirs, ours = [_numbers(await side.get("/jsz?consumers=1")) for side in both]
    assert ours == theirs
    assert ours["streams"] == 2
    assert ours["worker"] == {"num_pending": 2, "num_ack_pending": 1, "num_redelivered": 0, "num_waiting": 0}


def _numbers(jsz: dict[str, Any]) -> dict[str, Any]:
    (account,) = jsz["account_details"]
    (orders,) = [stream for stream in account["stream_detail"] if stream["name"] == "ORDERS"]
    (worker,) = orders["consumer_detail"]
    return {
        **{key: jsz[key] for key in ("streams", "consumers", "messages", "bytes", "total", "reserved_storage")},
        **{key: orders["state"][key] for key in ("first_seq", "last_seq", "num_subjects", "consumer_count")},
        "worker": {key: worker[key] for key in ("num_pending", "num_ack_pending", "num_redelivered", "num_waiting")},
    }


@pytest.mark.asyncio(loop_scope="module")
async def test_health_names_streams_and_buckets(both: tuple[Side, Side]) -> None:
    health = await both[1].get("/health")
    assert health["jetstream"] == {"streams": ["ORDERS"], "kv_buckets": ["SOIL"]}


@pytest.mark.asyncio(loop_scope="module")
async def test_varz_fits_its_schema(both: tuple[Side, Side]) -> None:
    file = _SCHEMAS / "server" / "monitor" / "v1" / "varz.json"
    if not file.exists():
        pytest.skip("no NATS schemas here; NATS_SCHEMAS names their directory")
    jsonschema.validate(await both[1].get("/varz"), json.loads(file.read_text()))
