"""An error of our own ends one handler's part in one message, or one item of a loop: never what carries it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from nats.aio.client import Client

from nimsnats.broker import publisher
from nimsnats.broker.server import Broker
from nimsnats.broker.wheel import Wheel
from nimsnats.fence import PLACES_KEPT, Fence
from nimsnats.jetstream.api.decode import JsonObject
from nimsnats.jetstream.api.dispatch import ApiRequest, Body, Endpoint
from nimsnats.jetstream.body import Nonsense
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.mail import Mail
from nimsnats.runtime import Runtime
from tests.broker.peer import Peer, running, until
from tests.broker.route_stand import mesh, settled
from tests.jetstream import stand
from tests.jetstream.trio import APP, Trio, trio
from tests.raft.recorder import Recorder

pytestmark = pytest.mark.errors_inside

ERRORS = [RecursionError, MemoryError, KeyError, AssertionError, UnicodeDecodeError]
FAILED = b'{"error":{"code":500,"description":"internal error"}}'


def raising(error: type[Exception], *, after: Callable[[bytes], None] = lambda _: None) -> Any:
    """A handler that raises, for some as deep as it goes."""

    def deeper() -> None:
        deeper()

    def handler(*message: Any) -> None:
        if len(message) > 3:
            after(message[3])
        if error is RecursionError:
            deeper()
        if error is UnicodeDecodeError:
            b"\xff".decode()
        raise error("a bug")

    return handler


def stacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the fences have logged."""
    return [record for record in caplog.records if record.name == "nimsnats.fence"]


def pub(subject: bytes, reply: bytes = b"", payload: bytes = b"x", headers: bytes = b"") -> bytes:
    """One PUB or HPUB."""
    to = reply + b" " if reply else b""
    if headers:
        size = len(headers) + len(payload)
        return b"HPUB %b %b%d %d\r\n%b%b\r\n" % (subject, to, len(headers), size, headers, payload)
    return b"PUB %b %b%d\r\n%b\r\n" % (subject, to, len(payload), payload)


# -- handlers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [b"", b"NATS/1.0\r\nA: b\r\n\r\n"])
@pytest.mark.parametrize("error", ERRORS)
async def test_a_handler_that_raises_costs_one_message(
    error: type[Exception], headers: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """One read: messages for the handler, one by one at first and then as a run, between others for others."""
    async with running() as broker:
        seen: list[bytes] = []
        broker.global_account.subscribe(b"bad", raising(error, after=seen.append))
        peer, other = await Peer.connect(broker.port), await Peer.connect(broker.port)
        await other.sync(b"SUB good 1\r\n")
        await peer.sync(b"SUB r.* 2\r\n")
        said = b"".join(pub(b"bad", b"r.%d" % at, b"%d" % at, headers) + pub(b"good") for at in range(6))
        said += b"".join(pub(b"bad", b"", b"%d" % at, headers) for at in range(6, 9)) + pub(b"good")
        lines = await peer.sync(said)
        answers = [line for line in lines if line.startswith(b"HMSG r.")]
        assert [line.split(b" ")[1] for line in answers] == [b"r.%d" % at for at in range(6)]
        assert lines.count(b"NATS/1.0 500 Internal Server Error") == lines.count(FAILED) == 6
        assert seen == [b"%d" % at for at in range(9)], "each message was handed over once"
        assert (await other.sync()).count(b"MSG good 1 1") == 7
        assert list(broker.runtime.fence.counts.values()) == [9]
        (record,) = stacks(caplog)
        assert record.exc_info is not None and record.exc_info[0] is error
        assert len(logging.Formatter().formatException(record.exc_info).splitlines()) < 150
        assert broker.stats.in_msgs == 16
        peer.close()
        other.close()


async def test_other_handlers_of_the_same_message_get_it() -> None:
    async with running() as broker:
        account = broker.global_account
        seen: list[str] = []
        account.subscribe(b"a", lambda *_: seen.append("first"))
        account.subscribe(b"a", raising(KeyError))
        account.subscribe(b"*", lambda *_: seen.append("third"))
        for _ in range(2):  # in one queue group whoever is drawn raises, and nobody else gets the message
            account.subscribe(b"a", raising(ValueError), b"q")
        peer = await Peer.connect(broker.port)
        lines = await peer.sync(b"SUB > 1\r\nSUB a 2 \r\n" + pub(b"a", b"back") * 3)
        assert [seen.count(each) for each in ("first", "third")] == [3, 9], "three messages, and what answers them"
        assert lines.count(b"MSG a 2 back 1") == 3
        assert sum(line.startswith(b"HMSG back 1 ") for line in lines) == 6, "each failure was answered"
        assert sum(broker.runtime.fence.counts.values()) == 6
        peer.close()


async def test_requests_in_rows_are_answered_one_by_one_when_their_handler_raises() -> None:
    async with running() as broker:

        def rows(subject: bytes, replies: list[bytes], payloads: list[bytes], origin: object) -> None:
            raise MemoryError

        broker.global_account.subscribe(b"rows", raising(KeyError), rows=rows)
        peer = await Peer.connect(broker.port)
        await peer.sync(b"SUB _INBOX.me.* 1\r\n")
        lines = await peer.sync(b"".join(pub(b"rows", b"_INBOX.me.%04d" % at, b"same") for at in range(200)))
        assert lines.count(FAILED) == 200
        counts = broker.runtime.fence.counts
        assert sum(counts.values()) == 200 and len(counts) == 2
        peer.close()


async def test_acknowledgements_that_cannot_be_taken_together_are_taken_one_by_one() -> None:
    async with running() as broker:
        taken: list[int] = []

        def take(seqs: list[int]) -> None:
            if len(seqs) > 1 or seqs == [50]:
                raise OverflowError
            taken.extend(seqs)

        def single(subject: bytes, *_: object) -> None:
            taken.append(int(subject.split(b".")[5]))

        broker.global_account.subscribe(b"$JS.ACK.>", single, acks=lambda name: take)
        peer = await Peer.connect(broker.port)
        acks = b"".join(
            pub(b"$JS.ACK.S.C.1.%d.%d.1700000000000000000.0" % (at, at), b"", b"+ACK") for at in range(1, 101)
        )
        assert await peer.sync(acks) == []
        assert taken == [at for at in range(1, 101) if at != 50]
        peer.close()


async def test_an_acknowledgement_whose_handler_raises_is_not_confirmed() -> None:
    """Whoever waits for the confirmation takes any answer for it."""
    async with running() as broker:
        broker.global_account.subscribe(b"$JS.ACK.>", raising(RecursionError))
        peer = await Peer.connect(broker.port)
        assert await peer.sync(b"SUB r 1\r\n" + pub(b"$JS.ACK.S.C.1.1.1.1.0", b"r", b"+ACK")) == []
        peer.close()


async def test_a_traced_message_is_reported_although_its_handler_raises() -> None:
    async with running() as broker:
        reports: list[Any] = []
        broker.tracer = reports.append
        broker.global_account.subscribe(b"bad", raising(KeyError))
        broker.global_account.subscribe(b"bad", raising(RecursionError), stream="S")
        peer = await Peer.connect(broker.port)
        block = b"NATS/1.0\r\nNats-Trace-Dest: here\r\n\r\n"
        lines = await peer.sync(b"SUB r 1\r\n" + pub(b"bad", b"r", b"x", block) * 3)
        assert lines.count(FAILED) == 6 and len(reports) == 3
        assert all(report.events[1]["error"] == "internal error" for report in reports)
        broker.tracer = raising(KeyError)
        assert FAILED in await peer.sync(pub(b"bad", b"r", b"x", block))
        peer.close()


async def test_a_message_in_a_run_that_cannot_be_traced_costs_that_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "dispatch", raising(KeyError))
    async with running() as broker:
        broker.tracer = lambda report: None
        peer, other = await Peer.connect(broker.port), await Peer.connect(broker.port)
        await other.sync(b"SUB good 1\r\n")
        plain, traced = b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0\r\nNats-Trace-Dest: here\r\n\r\n"
        known = pub(b"good", b"r", b"x", plain)
        await peer.sync(b"SUB r 1\r\n" + known * 3 + pub(b"good", b"r", b"x", traced))
        before = sum(broker.runtime.fence.counts.values())
        lines = await peer.sync(known + pub(b"good", b"r", b"x", traced) + known)
        assert lines.count(FAILED) == 1 and sum(broker.runtime.fence.counts.values()) == before + 1
        assert sum(line.startswith(b"HMSG good 1 ") for line in await other.sync()) == 5, "none came twice"
        assert broker.clients, "the connection goes on"
        peer.close()
        other.close()


async def test_what_is_no_error_passes() -> None:
    async with running() as broker:

        def interrupted(*_: object) -> None:
            raise asyncio.CancelledError

        broker.global_account.subscribe(b"a", interrupted)
        with pytest.raises(asyncio.CancelledError):
            broker.global_account.publish(b"a")
        assert not broker.runtime.fence.counts


@pytest.mark.parametrize("error", [RecursionError, MemoryError, KeyError])
async def test_over_a_route_the_route_stays(error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("A", "B", "C") as tables:
        a, b, c = tables
        account = b.broker.global_account
        account.subscribe(b"bad", raising(error), routed=True)
        account.subscribe(b"bad.queue", raising(error), b"q", routed=True)
        account.watch_interest(raising(error))
        routes = [set(table.open) for table in tables]
        peer, other, third = [await Peer.connect(table.broker.port) for table in tables]
        await other.sync(b"SUB good 1\r\n")
        await third.sync(b"SUB good 1\r\n")
        await peer.sync(b"SUB r.* 2\r\n")
        await settled(a, b, c)
        await settled(a, b, c)
        said = b"".join(
            pub(subject, b"r.1") + pub(subject) + pub(b"good") for subject in (b"bad", b"bad.queue") for _ in range(4)
        )
        await peer.sync(said)
        await settled(a, b, c)
        await settled(a, b, c)
        assert (await peer.sync()).count(FAILED) == 8
        assert (await other.sync()).count(b"MSG good 1 1") == (await third.sync()).count(b"MSG good 1 1") == 8
        assert [set(table.open) for table in tables] == routes, "no route was torn down"
        assert sum(b.broker.runtime.fence.counts.values()) >= 16
        assert not a.broker.runtime.fence.counts and not c.broker.runtime.fence.counts
        assert len(stacks(caplog)) == 1, "all of it was raised in one place"
        for each in (peer, other, third):
            each.close()


# -- what else a connection calls -------------------------------------------------------------------------------------


async def test_a_bug_in_a_verb_costs_that_connection_after_its_messages(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that believes in a subscription that does not exist must hear so."""
    async with running() as broker:
        peer, other = await Peer.connect(broker.port), await Peer.connect(broker.port)
        await other.sync(b"SUB good 1\r\n")

        def add(_: object) -> None:
            raise RecursionError

        await peer.sync(pub(b"good") * 3)
        monkeypatch.setattr(broker.global_account, "add", add)
        peer.send(pub(b"good") * 3 + b"SUB x 1\r\n" + pub(b"good") * 5)
        assert await peer.rest() == b"-ERR 'Internal Server Error'\r\n"
        assert (await other.sync()).count(b"MSG good 1 1") == 6
        assert len(stacks(caplog)) == 1 and len(broker.clients) == 1
        assert broker.closed[-1].reason is not None and broker.closed[-1].reason.value == "Internal Server Error"
        other.close()


async def test_a_bug_in_planning_costs_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh("A", "B") as (a, b):
        peer, other = await Peer.connect(a.broker.port), await Peer.connect(b.broker.port)
        await other.sync(b"SUB * 1\r\n")
        await settled(a, b)
        route = set(b.open)
        routing = b.routings[b"$G"]
        plan = routing.plan

        def broken(subject: bytes, queues: tuple[bytes, ...]) -> Any:
            if subject == b"bad":
                raise KeyError(subject)
            return plan(subject, queues)

        monkeypatch.setattr(routing, "plan", broken)
        await peer.sync((pub(b"bad") + pub(b"good")) * 3)
        await settled(a, b)
        assert (await other.sync()).count(b"MSG good 1 1") == 3
        assert set(b.open) == route
        assert b.broker.runtime.fence.counts == {"broker.route.RouteConnection.routed": 3}
        peer.close()
        other.close()


async def test_listeners_that_raise_keep_nobody_from_coming_and_going() -> None:
    async with running() as broker:
        told: list[str] = []

        class Bad:
            connected = disconnected = refused = staticmethod(raising(KeyError))

        class Good:
            def connected(self, client: Any) -> None:
                told.append("connected")

            def disconnected(self, client: Any) -> None:
                told.append("disconnected")

            def refused(self, client: Any) -> None:
                told.append("refused")

        broker.client_listeners += [Bad(), Good()]
        broker.account_listeners.append(raising(KeyError))
        broker.global_account.watch_interest(raising(KeyError))
        assert broker.account("new").name == "new"
        peer = await Peer.connect(broker.port)
        assert await peer.sync(b"SUB a 1\r\n" + pub(b"a")) == [b"MSG a 1 1", b"x"]
        peer.close()
        await until(lambda: not broker.clients)
        assert told == ["connected", "disconnected"]
        assert not broker.global_account.clients and not broker.global_account.has_interest(b"a")


async def test_one_write_that_raises_does_not_stop_the_others() -> None:
    async with running() as broker:
        peers = [await Peer.connect(broker.port) for _ in range(5)]
        for peer in peers:
            await peer.sync(b"SUB a 1\r\n")
        victim = broker.clients[min(broker.clients)]

        class Broken:
            def __getattr__(self, name: str) -> Any:
                return getattr(transport, name)

            def write(self, data: bytes) -> None:
                raise MemoryError

        transport = victim.transport
        victim.transport = Broken()  # type: ignore[assignment]
        assert await peers[4].sync(pub(b"a")) == [b"MSG a 1 1", b"x"]
        for peer in peers[1:4]:
            assert await peer.sync() == [b"MSG a 1 1", b"x"]
        assert victim.closed and await peers[0].rest() == b""
        for peer in peers:
            peer.close()


async def test_a_deadline_that_raises_stops_no_other_and_is_tried_again() -> None:
    runtime = Runtime.real()
    fired: list[str] = []
    done = asyncio.Event()

    def fire(key: str) -> None:
        fired.append(key)
        if key == "bad" and fired.count("bad") == 1:
            raise KeyError
        if fired.count("bad") == 2:
            done.set()

    wheel = Wheel(runtime, fire)
    for key in ("a", "bad", "b"):
        wheel.set(key, 0.01)
    async with asyncio.timeout(20):
        await done.wait()
    assert fired == ["a", "bad", "b", "bad"]
    wheel.close()


async def test_a_task_whose_outcome_nobody_awaits_is_seen() -> None:
    runtime = Runtime.real()

    async def work() -> None:
        raise KeyError

    await runtime.tend(work(), "work")
    assert list(runtime.fence.counts.values()) == [1]
    task = runtime.tend(work(), "work")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    asyncio.get_running_loop().set_exception_handler(runtime.fence.escaped)
    runtime.call_soon(raising(ValueError))
    await asyncio.sleep(0)
    assert sum(runtime.fence.counts.values()) == 2


def test_places_and_logged_errors_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    fence = Fence()
    for number in range(3 * PLACES_KEPT):
        fence.caught(f"place {number}", KeyError())
    assert len(fence.counts) == PLACES_KEPT + 1 and sum(fence.counts.values()) == 3 * PLACES_KEPT
    assert len(stacks(caplog)) <= PLACES_KEPT + 1


# -- groups -----------------------------------------------------------------------------------------------------------


async def test_one_group_that_cannot_be_compacted_or_written_does_not_stop_the_others(tmp_path: Path) -> None:
    async with stand.running(tmp_path) as node:
        host = node.host
        machines = [Recorder() for _ in range(3)]
        groups = [await host.open_group(f"G{at}", machine) for at, machine in enumerate(machines)]

        def broken(*_: object) -> Any:
            raise RecursionError

        machines[1].snapshot = broken  # type: ignore[method-assign]
        for group in groups:
            group.propose(100, b"x")
        await host.synced()
        before = host.counts["snapshots taken"]
        for group in groups:
            host.compact_soon(group)  # type: ignore[arg-type]
        await until(lambda: host.counts["snapshots taken"] == before + 2)
        groups[1].flush = broken  # type: ignore[attr-defined]
        for group in groups:
            group.propose(100, b"y")
        await until(lambda: not groups[1].serving)  # type: ignore[attr-defined]
        await host.synced()
        await until(lambda: groups[0].applied == groups[0].committed > 1)
        host.compact_soon(groups[0])  # type: ignore[arg-type]
        await until(lambda: host.counts["snapshots taken"] == before + 3)
        assert [group.serving for group in groups] == [True, False, True]  # type: ignore[attr-defined]
        assert [group.name for group in host.groups() if group.failure] == ["G1"], "what health names"
        assert sum(host.runtime.fence.counts.values()) == 2


# -- questions between nodes ------------------------------------------------------------------------------------------


@asynccontextmanager
async def posts() -> AsyncIterator[tuple[Broker, Mail, Mail]]:
    """Two members on one system account."""
    async with running() as broker:
        one, two = (
            Mail(broker.system_account, name, broker.runtime, logging.getLogger("tests.mail"))
            for name in ("n1@a", "n2@b")
        )
        yield broker, one, two
        await one.close()
        await two.close()


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError])
async def test_an_error_of_a_listener_is_ours_and_the_asker_hears_of_it(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async with posts() as (broker, one, two):

        def listener(sender: str, body: object) -> None:
            raise error("a bug")

        two.listen("what", listener)
        two.hear("tell", listener)
        for _ in range(2):
            with pytest.raises(ApiError) as refused:
                await one.ask("n2@b", "what", {}, 60)
            assert (refused.value.code, refused.value.err_code) == (500, 10051)
            assert one.tell("n2@b", "tell", {})
        assert two.refused == 0
        assert sum(broker.runtime.fence.counts.values()) == 4
        assert len(stacks(caplog)) == 2


async def test_nonsense_is_the_senders_and_the_asker_hears_of_it(caplog: pytest.LogCaptureFixture) -> None:
    async with posts() as (broker, one, two):

        def listener(sender: str, body: object) -> None:
            raise Nonsense("no list")

        two.listen("what", listener)
        two.hear("tell", listener)
        for _ in range(2):
            with pytest.raises(ApiError) as refused:
                await one.ask("n2@b", "what", {}, 60)
            assert (refused.value.code, refused.value.err_code) == (400, 10003)
            one.tell("n2@b", "tell", {})
        assert two.refused == 4 and not broker.runtime.fence.counts
        assert len([record for record in caplog.records if record.name == "tests.mail"]) == 2


# -- JetStream --------------------------------------------------------------------------------------------------------

DEEP = [
    b"-NAK " + b'{"delay":' + b"[" * 2000,
    b"-NAK " + b'{"delay":' + b"[" * 2000 + b"]" * 2000 + b"}",
    b"-NAK " + b'{"a":' * 900 + b"1" + b"}" * 900,
    b"+NXT " + b'{"a":' * 900 + b"1" + b"}" * 900,
    b"+NXT " + b"[" * 900 + b"]" * 900,
    b"+NXT " + b'{"batch":' + b"[" * 100_000,
    b"-TERM " + b"[" * 3000,
]
"""What consumers' clients may say that no depth of recursion can take."""


async def test_deep_acknowledgements_cost_nobody_anything(tmp_path: Path) -> None:
    async with stand.running(tmp_path) as node:
        js = node.client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"])
        sub = await js.pull_subscribe("s.>", durable="C")
        peer = await Peer.connect(node.broker.port)
        for body in DEEP:
            await js.publish("s.a", b"1")
            (message,) = await sub.fetch(1, timeout=10)
            for reply in (b"", b"r"):
                await peer.sync(pub(message.reply.encode(), reply, body) * 10 + pub(b"$JS.API.INFO", b"r") * 2)
            await message.ack_sync(timeout=10)
        for subject in (b"$JS.API.CONSUMER.MSG.NEXT.S.C", b"$JS.API.STREAM.CREATE.X", b"$JS.API.DIRECT.GET.S"):
            await peer.sync(pub(subject, b"r", b'{"batch":' + b"[" * 50_000) * 5)
        assert (await js.stream_info("S")).state.messages == len(DEEP)
        assert len(node.broker.clients) == 2
        peer.close()


@pytest.mark.timeout(120)
async def test_deep_acknowledgements_cut_no_node_off(tmp_path: Path) -> None:
    async with trio(tmp_path) as cluster:
        js = cluster.contexts[0]
        await js.add_stream(name="S", subjects=["s.>"], num_replicas=3)
        leader = await cluster.led("S")
        away = next(at for at, node in enumerate(cluster.nodes) if node.name != leader)
        routes = {node.name: set(node.server.routes.open) for node in cluster.nodes if node.server.routes is not None}
        client = cluster.clients[away]
        there = client.jetstream()
        sub = await there.pull_subscribe("s.>", durable="C")
        for body in DEEP:
            await there.publish("s.a", b"1")
            (message,) = await sub.fetch(1, timeout=10)
            for _ in range(10):
                await client.publish(message.reply, body)
            await message.ack_sync(timeout=10)
        assert (await js.stream_info("S")).state.messages == len(DEEP)
        now = {node.name: set(node.server.routes.open) for node in cluster.nodes if node.server.routes is not None}
        assert now == routes, "no route was torn down"


async def api_fails(cluster: Trio, client: Client) -> None:
    """Endpoints that raise: at once, later, where a status is the answer, and with what JSON cannot have."""

    async def late(request: ApiRequest) -> JsonObject:
        raise KeyError

    for node in cluster.nodes:
        dispatcher = node.engine.dispatcher(APP)
        assert dispatcher is not None
        dispatcher.register(
            [
                Endpoint("BROKEN.NOW", "now", raising(RecursionError)),
                Endpoint("BROKEN.LATE", "late", late),
                Endpoint("BROKEN.ROUGH", "rough", raising(KeyError), Body.RAW),
                Endpoint("BROKEN.ANSWER", "answer", lambda request: {"a": object()}),
            ]
        )
    for name in ("NOW", "LATE", "ANSWER"):
        answer = json.loads((await client.request(f"$JS.API.BROKEN.{name}", timeout=10)).data)
        assert (answer["error"]["code"], answer["error"]["err_code"]) == (500, 10051)
    rough = await client.request("$JS.API.BROKEN.ROUGH", timeout=10)
    assert rough.data == FAILED and rough.headers is not None and rough.headers["Status"] == "500"


async def test_who_asks_an_api_that_fails_gets_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In JSON, as a status, at once or after a while; a publish whose batch cannot be made costs only that one."""
    async with trio(tmp_path) as cluster:
        node = cluster.nodes[0]
        client = cluster.clients[0]
        js = client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"], num_replicas=1)
        await cluster.led("S")
        at = next(at for at, each in enumerate(cluster.nodes) if each.name == cluster.leader("S"))
        client, node = cluster.clients[at], cluster.nodes[at]
        system = await cluster.system(at)
        await api_fails(cluster, client)
        monkeypatch.setattr("nimsnats.monitor.system.server_object", raising(KeyError))
        found = await system.request("$SYS.REQ.SERVER.PING.VARZ", timeout=10)
        assert json.loads(found.data)["error"]["code"] == 500
        ingest = node.served("S").ingest  # type: ignore[union-attr]
        prepare = ingest._prepare

        def poisoned(config: Any, blocks: list[bytes]) -> Any:
            if any(b"Poison" in block for block in blocks):
                raise RecursionError
            return prepare(config, blocks)

        monkeypatch.setattr(ingest, "_prepare", poisoned)
        inbox = client.new_inbox()
        answers = await client.subscribe(f"{inbox}.*")
        for number in range(20):
            headers = {"Poison": "1"} if number % 7 == 3 else {"Sound": "1"}
            await client.publish(f"s.{number}", b"x", reply=f"{inbox}.{number}", headers=headers)
        said = {}
        for _ in range(20):
            message = await answers.next_msg(timeout=10)
            said[int(message.subject.rpartition(".")[2])] = json.loads(message.data)
        assert sorted(number for number, ack in said.items() if "error" in ack) == [3, 10, 17]
        assert sorted(ack["seq"] for ack in said.values() if "error" not in ack) == list(range(1, 18))
        async with aiohttp.ClientSession() as session, session.get(node.http + "/metrics") as page:
            text = await page.text()
        assert 'nimsnats_internal_errors_total{place="jetstream.publish.Ingest._send"} ' in text
        assert node.app.name == APP
        await system.close()
