"""A payment's way through a node: from Stripe's event to the task in the soil, by NATS and by webhook."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.chaos.process import NodeProcess
from tests.chaos.workload import connect
from tests.forest.events import succeeded

SECRET = "whsec_test"
EXPECTED = ("payment.completed", "followup.required", "email.send")
CONFIG = f"""
# loopback only: this is a test
listen: "127.0.0.1:-1"
forest {{ webhooks {{ stripe {{ secret: "{SECRET}" }} }} }}
"""


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeProcess]:
    config = tmp_path / "node.conf"
    config.write_text(CONFIG)
    async with NodeProcess(tmp_path / "data", "--config", str(config), "--node-name", "nimsforest-1") as process:
        yield process


@pytest_asyncio.fixture
async def client(node: NodeProcess) -> AsyncIterator[Client]:
    connection = await connect(node.url)
    yield connection
    await connection.close()


class Witness:
    """Outside subscribers who note every leaf that they see."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[str] = asyncio.Queue()

    async def watch(self, client: Client) -> None:
        for subject in EXPECTED:
            await client.subscribe(subject, cb=self._note)
        await client.flush()

    async def _note(self, message: Msg) -> None:
        self.seen.put_nowait(message.subject)

    async def all_seen(self) -> None:
        seen = {await asyncio.wait_for(self.seen.get(), 10) for _ in EXPECTED}
        assert seen == set(EXPECTED)


async def task_of(client: Client, charge: str) -> dict[str, object]:
    """The task of a charge, as soon as the soil holds it."""
    soil = await client.jetstream().key_value("SOIL")
    watcher = await soil.watch(f"task-{charge}")
    while True:
        entry = await watcher.updates(timeout=10)
        if entry is not None and entry.value:
            return json.loads(entry.value)


def post(node: NodeProcess, body: bytes, secret: str) -> int:
    """POST a webhook signed with `secret`; the HTTP status."""
    stamp = str(int(time.time()))
    digest = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.monitor_port}/webhooks/stripe",
        data=body,
        headers={"Stripe-Signature": f"t={stamp},v1={digest}", "Content-Type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code


async def test_a_charge_becomes_a_task(node: NodeProcess, client: Client) -> None:
    witness = Witness()
    await witness.watch(client)
    await client.publish("river.stripe.webhook", succeeded("ch_published"))
    await witness.all_seen()
    task = await task_of(client, "ch_published")
    assert "ch_published" in json.dumps(task)


async def test_a_signed_webhook_becomes_a_task(node: NodeProcess, client: Client) -> None:
    witness = Witness()
    await witness.watch(client)
    assert await asyncio.to_thread(post, node, succeeded("ch_forged"), "whsec_wrong") == 400
    assert await asyncio.to_thread(post, node, succeeded("ch_signed"), SECRET) == 200
    await witness.all_seen()
    assert "ch_signed" in json.dumps(await task_of(client, "ch_signed"))
    keys = await (await client.jetstream().key_value("SOIL")).keys()
    assert not any("ch_forged" in key for key in keys)


async def test_health_metrics_and_registry(node: NodeProcess, client: Client) -> None:
    await client.publish("river.stripe.webhook", succeeded("ch_counted"))
    await task_of(client, "ch_counted")
    health = await node.get("/health")
    assert (health["status"], health["node"]) == ("healthy", "nimsforest-1")
    assert health["cluster"] == {"size": 1, "peers": [], "replication_factor": 1}
    assert set(health["jetstream"]["streams"]) >= {"RIVER", "HUMUS"}
    assert health["jetstream"]["kv_buckets"] == ["SOIL"]
    assert (await node.get("/healthz")) == {"status": "ok"}
    assert (await node.get("/varz"))["server_name"] == "nimsforest-1"
    (listed,) = await node.get("/v1/services/nimsforest/nodes")
    assert listed["name"] == "nimsforest-1"

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{node.monitor_port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    metrics = await asyncio.to_thread(scrape)
    for name in ("forest_items_received_total", "nimsnats_cluster_size"):
        assert name in metrics


async def test_the_log_tells_the_start_and_the_stop(node: NodeProcess) -> None:
    start = [line.split("[INF] ")[1] for line in node.log if "[INF] " in line]
    for expected in (
        "Starting nimsforest...",
        "Starting embedded NATS cluster node: nimsforest-1",
        "No existing peers found - starting as cluster of 1",
        "JetStream initialized with replication factor 1",
        "nimsforest is ready",
    ):
        assert expected in start
    assert any(line.startswith("Registered in registry at http://127.0.0.1:") for line in start)
    assert any("--registry-url http://127.0.0.1:" in line for line in start)
    assert await asyncio.wait_for(node.signal(signal.SIGTERM), 5) == 0
    assert "Server Exiting.." in node.log[-1]


async def test_what_cannot_start_says_why_in_one_line(tmp_path: Path, node: NodeProcess) -> None:
    second = NodeProcess(node.data_dir)
    with pytest.raises(AssertionError, match=r"\[FTL\] .*in use"):
        await second.start()
    assert len([line for line in second.log if "[FTL]" in line]) == 1
    assert not any("Traceback" in line for line in second.log)
    third = NodeProcess(tmp_path / "other")
    third.client_port = node.client_port
    with pytest.raises(AssertionError, match=r"\[FTL\] .*address already in use"):
        await third.start()
