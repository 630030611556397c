"""Whatever node a client is connected to, it finds the whole JetStream, and nats-server's answers about replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from nimsnats.identity import node_hash
from tests.broker.peer import until
from tests.jetstream.trio import Trio, ask, trio

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trio]:
    """Three nodes for all tests of this module."""
    async with trio(tmp_path_factory.mktemp("trio")) as running:
        yield running


def settings(name: str, replicas: int = 1, **more: Any) -> dict[str, Any]:
    """A stream's configuration."""
    return {"name": name, "subjects": [f"{name}.>"], "num_replicas": replicas, **more}


async def create(cluster: Trio, name: str, replicas: int = 1, **more: Any) -> dict[str, Any]:
    """Create a stream through n1; its info."""
    answer = await cluster.ask(0, f"STREAM.CREATE.{name}", settings(name, replicas, **more))
    assert "error" not in answer, answer
    return answer


def error(answer: dict[str, Any]) -> tuple[int, str]:
    """Number and text of the error that was answered."""
    return answer["error"]["err_code"], answer["error"]["description"]


async def test_every_request_is_answered_through_a_node_that_has_no_part_in_it(cluster: Trio) -> None:
    await create(cluster, "A", placement={"tags": ["az:a"]})
    for number in range(3):
        assert (await cluster.clients[number].jetstream().publish("A.x", b"%d" % number)).seq == number + 1
    stranger = next(
        number for number, node in enumerate(cluster.nodes) if node.name != "n1" and node is not cluster.meta_leader()
    )
    config = {"durable_name": "D", "name": "D", "ack_policy": "explicit"}
    requests: list[tuple[str, Any, str]] = [
        ("STREAM.INFO.A", None, "config"),
        ("STREAM.NAMES", None, "streams"),
        ("STREAM.LIST", None, "streams"),
        ("STREAM.UPDATE.A", settings("A", placement={"tags": ["az:a"]}, description="new"), "config"),
        ("STREAM.MSG.GET.A", {"seq": 2}, "message"),
        ("STREAM.MSG.DELETE.A", {"seq": 1}, "success"),
        ("CONSUMER.DURABLE.CREATE.A.D", {"stream_name": "A", "config": config}, "config"),
        ("CONSUMER.CREATE.A.E", {"stream_name": "A", "config": {"name": "E", "ack_policy": "none"}}, "config"),
        ("CONSUMER.INFO.A.D", None, "config"),
        ("CONSUMER.NAMES.A", None, "consumers"),
        ("CONSUMER.LIST.A", None, "consumers"),
        ("CONSUMER.PAUSE.A.D", {"pause_until": "2099-01-01T00:00:00Z"}, "paused"),
        ("CONSUMER.RESET.A.D", None, "config"),
        ("CONSUMER.LEADER.STEPDOWN.A.D", None, "success"),
        ("STREAM.LEADER.STEPDOWN.A", None, "success"),
        ("STREAM.PURGE.A", {"keep": 1}, "purged"),
        ("CONSUMER.DELETE.A.E", None, "success"),
        ("INFO", None, "limits"),
        ("STREAM.DELETE.A", None, "success"),
    ]
    for subject, body, field in requests:
        answer = await cluster.ask(stranger, subject, body)
        assert field in answer and "error" not in answer, (subject, answer)
    with pytest.raises(NotFoundError):
        await cluster.clients[0].jetstream().stream_info("A")


async def test_lists_are_complete_and_sorted_over_the_cluster(cluster: Trio) -> None:
    names = [f"L{number:02}" for number in range(12)]
    for name in reversed(names):
        await create(cluster, name, 1 if name < "L06" else 3)
    held = [sum(name in node.app.streams for name in names[:6]) for node in cluster.nodes]
    assert held == [2, 2, 2], "streams of one replica are spread by load"
    led = [sum(cluster.leader(name) == node.name for name in names[6:]) for node in cluster.nodes]
    assert led == [2, 2, 2], "streams of several begin on the nodes that lead fewest"
    for at in range(3):
        listed = await cluster.ask(at, "STREAM.LIST")
        assert [stream["config"]["name"] for stream in listed["streams"]] == names and "missing" not in listed
        page = await cluster.ask(at, "STREAM.LIST", {"offset": 10})
        assert (page["total"], [stream["config"]["name"] for stream in page["streams"]]) == (12, names[10:])
        for stream in listed["streams"]:
            told = stream["cluster"]
            replicas = [replica["name"] for replica in told.get("replicas") or ()]
            assert len(replicas) == stream["config"]["num_replicas"] - 1
            assert told["leader"] == cluster.leader(stream["config"]["name"])
            assert all(replica["peer"] == node_hash(replica["name"]) for replica in told.get("replicas") or ())
    for name in names:
        await cluster.ask(1, f"STREAM.DELETE.{name}")


async def test_a_stream_moves_and_is_scaled_without_loss_under_load(cluster: Trio) -> None:
    await create(cluster, "M", placement={"tags": ["az:a"]})
    js = cluster.clients[2].jetstream()
    pull = await js.pull_subscribe("M.>", durable="D")
    acknowledged: list[int] = []
    moving = True

    async def publish() -> None:
        while moving:
            try:
                body = b"%d" % len(acknowledged)
                acknowledged.append(
                    (await js.publish("M.x", body, timeout=1, headers={"Nats-Msg-Id": body.decode()})).seq
                )
            except Exception:
                await asyncio.sleep(0.01)

    publishing = asyncio.create_task(publish())
    for replicas, tags in ((1, ["hdd"]), (3, []), (1, []), (1, ["az:b"])):
        reached = len(acknowledged) + 20
        await until(lambda reached=reached: len(acknowledged) > reached)
        placement = {"placement": {"tags": tags}} if tags else {}
        answer = await cluster.ask(1, "STREAM.UPDATE.M", settings("M", replicas, **placement))
        assert "error" not in answer, answer
        await until(lambda n=replicas: sum("M" in node.app.streams for node in cluster.nodes) == n)
    moving = False
    await publishing
    assert "M" in cluster["n2"].app.streams
    assert acknowledged == list(range(1, len(acknowledged) + 1))
    got: list[bytes] = []
    while len(got) < len(acknowledged):
        for message in await pull.fetch(500, timeout=5):
            got.append(message.data)
            await message.ack()
    assert got == [b"%d" % number for number in range(len(acknowledged))]
    await cluster.ask(0, "STREAM.DELETE.M")


async def test_an_account_is_told_what_it_uses_on_all_nodes(cluster: Trio) -> None:
    await create(cluster, "U", 3, max_bytes=100_000)
    await create(cluster, "V", storage="memory", max_bytes=5000)
    for stream in ("U", "V"):
        config = {"durable_name": "D", "name": "D", "ack_policy": "explicit"}
        await cluster.ask(1, f"CONSUMER.CREATE.{stream}.D", {"stream_name": stream, "config": config})
        await cluster.clients[1].jetstream().publish(f"{stream}.x", b"x" * 1000)
    await until(lambda: all(node.app.stream("U").store.messages == 1 for node in cluster.nodes))
    expected = {"reserved_storage": 100_000, "reserved_memory": 5000, "streams": 2, "consumers": 2}
    for at in range(3):
        info = await cluster.ask(at, "INFO")
        assert {key: info[key] for key in expected} == expected
        assert 1000 < info["memory"] < 1100 and info["storage"] == 3 * cluster["n1"].app.stream("U").store.bytes
    for stream in ("U", "V"):
        await cluster.ask(0, f"STREAM.DELETE.{stream}")


REFUSALS: list[tuple[str, Any, tuple[int, str]]] = [
    ("STREAM.LEADER.STEPDOWN.R", {"placement": {"preferred": "n9"}}, (10005, 'preferred server "n9" not known')),
    ("STREAM.LEADER.STEPDOWN.R", {"placement": {"tags": ["no"]}}, (10005, "no replacement peer connected")),
    ("STREAM.LEADER.STEPDOWN.R", '{"bad', (10025, "invalid JSON: unexpected EOF")),
    ("CONSUMER.LEADER.STEPDOWN.R.NO", None, (10014, "consumer not found")),
    ("STREAM.PEER.REMOVE.R", None, (10003, "bad request")),
    ("STREAM.PEER.REMOVE.R", {"peer": "n9"}, (10040, "peer not a member")),
    ("STREAM.PEER.REMOVE.R", {"peer": "n1"}, (10075, "peer remap failed")),
    ("CONSUMER.PEER.REMOVE.R.D", {"peer": "n1"}, (10075, "peer remap failed")),
    ("STREAM.CANCEL_MOVE.R", None, (10129, "stream reconfiguration not in progress")),
    (
        "STREAM.CREATE.T",
        settings("T", placement={"tags": ["none"]}),
        (10005, "no suitable peers for placement, tags not matched ['none']"),
    ),
    ("STREAM.CREATE.T", settings("T", placement={"cluster": "X"}), (10005, "no suitable peers for placement")),
    (
        "STREAM.CREATE.T",
        settings("T", 2, placement={"tags": ["hdd"]}),
        (10005, "no suitable peers for placement, tags not matched ['hdd']"),
    ),
    (
        "STREAM.UPDATE.R",
        settings("R", 1, placement={"tags": ["hdd"]}),
        (10123, "can not move and scale a stream in a single update"),
    ),
]
"""What three Go servers answer, as well (`test_cluster_conformance.py`)."""


async def test_what_cannot_be_is_refused_in_nats_servers_words(cluster: Trio) -> None:
    await create(cluster, "R", 3)
    config = {"durable_name": "D", "name": "D", "ack_policy": "explicit"}
    await cluster.ask(1, "CONSUMER.CREATE.R.D", {"stream_name": "R", "config": config})
    for at in range(3):
        for subject, body, expected in REFUSALS:
            assert error(await cluster.ask(at, subject, body)) == expected, (at, subject, body)
    await cluster.ask(0, "STREAM.DELETE.R")


async def test_leaders_step_down_in_favour_of_a_server(cluster: Trio) -> None:
    await create(cluster, "S", 3)
    leader = await cluster.led("S")
    for name in (*(node.name for node in cluster.nodes if node.name != leader), leader):
        body = {"placement": {"preferred": name}}
        assert (await cluster.ask(0, "STREAM.LEADER.STEPDOWN.S", body))["success"]
        await until(lambda name=name: cluster.leader("S") == name)
        again = await cluster.ask(1, "STREAM.LEADER.STEPDOWN.S", body)
        assert error(again) == (10005, f'preferred server "{name}" is already leader')
        info = await cluster.ask(2, "STREAM.INFO.S")
        assert info["cluster"]["leader"] == name and "leader_since" in info["cluster"]
    system = await cluster.system()
    for name in ("n2", "n3", "n1"):
        leader = cluster.meta_leader()
        if leader is None or leader.name != name:
            assert (await ask(system, "META.LEADER.STEPDOWN", {"placement": {"preferred": name}}))["success"]
        await until(lambda name=name: (node := cluster.meta_leader()) is not None and node.name == name)
    assert error(await ask(system, "SERVER.REMOVE", {"peer": "n9"}))[0] == 10044
    await system.close()
    await cluster.ask(0, "STREAM.DELETE.S")


@pytest.mark.extended
@pytest.mark.asyncio
async def test_a_stream_on_a_lost_node_says_so_and_is_not_begun_anew(tmp_path: Path) -> None:
    async with trio(tmp_path) as running:
        await create(running, "LOST", placement={"tags": ["hdd"]})
        await create(running, "MEM", storage="memory", placement={"tags": ["hdd"]})
        await create(running, "KEPT", 3)
        await running.ask(0, "CONSUMER.CREATE.LOST.D", {"stream_name": "LOST", "config": {"durable_name": "D"}})
        await running["n3"].kill()
        others = running.nodes[:2]
        await until(lambda: all(node.engine.leaders.offline(node.app.record("LOST")) for node in others))
        for at in range(2):
            for name in ("LOST", "MEM"):
                assert error(await running.ask(at, f"STREAM.INFO.{name}")) == (10118, "stream is offline")
                same = settings(name, placement={"tags": ["hdd"]}, storage="file" if name == "LOST" else "memory")
                for verb in ("CREATE", "UPDATE"):
                    assert error(await running.ask(at, f"STREAM.{verb}.{name}", same))[0] == 10118
            assert error(await running.ask(at, "CONSUMER.INFO.LOST.D")) == (10119, "consumer is offline")
            listed = await running.ask(at, "STREAM.LIST")
            assert [stream["config"]["name"] for stream in listed["streams"]] == ["KEPT"]
            assert (listed["missing"], listed["total"]) == (["LOST", "MEM"], 3)
            assert (await running.ask(at, "STREAM.NAMES"))["streams"] == ["KEPT", "LOST", "MEM"]
            moved = await running.ask(at, "STREAM.PEER.REMOVE.LOST", {"peer": "n3"})
            assert error(moved) == (10075, "peer remap failed")
        assert not any("LOST" in node.app.streams or "MEM" in node.app.streams for node in others)
        info = await running.ask(0, "STREAM.INFO.KEPT")
        (gone,) = [replica for replica in info["cluster"]["replicas"] if replica["name"] == "n3"]
        assert gone["offline"] and not gone["current"]


async def test_a_flood_through_a_node_that_does_not_lead_is_answered_whole_and_in_order(cluster: Trio) -> None:
    await create(cluster, "FLOOD", placement={"tags": ["az:a"]}, allow_direct=True)
    await cluster.clients[0].jetstream().publish("FLOOD.x", b"x")
    for subject in ("STREAM.INFO.FLOOD", "DIRECT.GET.FLOOD.FLOOD.x"):
        heard: list[str] = []

        async def take(message: Msg, heard: list[str] = heard) -> None:
            heard.append(message.subject)

        await cluster.clients[2].subscribe("flood.*", cb=take)
        for number in range(300):
            await cluster.clients[2].publish(f"$JS.API.{subject}", b"", reply=f"flood.{number}")
        await until(lambda heard=heard: len(heard) == 300)
        assert heard == [f"flood.{number}" for number in range(300)]
