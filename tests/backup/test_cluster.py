"""A three-node cluster is backed up while it is in use, and restored into a fresh one."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.errors import Error
from nats.js.errors import Error as JetStreamError

from nimsnats import cli
from nimsnats.backup import files, take
from nimsnats.backup.files import Manifest, read_messages
from nimsnats.protocol.archive import ArchivedMessage
from nimsnats.storage import Storage
from tests.broker.peer import until
from tests.jetstream.archives import restore, snapshot
from tests.jetstream.trio import Trio, TrioNode, ask, trio

pytestmark = [pytest.mark.extended, pytest.mark.timeout(240)]

STORED = 4000
PAYLOAD = 2048


class Load:
    """Publishers on every node and a consumer, until they are stopped; `acked` maps sequences to payloads."""

    def __init__(self, cluster: Trio) -> None:
        self.acked: dict[int, bytes] = {}
        self.longest = 0.0
        self._cluster = cluster
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._tasks = [
            asyncio.create_task(self._publish(node, client)) for node, client in enumerate(self._cluster.clients)
        ]
        self._tasks.append(asyncio.create_task(self._consume(self._cluster.clients[0])))
        await until(lambda: len(self.acked) > 30)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def _publish(self, node: int, client: Client) -> None:
        js, n, clock = client.jetstream(timeout=2), 0, asyncio.get_running_loop().time
        while not self._stopped:
            n += 1
            payload, begun = b"%d.%d" % (node, n), clock()
            try:
                ack = await js.publish(f"s.{node}", payload)
            except (Error, JetStreamError, TimeoutError):
                await asyncio.sleep(0.05)  # the leader is gone, or this node
                continue
            self.acked[ack.seq] = payload
            self.longest = max(self.longest, clock() - begun)

    async def _consume(self, client: Client) -> None:
        puller = await client.jetstream().pull_subscribe_bind("C", "S")
        while not self._stopped:
            try:
                for message in await puller.fetch(10, timeout=1):
                    if message.metadata.sequence.stream % 5:  # some stay unacknowledged
                        await message.ack()
            except (Error, TimeoutError):
                await asyncio.sleep(0.05)


async def prepare(cluster: Trio) -> None:
    """A replicated stream with a few megabytes in it, gaps and a consumer."""
    await cluster.ask(0, "STREAM.CREATE.S", {"name": "S", "subjects": ["s.*"], "num_replicas": 3})
    js = cluster.clients[0].jetstream(publish_async_max_pending=500)
    for n in range(STORED):
        await js.publish_async(f"s.{n % 7}", os.urandom(PAYLOAD // 2) + b"x" * (PAYLOAD // 2), headers={"N": str(n)})
    await js.publish_async_completed()
    for seq in (3, 4, 1000):
        await js.delete_msg("S", seq)
    await js.add_consumer("S", durable_name="C", ack_policy="explicit", ack_wait=600)


async def run(*words: object) -> int:
    return await asyncio.to_thread(cli.main, [str(word) for word in words])


def check(messages: list[ArchivedMessage], manifest: Manifest, load: Load) -> None:
    """It is one moment: every sequence up to the last is there or was deleted, and none is another."""
    last: int = manifest.state["last_seq"]
    assert [message.seq for message in messages] == [seq for seq in range(1, last + 1) if seq not in (3, 4, 1000)]
    held = {message.seq: message.payload for message in messages}
    assert all(held[seq] == payload for seq, payload in load.acked.items() if seq <= last)
    delivered = manifest.consumers["C"]["state"]["delivered"]["stream_seq"]
    assert 0 < delivered <= last


async def restored(tmp_path: Path, place: Path, messages: list[ArchivedMessage], manifest: Manifest) -> None:
    """Restore into a fresh cluster: every replica holds the same, and the consumer goes on where it was."""
    async with trio(tmp_path / "fresh") as fresh:
        assert await run("restore", "-s", fresh["n2"].url, place) == 0
        again = await snapshot(fresh.clients[2], "S")
        assert again.messages == messages
        assert again.answer["state"] == {**manifest.state, "consumer_count": 1}
        before, after = manifest.consumers["C"], again.consumers["C"]
        assert after["config"] == before["config"] and after["state"] == before["state"]
        assert after["nimsnats"]["state"] == before["nimsnats"]["state"]

        def everywhere() -> bool:
            replicas = [node.app.streams.get("S") for node in fresh.nodes]
            return all(r is not None and r.stream.store.last_seq == manifest.state["last_seq"] for r in replicas)

        await until(everywhere)
        for node in fresh.nodes:
            stream = node.app.streams["S"].stream
            assert stream.store.messages == len(messages)
            assert (await stream.load(messages[-1].seq)) is not None
        info: dict[str, Any] = await ask(fresh.clients[1], "CONSUMER.INFO.S.C")
        assert info["num_ack_pending"] == len(before["state"].get("pending", {}))
        assert (await fresh.clients[0].jetstream().publish("s.0", b"on")).seq == manifest.state["last_seq"] + 1


async def test_backup_under_load_restored_into_a_fresh_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "backup"
    async with trio(tmp_path / "old") as cluster:
        await prepare(cluster)
        async with Load(cluster) as load:
            before = len(load.acked)
            assert await run("backup", "-s", cluster["n3"].url, place) == 0
            during = len(load.acked) - before
            first = Manifest.read(place / "S").state["last_seq"]
            assert await run("backup", "-s", cluster["n1"].url, place) == 0  # brought up to date
    assert during > 0
    manifest = Manifest.read(place / "S")
    assert manifest.state["last_seq"] > first
    messages = list(read_messages(place / "S", manifest))
    check(messages, manifest, load)
    with capsys.disabled():
        print(
            f"\n{len(messages)} messages, {during} acknowledged during the first backup, slowest {load.longest:.3f} s"
        )
    await restored(tmp_path, place, messages, manifest)


async def test_a_leader_that_dies_during_a_backup_costs_a_second_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(take, "_PATIENCE", 3.0)
    monkeypatch.setattr(files, "CHUNK", 64 * 1024)
    place = tmp_path / "backup"
    async with trio(tmp_path / "old") as cluster:
        await prepare(cluster)
        async with Load(cluster) as load:
            leader = await cluster.led("S")
            other = next(node for node in cluster.nodes if node.name != leader)
            backup = asyncio.create_task(run("backup", "-s", other.url, place))
            await until(
                lambda: (place / "S").exists() and sum(f.stat().st_size for f in (place / "S").iterdir()) > 400_000
            )
            await cluster[leader].kill()
            assert await backup == 1
            await cluster.led("S")
            assert await run("backup", "-s", other.url, place) == 0
        assert await run("verify", tmp_path / "old" / leader) == 0
    manifest = Manifest.read(place / "S")
    assert len(manifest.segments) == 2
    messages = list(read_messages(place / "S", manifest))
    check(messages, manifest, load)
    await restored(tmp_path, place, messages, manifest)


@pytest.mark.skipif(shutil.which("nats") is None, reason="the nats CLI is not installed")
async def test_the_nats_cli_does_the_same(tmp_path: Path) -> None:
    async def nats(at: str, *words: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *("nats", "-s", at, *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "home")},
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()

    async with trio(tmp_path / "old") as cluster:
        await prepare(cluster)
        async with Load(cluster) as load:
            await nats(cluster["n2"].url, "backup", "stream", "S", str(tmp_path / "S"), "--no-progress")
    await nats("nats://127.0.0.1:1", "backup", "validate", str(tmp_path / "S"))
    async with trio(tmp_path / "fresh") as fresh:
        await nats(fresh["n3"].url, "backup", "restore", "stream", str(tmp_path / "S"), "--no-progress")
        again = await snapshot(fresh.clients[0], "S")
        held = {message.seq: message.payload for message in again.messages}
        last: int = again.state["last_seq"]
        assert sorted(held) == [seq for seq in range(1, last + 1) if seq not in (3, 4, 1000)]
        assert all(held[seq] == payload for seq, payload in load.acked.items() if seq <= last)


async def test_restored_streams_are_placed_like_new_ones_and_failed_ones_leave_nothing(tmp_path: Path) -> None:
    async with trio(tmp_path / "nodes") as cluster:
        await cluster.ask(0, "STREAM.CREATE.S", {"name": "S", "subjects": ["s"], "num_replicas": 1})
        for n in range(50):
            await cluster.clients[0].jetstream().publish("s", b"%d" % n)
        taken = await snapshot(cluster.clients[1], "S")
        config = {**taken.answer["config"], "num_replicas": 1}
        stored = {node.name: storage_of(node).group_names() for node in cluster.nodes}
        for client in cluster.clients:
            answer = await restore(client, {**config, "name": "T", "subjects": ["t"]}, taken.archive[:-4], chunk=1000)
            assert answer["error"]["err_code"] == 10062
        await until(lambda: all(storage_of(node).group_names() == stored[node.name] for node in cluster.nodes))
        assert (await ask(cluster.clients[2], "STREAM.NAMES"))["streams"] == ["S"]
        leaders = set[str]()
        for n, client in enumerate(cluster.clients):
            answer = await restore(client, {**config, "name": f"T{n}", "subjects": [f"t{n}"]}, taken.archive)
            leaders.add(answer["cluster"]["leader"])
            again = await snapshot(cluster.clients[0], f"T{n}")
            assert again.messages == taken.messages, (again.answer, again.chunks)
        assert leaders == {"n1", "n2", "n3"}


async def test_a_name_is_free_for_a_restore_as_soon_as_its_stream_is_deleted(tmp_path: Path) -> None:
    async with trio(tmp_path / "nodes") as cluster:
        await cluster.ask(0, "STREAM.CREATE.S", {"name": "S", "subjects": ["s"], "num_replicas": 3})
        taken = await snapshot(cluster.clients[0], "S")
        catalogue = cluster.meta_leader()
        assert catalogue is not None
        for at, node in enumerate(cluster.nodes):
            if node is catalogue:
                continue
            await until(lambda: cluster.leader("S") != "")
            if cluster.leader("S") != node.name:
                placement = {"placement": {"preferred": node.name}}
                stepped = await cluster.ask(at, "STREAM.LEADER.STEPDOWN.S", placement)
                assert stepped["success"], stepped
                await until(lambda node=node: cluster.leader("S") == node.name)
            assert (await cluster.ask(at, "STREAM.DELETE.S"))["success"]
            answer = await restore(cluster.clients[at], taken.answer["config"], taken.archive)
            assert "error" not in answer


def storage_of(node: TrioNode) -> Storage:
    return node.engine.host.storage
