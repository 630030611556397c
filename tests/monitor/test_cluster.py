"""Three nodes under observation: by HTTP, by requests on `$SYS`, by advisories, by Prometheus and by the `nats` CLI."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.go_cluster import SYSTEM_USER
from nimsnats.identity import node_hash
from tests.broker.peer import until
from tests.jetstream.trio import TAGS, Trio, ask, trio
from tests.monitor.test_metrics import lint, values

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SCHEMAS = Path(os.environ.get("NATS_SCHEMAS", Path(__file__).parents[3] / "shared" / "reference" / "schemas"))
_NAMES = ("n1", "n2", "n3")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trio]:
    """Three nodes with a stream of three replicas, led by n2, one of one replica on n3, and a consumer."""
    async with trio(tmp_path_factory.mktemp("trio")) as running:
        await running.ask(0, "STREAM.CREATE.S", {"name": "S", "subjects": ["s"], "num_replicas": 3})
        one = {"name": "ONE", "subjects": ["one"], "placement": {"tags": ["hdd"]}}
        await running.ask(0, "STREAM.CREATE.ONE", one)
        config = {"durable_name": "C", "name": "C", "ack_policy": "explicit"}
        await running.ask(0, "CONSUMER.CREATE.S.C", {"stream_name": "S", "config": config})
        moved = await running.ask(0, "STREAM.LEADER.STEPDOWN.S", {"placement": {"preferred": "n2"}})
        assert moved.get("success"), moved
        await until(lambda: running.leader("S") == "n2")
        await running.clients[0].request("s", b"x", timeout=5)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(cluster: Trio) -> AsyncIterator[Client]:
    """A client of the system account on n1."""
    client = await cluster.system()
    yield client
    await client.close()


async def answers(client: Client, subject: str, body: object = None, count: int = 3) -> dict[str, Any]:
    """What servers answer to one request, by name; waits for `count` of them."""
    inbox = client.new_inbox()
    heard = await client.subscribe(inbox)
    await client.publish(subject, json.dumps(body or {}).encode(), reply=inbox)
    found: dict[str, Any] = {}
    while len(found) < count:
        answer = json.loads((await heard.next_msg(timeout=20)).data)
        found[answer["server"]["name"]] = answer
    await heard.unsubscribe()
    return found


async def test_jsz_and_raftz_show_the_cluster(cluster: Trio) -> None:
    leader = cluster.meta_leader()
    assert leader is not None
    await until(lambda: all("S" in node.app.streams for node in cluster.nodes))
    await until(lambda: all(node.app.streams["S"].stream.group.leader for node in cluster.nodes))
    for node in cluster.nodes:
        meta = (await node.get("/jsz"))["meta_cluster"]
        assert (meta["leader"], meta["peer"]) == (leader.name, node_hash(leader.name))
        assert (meta["cluster_size"], meta["quorum_needed"]) == (3, 2)
        assert [replica["name"] for replica in meta["replicas"]] == [name for name in _NAMES if name != node.name]
        (account,) = (await node.get("/jsz?streams=1&consumers=1&raft=1"))["account_details"]
        held = {stream["name"]: stream for stream in account["stream_detail"]}
        assert sorted(held) == (["ONE", "S"] if node.name == "n3" else ["S"])
        assert held["S"]["cluster"]["leader"] == "n2" and len(held["S"]["cluster"]["replicas"]) == 2
        assert held["S"]["consumer_detail"][0]["cluster"]["leader"] == "n2"
        (group,) = (await node.get("/raftz?acc=APP"))["APP"].items()
        assert group[0] == held["S"]["stream_raft_group"] == held["S"]["consumer_raft_groups"][0]["raft_group"]
        assert group[1]["state"] == ("LEADER" if node.name == "n2" else "FOLLOWER")
        assert group[1]["leader"] == node_hash("n2") and sorted(group[1]["peers"]) == sorted(
            node_hash(name) for name in _NAMES if name != node.name
        )
        assert list((await node.get("/raftz"))["SYS"]) == ["_meta_"]
        assert await node.get("/healthz") == {"status": "ok"}
        assert (await node.get("/varz"))["jetstream"]["meta"]["leader"] == leader.name
        led = (await node.get("/jsz?streams=1&stream-leader-only=1"))["account_details"][0].get("stream_detail", [])
        assert [stream["name"] for stream in led] == {"n1": [], "n2": ["S"], "n3": ["ONE"]}[node.name]


async def test_every_server_answers_and_filters_choose(cluster: Trio, system: Client) -> None:
    found = await answers(system, "$SYS.REQ.SERVER.PING")
    assert sorted(found) == list(_NAMES)
    assert {name: answer["server"]["tags"] for name, answer in found.items()} == TAGS
    assert all(answer["statsz"]["jetstream"]["meta"]["cluster_size"] == 3 for answer in found.values())
    assert sorted(await answers(system, "$SYS.REQ.SERVER.PING.JSZ", {"tags": ["ssd"]}, 2)) == ["n1", "n2"]
    leader = cluster.meta_leader()
    assert leader is not None
    assert list(await answers(system, "$SYS.REQ.SERVER.PING.JSZ", {"leader_only": True}, 1)) == [leader.name]
    other = next(node for node in cluster.nodes if node is not leader)
    async with aiohttp.ClientSession() as session, session.get(other.http + "/jsz?leader-only=1") as answer:
        assert (answer.status, await answer.text()) == (400, "filtered response: not leader")


async def test_metrics_say_how_the_groups_are_without_a_line_for_each(cluster: Trio) -> None:
    async with aiohttp.ClientSession() as session:

        async def page(query: str = "") -> str:
            async with session.get(cluster["n2"].http + "/metrics" + query) as answer:
                return await answer.text()

        short, long = await page(), await page("?raft=1")
    assert lint(short) == [] and lint(long) == []
    found = values(short)
    assert found["nimsnats_raft_groups", (("role", "leader"),)] >= 1
    assert sum(value for (name, _), value in found.items() if name == "nimsnats_raft_groups") == 2
    assert found["nimsnats_raft_meta_members", ()] == 3 and found["nimsnats_raft_meta_applied_index", ()] > 0
    assert found["nimsnats_raft_peer_lost", (("peer", "n3"),)] == 0
    assert found["nimsnats_raft_leaderships_total", ()] >= 1
    assert found["nimsnats_raft_elections_total", ()] >= 1 and found["nimsnats_raft_meta_leader_known", ()] == 1
    assert 'group="' not in short and long.count("nimsnats_raft_group_term{") == 2


async def test_elections_are_advised_to_the_account_and_to_the_system_account(cluster: Trio, system: Client) -> None:
    heard: list[tuple[str, str, dict[str, Any]]] = []

    def listener(account: str) -> Any:
        async def take(message: Msg) -> None:
            heard.append((account, message.subject.removeprefix("$JS.EVENT.ADVISORY."), json.loads(message.data)))

        return take

    subscriptions = [
        await client.subscribe("$JS.EVENT.ADVISORY.*.LEADER_ELECTED.>", cb=listener(name))
        for client, name in ((cluster.clients[0], "APP"), (system, "SYS"))
    ]
    subscriptions.append(await system.subscribe("$JS.EVENT.ADVISORY.DOMAIN.LEADER_ELECTED", cb=listener("SYS")))
    for client in (cluster.clients[0], system):
        await client.flush()
    await ask(cluster.clients[0], "STREAM.LEADER.STEPDOWN.S", {"placement": {"preferred": "n1"}})
    target = next(node.name for node in cluster.nodes if node is not cluster.meta_leader())
    await ask(system, "META.LEADER.STEPDOWN", {"placement": {"preferred": target}})
    await until(lambda: len(heard) == 5)
    by_place = {(account, subject): event for account, subject, event in heard}
    for account in ("APP", "SYS"):
        for subject, kind in (("STREAM.LEADER_ELECTED.S", "stream"), ("CONSUMER.LEADER_ELECTED.S.C", "consumer")):
            event = by_place[account, subject]
            assert event["leader"] == "n1" and [replica["name"] for replica in event["replicas"]] == list(_NAMES)
            assert event.get("account") == (None if account == "APP" else "APP")
            fits(event, f"{kind}_leader_elected")
    event = by_place["SYS", "DOMAIN.LEADER_ELECTED"]
    assert event["leader"] == node_hash(target)
    fits(event, "domain_leader_elected")
    for subscription in subscriptions:
        await subscription.unsubscribe()
    await ask(cluster.clients[0], "STREAM.LEADER.STEPDOWN.S", {"placement": {"preferred": "n2"}})
    await until(lambda: cluster.leader("S") == "n2")


def fits(event: dict[str, Any], name: str) -> None:
    """An event has the shape that its schema says, where the schemas are at hand.

    The schemas of elections describe one replica where the server sends a list of them, and know nothing of
    the `account` that it adds for the system account.
    """
    file = _SCHEMAS / "jetstream" / "advisory" / "v1" / f"{name}.json"
    if not file.exists():
        return
    schema = json.loads(file.read_text())
    schema["properties"]["replicas"] = {"type": "array", "items": schema["properties"]["replicas"]}
    schema["properties"]["account"] = {"type": "string"}
    jsonschema.validate(event, schema)


COMMANDS: list[tuple[bool, str, str]] = [
    (True, "server list", r"nimsforest │ +3 │"),
    (True, "server report jetstream", r"n\d\* +│ nimsforest │"),
    (True, "server report jetstream", r"RAFT Meta Group Information - Lead cluster: nimsforest"),
    (True, "server report connections", r"Top \d+ Connections"),
    (True, "server report routes", r"│ 3 +│ 1 "),
    (True, "server report health", r"ok: 3 / err: 0"),
    (True, "server check meta --expect 3 --lag-critical 100 --seen-critical 10s", r"^OK .*3 peers led by n\d"),
    (True, "server info n2", r"Tags: az:b, ssd"),
    (True, "server report accounts", r"│ APP +│"),
    (True, "server report cpu", r"n2: .* \("),
    (True, "server request jetstream --name n2", r'"meta_cluster"'),
    (True, "server check server --name n1", r"^OK n1 "),
    (True, "server cluster step-down --force", r'New leader elected "n\d"'),
    (True, "server raft step-down --force", r'New leader elected "n\d"'),
    (True, "server cluster peer-remove nobody --force", r"did not find a replica named nobody"),
    (False, "stream report", r"S +│ File .* n1, n2\*, n3"),
    (False, "stream info S", r"Replica: n1, current, seen .*\n +Replica: n3, current, seen "),
    (False, "stream info ONE", r"Leader: n3"),
    (False, "consumer info S C", r"Leader: n2 .*\n +Replica: n1, current"),
    (False, "consumer report S", r"n1, n2\*, n3"),
    (False, "trace s", r'--J JetStream action:"stored" stream:"S" subject:"s"'),
    (False, "account info", r"Connected Cluster: nimsforest"),
    (False, "server check jetstream", r"^OK .*replicas_ok=3 "),
    (False, "server check stream --stream S --peer-expect 3", r"^OK S OK:3 peers"),
    (False, "server check consumer --stream S --consumer C", r"^OK S_C"),
    (False, "server check kv --bucket B", r"^OK B OK:bucket B"),
    (False, "stream cluster step-down S", r'New leader elected "n\d"'),
    (False, "consumer cluster step-down S C", r'New leader elected "n\d"'),
    (False, "stream cluster balance", r"Balanced \d+ streams"),
    (False, "consumer cluster balance S", r"Balanced \d+ consumers"),
    (False, "stream cluster cancel-move S", r"stream is not busy moving"),
    (False, "stream cluster evacuate S n1 --force", r"peer remap failed \(10075\)"),
    (False, "stream cluster evacuate ONE n3 --force", r"peer remap failed \(10075\)"),
]
"""Whether it is for the system account, the command, and what its output must match: as on three Go servers."""


async def test_the_command_line_tool_works_on_the_cluster(cluster: Trio) -> None:
    program = shutil.which("nats")
    if program is None:
        pytest.skip("the nats command is not installed")
    await cluster.clients[0].jetstream().create_key_value(bucket="B", replicas=3)
    user, password = SYSTEM_USER
    for administers, command, expected in COMMANDS:
        login = ["--user", user, "--password", password] if administers else []
        process = await asyncio.create_subprocess_exec(
            *(program, "--no-context", "-s", cluster.nodes[0].url, *login, *command.split()),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 15)
        assert re.search(expected, output.decode(), re.MULTILINE), f"nats {command}:\n{output.decode()}"
