"""Message tracing: the reports of the Go server and ours on the same messages, and what receivers get."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nimsnats.broker import msgtrace
from nimsnats.server import Server
from tests.broker.peer import Peer, until
from tests.conformance.oracle import Oracle
from tests.jetstream.trio import Trio, trio

TRACED = {"Nats-Trace-Dest": "trace.here"}
_PIECES = (
    b"NATS/1.0\r\n", b"Nats-Trace-Dest: t\r\n", b"Nats-Trace-Dest:", b"Nats-Trace-Hop: 1\r\n", b"Nats-Trace-Hop: \xff",
    b"Nats-Trace-Only: 1\r\n", b"\r\n", b":",
)  # fmt: skip
_ONLY = {**TRACED, "Nats-Trace-Only": "true"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("traced")
    with Oracle(directory).start(f"jetstream {{ store_dir: '{directory}' }}") as oracle:
        yield oracle.url


@pytest_asyncio.fixture
async def ours(tmp_path: Path) -> AsyncIterator[str]:
    async with Server(store_dir=str(tmp_path / "store")) as server:
        yield server.url


class Scene:
    """One server with an audience: an ordinary client, one that does not want its own echo, a queue, a stream."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.heard: list[tuple[str, str, dict[str, str] | None]] = []
        self.clients: dict[str, Client] = {}
        self.traces: Subscription | None = None

    async def __aenter__(self) -> Scene:
        for name in ("watcher", "reader", "mute"):
            self.clients[name] = await nats.connect(self.url, name=name, no_echo=name == "mute")
        self.traces = await self.clients["watcher"].subscribe("trace.here")
        for name, subject, queue in (
            ("reader", "a.*", ""), ("reader", "a.one", "workers"), ("reader", "b", ""), ("mute", "b", ""),
            ("reader", "c.*", ""),
        ):  # fmt: skip
            await self.clients[name].subscribe(subject, queue, cb=self._listener(name))
        js = self.clients["reader"].jetstream()
        await js.add_stream(name="S", subjects=["s.*"])
        for client in self.clients.values():
            await client.flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.clients["reader"].jetstream().delete_stream("S")
        for client in self.clients.values():
            await client.close()

    def _listener(self, name: str) -> Any:
        async def take(message: Msg) -> None:
            self.heard.append((name, message.subject, message.headers))

        return take

    async def send(self, subject: str, headers: dict[str, str], by: str = "mute", reply: str = "") -> Any:
        """Publish, and wait for the report."""
        await self.clients[by].publish(subject, b"hello", headers=headers, reply=reply)
        assert self.traces is not None
        report = json.loads((await self.traces.next_msg(timeout=5)).data)
        assert report["server"]["name"] and report["server"]["id"]
        return normal(report)

    async def settled(self) -> list[tuple[str, str, dict[str, str] | None]]:
        """What the audience has heard since the last time."""
        for client in self.clients.values():
            await client.flush()
        await asyncio.sleep(0)
        heard, self.heard = sorted(self.heard, key=str), []
        return heard


def normal(report: Any) -> Any:
    """A report without what differs between two runs, its events in an order of their own."""
    events = [{key: value for key, value in event.items() if key not in ("ts", "cid")} for event in report["events"]]
    assert all(event["ts"].endswith("Z") for event in report["events"])
    return report["request"], report.get("hops", 0), events[0], sorted(events[1:], key=str)


async def story(url: str) -> list[Any]:
    """Everything that is compared."""
    told: list[Any] = []
    async with Scene(url) as scene:
        for _ in range(3):  # the first by the long way, later ones in runs
            told.append(await scene.send("nobody", TRACED))
            told.append(await scene.send("a.one", TRACED))
            told.append(await scene.send("b", TRACED))
            told.append(await scene.send("b", TRACED, by="reader"))
            told.append(await scene.send("c.1", TRACED, by="reader"))
            told.append(await scene.settled())
        for only in ("1", "true", "on", "yes"):
            told.append(await scene.send("c.1", {**TRACED, "Nats-Trace-Only": only, "X": "y"}))
        told.append(await scene.settled())
        told.append(await scene.send("s.1", TRACED))
        told.append(await scene.send("s.1", _ONLY))
        told.append(await scene.send("s.1", {**TRACED, "Nats-Msg-Id": "same"}, reply="c.reply"))
        duplicate = await scene.send("s.1", {**TRACED, "Nats-Msg-Id": "same"})
        told.append(duplicate)
        told.append(await scene.settled())
        reader = scene.clients["reader"]
        stored = await reader.jetstream().get_last_msg("S", "s.1")
        told.append((stored.seq, stored.headers))
        for headers in (
            {"Nats-Trace-Dest": "trace.*"},
            {"Nats-Trace-Dest": "trace disabled"},
            {"nats-trace-dest": "x"},
        ):
            await reader.publish("c.2", b"hello", headers=headers)
        await reader.publish("c.2", b"NATS/1.0\r\nNats-Trace-Dest: trace.here\r\n\r\n")
        told.append(await scene.settled())
        told.append(await scene.send("c.2", TRACED, by="reader"))
    return told


async def test_traces_are_the_oracles(theirs: str, ours: str) -> None:
    expected, told = await story(theirs), await story(ours)
    for number, (one, other) in enumerate(zip(expected, told, strict=True)):
        assert other == one, f"step {number}"


async def test_a_mixed_run_loses_and_doubles_nothing(ours: str) -> None:
    async with Scene(ours) as scene:
        client = scene.clients["watcher"]
        for _ in range(3):
            await scene.send("c.1", TRACED)
        await scene.settled()
        for number in range(50):
            await client.publish("c.1", b"x", headers=TRACED if number % 10 == 0 else {"N": str(number)})
        await client.flush()
        heard = [headers for _, _, headers in await scene.settled()]
        assert len(heard) == 50 and sum(headers == TRACED for headers in heard) == 5
        assert scene.traces is not None
        for _ in range(5):
            await scene.traces.next_msg(timeout=20)
        reader = scene.clients["reader"]
        (sub,) = [sub for sub in reader._subs.values() if sub.subject == "c.*"]  # pyright: ignore[reportPrivateUsage]
        await sub.unsubscribe(limit=sub._received + 1)  # pyright: ignore[reportPrivateUsage]
        await client.publish("c.1", b"x")
        await client.publish("c.1", b"x")
        assert len(await scene.settled()) == 1, "traced messages count once towards the limit of a subscription"


@given(st.lists(st.sampled_from(_PIECES) | st.binary(max_size=6), max_size=8).map(b"".join))
@example(b"NATS/1.0\r\nNats-Trace-Dest: t\r\nNats-Trace-Hop: \xff\r\n\r\n")
@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
async def test_no_header_block_harms_the_server(ours: str, block: bytes) -> None:
    port = int(ours.rpartition(":")[2])
    peer = await Peer.connect(port, b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n')
    size = len(block)
    await peer.sync(b"SUB x 1\r\nSUB t 2\r\n" + b"HPUB x %d %d\r\n%b\r\n" % (size, size, block) * 3)
    peer.close()


async def test_peers_report_their_part(tmp_path: Path) -> None:
    async with trio(tmp_path) as cluster:
        await told_of_hops(cluster)


async def told_of_hops(cluster: Trio) -> None:
    first, second, third = cluster.clients
    got: asyncio.Queue[Msg] = asyncio.Queue()
    await second.subscribe("x", cb=got.put)
    await third.subscribe("x", "q", cb=got.put)
    traces = await third.subscribe("trace.here")
    await cluster.ask(0, "STREAM.CREATE.S", {"name": "S", "subjects": ["s"], "placement": {"tags": ["hdd"]}})
    for client in (second, third, first):
        await client.flush()
    interest = [node.server.broker.account("APP").interest for node in cluster.nodes]
    await until(lambda: sum(len(list(found)) for found in interest[0].match(b"x")) == 2)
    await until(lambda: all(one.match(b"trace.here") for one in interest) and bool(interest[0].match(b"s")))
    for _ in range(3):
        await first.publish("x", b"hello", headers=TRACED)
        reports = sorted([json.loads((await traces.next_msg(timeout=5)).data) for _ in range(3)],
                         key=lambda report: report["server"]["name"])  # fmt: skip
        out, *far = [report["events"] for report in reports]
        assert reports[0]["hops"] == 2 and [event.get("hop") for event in out] == [None, "1", "2"]
        assert [(event["kind"], event["name"]) for event in out[1:]] == [(1, "n2"), (1, "n3")]
        assert [report["request"]["header"]["Nats-Trace-Hop"] for report in reports[1:]] == [["1"], ["2"]]
        assert [(events[0]["kind"], events[0]["name"]) for events in far] == [(1, "n1")] * 2
        assert [(events[1]["sub"], events[1].get("queue")) for events in far] == [("x", None), ("x", "q")]
        hops = [(await got.get()).headers, (await got.get()).headers]
        assert sorted(str(headers) for headers in hops) == [str({**TRACED, "Nats-Trace-Hop": hop}) for hop in "12"]
    await first.publish("s", b"hello", headers=TRACED)
    reports = [json.loads((await traces.next_msg(timeout=5)).data) for _ in range(2)]
    assert next(report["events"][1] for report in reports if report["server"]["name"] == "n3")["stream"] == "S"
    await first.publish("x", b"hello", headers=_ONLY)
    for _ in range(3):
        await traces.next_msg(timeout=5)
    await first.flush()
    assert got.empty()
    peer = await Peer.connect(
        int(cluster.nodes[0].url.rpartition(":")[2]), b'CONNECT {"headers":true,"verbose":false}\r\n'
    )
    block = b"NATS/1.0\r\nNats-Trace-Dest: trace.here\r\nNats-Trace-Hop: \xff\r\n\r\n"
    await peer.sync(b"HPUB x %d %d\r\n%b\r\n" % (len(block), len(block), block))
    peer.close()
    for _ in range(3):
        await traces.next_msg(timeout=5)


async def test_a_stream_that_does_not_answer_is_not_said_to_have_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(msgtrace, "_ANSWERED", 0.05)
    async with Server(store_dir=str(tmp_path / "store")) as server:
        server.broker.global_account.subscribe(b"mute", lambda *_: True, stream="S")
        client = await server.client()
        traces = await client.subscribe("trace.here")
        await client.publish("mute", b"", headers=TRACED)
        report = json.loads((await traces.next_msg(10)).data)
        event = next(event for event in report["events"] if event["type"] == "js")
        assert event["error"].startswith("no answer") and "subject" not in event
        await client.close()
