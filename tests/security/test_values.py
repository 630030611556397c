"""Values of requests and headers that are out of range or of another kind: their sender gets an error, nobody else
notices, and what is stored outlives compaction and restarts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.clock import FARTHEST
from nimsnats.jetstream.config import FIELDS
from nimsnats.jetstream.consumer.config import CONFIG
from nimsnats.jetstream.consumer.rules import sampled
from nimsnats.jetstream.content import Publication
from nimsnats.raft.machine import NotLeader
from tests.broker.peer import until
from tests.jetstream.stand import Stand, go_server, oracle, running

STREAM = {"name": "S", "subjects": ["s.>"], "allow_msg_ttl": True, "allow_rollup_hdrs": True, "allow_direct": True}


async def asked(client: Client, subject: str, body: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer = await client.request(subject, body.encode(), timeout=5, headers=headers)
    found: dict[str, Any] = json.loads(answer.data)
    return found


async def code(client: Client, subject: str, body: str) -> int:
    """The code of the error that a request of the API gets, 0 for none."""
    return (await asked(client, f"$JS.API.{subject}", body)).get("error", {}).get("err_code", 0)


async def serving(stand: Stand) -> None:
    """Another client publishes, and every group compacts."""
    before = stand.stream("S").last_seq
    assert (await asked(stand.client, "s.other", "x"))["seq"] == before + 1
    for group in stand.host.groups():
        group.compact()
    await until(lambda: not any(group._compacting for group in stand.host.groups()))


# Requests


async def test_what_a_push_consumer_delivers_to_the_api_is_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It shows the subject under which it was published: one that is too short for a request, or looks like one."""
    async with running(tmp_path) as stand:
        assert await code(stand.client, "STREAM.CREATE.S", json.dumps(STREAM)) == 0
        for subject in ("s.1", "s.x.STREAM.DELETE.S"):
            await stand.client.publish(subject, b"")
        config = {"durable_name": "C", "deliver_subject": "$JS.API.STREAM.INFO.S", "ack_policy": "none"}
        body = json.dumps({"stream_name": "S", "config": config})
        assert await code(stand.client, "CONSUMER.CREATE.S.C", body) == 0
        await serving(stand)
        told = await asked(stand.client, "$JS.API.CONSUMER.INFO.S.C", "")
        assert told["delivered"]["stream_seq"] == 3
        assert await code(stand.client, "STREAM.INFO.S", "") == 0
    assert "Internal error" not in caplog.text


TIMES = ("2023-02-30T00:00:00Z", "2023-02-28T24:00:00Z", "2016-12-31T23:59:60Z", "2023-01-01T00:00:00+99:00")
KEPT_TIMES = ("0000-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999-23:59", "2023-01-01T0:00:00,5Z")


async def test_a_time_that_is_none_costs_its_sender_an_error_and_no_stream(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        client = stand.client
        assert await code(client, "STREAM.CREATE.S", json.dumps(STREAM)) == 0
        await serving(stand)
        for at, time in enumerate((*TIMES, *KEPT_TIMES)):
            wanted = 10025 if time in TIMES else 0
            for field in ("opt_start_time", "pause_until"):
                config = {"name": f"C{at}", "ack_policy": "explicit", field: time}
                if field == "opt_start_time":
                    config["deliver_policy"] = "by_start_time"
                body = json.dumps({"stream_name": "S", "config": config})
                assert await code(client, f"CONSUMER.CREATE.S.C{at}", body) == wanted, (field, time)
                if not wanted:
                    pause = json.dumps({"pause_until": time})
                    assert await code(client, f"CONSUMER.PAUSE.S.C{at}", pause) == 0
                    assert await code(client, f"CONSUMER.RESET.S.C{at}", "") == 0
                    assert await code(client, f"CONSUMER.DELETE.S.C{at}", "") == 0
            for field, more in (("start_time", {"next_by_subj": "s.>"}), ("up_to_time", {"multi_last": ["s.>"]})):
                body = json.dumps({field: time, **more})
                if field == "start_time":
                    assert await code(client, "STREAM.MSG.GET.S", body) in ((wanted,) if wanted else (0, 10037))
                answer = await client.request("$JS.API.DIRECT.GET.S", body.encode(), timeout=5)
                assert not wanted or (answer.headers or {}).get("Status") == "408"
        await serving(stand)
    async with running(tmp_path) as stand:
        await serving(stand)
        assert stand.stream("S").last_seq == 3


VALUES = ("null", "true", "1.5", "1e3", "-1", "0", "1", "9223372036854775807", "9223372036854775808",
          "18446744073709551616", "1" + "0" * 5000, '""', '"x"', '"1s"', '"\\u0000"', "[]", "{}", "[1]", '{"a":1}',
          "NaN", "01", "+1", "[" * 2000)  # fmt: skip


async def test_no_value_of_any_field_takes_a_stream_or_consumer_along(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        client = stand.client
        assert await code(client, "STREAM.CREATE.S", json.dumps(STREAM)) == 0
        requests = [
            ("STREAM.CREATE.T", f'{{"name":"T","subjects":["t.x"],"{field}":{value}}}')
            for field in FIELDS
            for value in VALUES
        ] + [
            ("CONSUMER.CREATE.S.C", f'{{"stream_name":"S","config":{{"name":"C","{field}":{value}}}}}')
            for field in CONFIG.fields
            for value in VALUES
        ]
        for subject, body in requests:
            found = await code(client, subject, body)
            assert found not in (10008, 10051), body[:200]  # a stream that has stopped; an error of our own
            if not found:
                await code(client, subject.replace("CREATE", "DELETE"), "")
        await serving(stand)
    async with running(tmp_path) as stand:
        await serving(stand)
        assert set(stand.engine.accounts["$G"].streams) == {"S"}


@pytest.mark.extended
@pytest.mark.timeout(600)
@pytest.mark.skipif(go_server() is None, reason="nats-server is not installed")
async def test_values_are_refused_with_the_codes_of_the_go_server(tmp_path: Path) -> None:
    """Where it takes what we refuse or the other way round, the exceptions say so."""
    kinds = {"mirror", "sources", "republish", "subject_transform", "persist_mode"}
    kinds |= {field for field in FIELDS if field.startswith("allow_")}
    differing: list[str] = []
    async with oracle(tmp_path / "go") as go, running(tmp_path / "ours") as stand:
        for client in (go, stand.client):
            await code(client, "STREAM.CREATE.S", json.dumps({"name": "S", "subjects": ["s.>"]}))
        for fields, subject, form in (
            (FIELDS, "STREAM.CREATE.T", '{"name":"T","subjects":["t.x"],"%s":%s}'),
            (CONFIG.fields, "CONSUMER.CREATE.S.C", '{"stream_name":"S","config":{"name":"C","%s":%s}}'),
        ):
            for field in fields:
                if field in kinds:
                    continue  # not supported here, and said so
                for value in VALUES:
                    found = [await code(client, subject, form % (field, value)) for client in (go, stand.client)]
                    for client in (go, stand.client):
                        await code(client, subject.replace("CREATE", "DELETE"), "")
                    if found[0] != found[1]:
                        differing.append(f"{field}={value[:24]}: {found}")
    assert sorted(differing) == ["max_bytes=9223372036854775807: [10047, 0]"], differing  # it has no such disk


async def test_pull_requests_and_answers_of_any_kind_leave_the_consumer_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        client = stand.client
        await code(client, "STREAM.CREATE.S", json.dumps(STREAM))
        body = json.dumps(
            {"stream_name": "S", "config": {"durable_name": "C", "ack_policy": "explicit", "ack_wait": 20_000_000}}
        )
        assert await code(client, "CONSUMER.DURABLE.CREATE.S.C", body) == 0
        deep = "[" * 2000
        for payload in ("9" * 5000, deep, '{"batch":' + deep, '{"expires":1e999}', '{"batch":9223372036854775808}',
                        '{"expires":-1,"batch":-1}', "\uff11", "{}{}", '{"idle_heartbeat":1,"expires":1}'):  # fmt: skip
            await client.publish("$JS.API.CONSUMER.MSG.NEXT.S.C", payload.encode(), reply="nowhere")
        messages = await client.subscribe("here")
        for answer in ('-NAK {"delay":' + deep, '-NAK {"delay":1e3}', '-NAK {"delay":9223372036854775808}',
                       "-NAK " + "9" * 5000 + "h", '+NXT {"batch":' + deep, "+NXT " + "9" * 5000):  # fmt: skip
            await client.request("s.a", b"x")
            await client.publish("$JS.API.CONSUMER.MSG.NEXT.S.C", b'{"expires":4000000000}', reply="here")
            message = await messages.next_msg(timeout=5)
            assert message.data == b"x"
            await client.publish(message.reply, answer.encode(), reply="nowhere")
        for level in ("9" * 5000, "-1", "\uff11", "x"):
            headers = {"Nats-Required-Api-Level": level}
            answer = await asked(client, "$JS.API.STREAM.INFO.S", "", headers)
            assert answer["error"]["err_code"] == 10185
        await serving(stand)


SAMPLES = {
    "100%": 100, "100": 100, "30": 30, "+50%": 50, "0050": 50, "000": 0, "0": 0, "250": 100, "9" * 5000: 100,
    "-5": 0, "": 0, "x": 0, "%": 0, "\u0665": 0, "0" * 500_000 + "x": 0,
}  # fmt: skip


@pytest.mark.parametrize("text", SAMPLES, ids=lambda text: repr(text[:12]))
def test_a_sampling_frequency_is_read_at_once_whatever_it_is(text: str) -> None:
    assert sampled(text) == SAMPLES[text]


async def test_a_long_sampling_frequency_holds_nobody_up(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        client = stand.client
        await code(client, "STREAM.CREATE.S", json.dumps(STREAM))
        for sample, wanted in (("0" * 500_000 + "x", 10095), ("0" * 500_000 + "9" * 19, 10095), ("0" * 500 + "9", 0)):
            config = {"name": f"C{len(sample)}", "ack_policy": "explicit", "sample_freq": sample}
            body = json.dumps({"stream_name": "S", "config": config})
            assert await code(client, f"CONSUMER.CREATE.S.{config['name']}", body) == wanted
        await serving(stand)


# Headers of publishes

HEADERS: list[tuple[str, str, int]] = [
    ("Nats-TTL", "99999999999999999999", 10165),
    ("Nats-TTL", "9223372037", 10165),
    ("Nats-TTL", "9223372036854775807", 10165),
    ("Nats-TTL", "9999999h9999999h", 10165),
    ("Nats-TTL", "9" * 5000, 10165),
    ("Nats-TTL", "\uff11\uff12", 10165),
    ("Nats-TTL", "1_000", 10165),
    ("Nats-TTL", "9223372036", 0),
    ("Nats-TTL", "2562047h47m16.854775807s", 0),
    ("Nats-TTL", "NEVER", 0),
    ("Nats-TTL", "", 0),
    ("Nats-Expected-Last-Sequence", "99999999999999999999", 10071),
    ("Nats-Expected-Last-Sequence", "\uff11", 10071),
    ("Nats-Expected-Last-Sequence", "9" * 5000, 10071),
    ("Nats-Expected-Last-Subject-Sequence", "1_0", 10071),
    ("Nats-Expected-Last-Subject-Sequence", "18446744073709551616", 10071),
    ("Nats-Expected-Last-Subject-Sequence-Subject", "s..", 10193),
    ("Nats-Expected-Stream", "T", 10060),
    ("Nats-Expected-Stream", "", 0),
    ("Nats-Expected-Last-Msg-Id", "x", 10070),
    ("Nats-Msg-Id", "y" * 30_000, 0),
    ("Nats-Msg-Id", "\x01\x00", 0),
    ("Nats-Rollup", "every", 10111),
    ("Nats-Rollup", "all\x00", 10111),
    ("Nats-Marker-Reason", "x" * 5000, 0),
    ("Nats-Schedule", "@at 2023-02-30T00:00:00Z", 10188),
    ("Nats-Incr", "1" * 5000, 10168),
    ("Nats-Batch-Id", "", 0),
    ("Nats-Batch-Id", "b" * 5000, 10174),
]


async def test_a_message_with_an_empty_lifetime_stays(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await code(stand.client, "STREAM.CREATE.S", json.dumps(STREAM))
        await asked(stand.client, "s.a", "stays", {"Nats-TTL": ""})
        await asked(stand.client, "s.b", "goes", {"Nats-TTL": "1"})
        assert set(stand.stream("S").expiry.deadlines) == {2}
        await until(lambda: stand.stream("S").store.messages == 1)
        assert stand.stream("S").live(1)


async def test_header_values_are_bounded_and_what_is_stored_outlives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await code(stand.client, "STREAM.CREATE.S", json.dumps(STREAM))
        stored = 0
        for name, value, wanted in HEADERS:
            answer = await asked(stand.client, "s.a", "x", {name: value})
            assert answer.get("error", {}).get("err_code", 0) == wanted, (name, value[:30])
            stored += not wanted
            assert stand.stream("S").last_seq == stored, (name, value[:30])
        await serving(stand)
        stored += 1
        deadlines = dict(stand.stream("S").expiry.deadlines)
        assert max(deadlines.values()) == FARTHEST
    for _ in range(2):
        async with running(tmp_path) as stand:
            stored += 1
            await serving(stand)
            assert stand.stream("S").last_seq == stored
            assert stand.stream("S").expiry.deadlines == deadlines


BLOCKS = [
    b"NATS/1.0\r\nA: b", b"garbage", b"N", b"\r\n\r\n", b"NATS/1.0\r\nNats-TTL: 5", b"NATS/1.0\nNats-TTL: x\n\n",
    b"NATS/1.0\r\nNats-TTL: 5\r\nNats-TTL: x\r\n\r\n", b"NATS/1.0\r\nNats-Msg-Id:\x01\n\r\n\r\n",
]  # fmt: skip


async def test_header_blocks_of_any_form_are_kept_as_the_go_server_keeps_them(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await code(stand.client, "STREAM.CREATE.S", json.dumps(STREAM))
        reader, writer = await asyncio.open_connection("127.0.0.1", stand.broker.port)
        await reader.readline()
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
        for block in BLOCKS:
            writer.write(b"HPUB s.a %d %d\r\n%b\r\n" % (len(block), len(block), block))
        await until(lambda: stand.stream("S").last_seq == len(BLOCKS))
        writer.close()
        await serving(stand)
    async with running(tmp_path) as stand:
        await serving(stand)
        for seq in range(1, len(BLOCKS) + 1):
            assert await code(stand.client, "STREAM.MSG.GET.S", json.dumps({"seq": seq})) == 0


async def test_what_an_earlier_version_took_is_taken_when_its_log_is_applied_again(tmp_path: Path) -> None:
    """A batch that says it was published by the rules of before keeps its sequences."""
    async with running(tmp_path) as stand:
        await code(stand.client, "STREAM.CREATE.S", json.dumps(STREAM))
        block = b"NATS/1.0\r\nNats-TTL: 99999999999999999999\r\n\r\n"
        batch = Batch(stand.broker.runtime.time_ns(), [b"s.a", b"s.b"], [b"1", b"2"], [block, b""])
        batch.rules = 0
        _propose(stand, batch)
        await until(lambda: stand.stream("S").last_seq == 2)
        assert stand.stream("S").expiry.deadlines == {1: FARTHEST}
        await serving(stand)
    async with running(tmp_path) as stand:
        assert stand.stream("S").expiry.deadlines == {1: FARTHEST}
        await serving(stand)


def _propose(stand: Stand, batch: Batch) -> None:
    """As when the log is read again: only the bytes are left."""
    stand.stream("S").propose_batch(Publication(Batch.decode(batch.encode())), batch.encode())


# Intervals


async def test_intervals_of_a_nanosecond_are_raised_and_shown_as_they_are(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        client = stand.client
        await code(client, "STREAM.CREATE.S", json.dumps(STREAM))
        await client.request("s.a", b"x")
        got: list[float] = []

        async def take(message: Any) -> None:
            got.append(stand.broker.runtime.monotonic())

        await client.subscribe("to.me", cb=take)
        await client.flush()
        config = {"name": "C", "deliver_subject": "to.me", "ack_policy": "explicit", "ack_wait": 1}
        answer = await asked(client, "$JS.API.CONSUMER.CREATE.S.C", json.dumps({"stream_name": "S", "config": config}))
        assert answer["config"]["ack_wait"] == 1
        await until(lambda: len(got) > 20)
        assert stand.stream("S").consumers.get("C") is not None
        consumer = stand.stream("S").consumers.get("C")
        assert consumer is not None and consumer.delivery is not None
        assert consumer.delivery.wait(1) == 10_000_000
        for field, value in (("idle_heartbeat", 1), ("idle_heartbeat", 99_999_999)):
            body = json.dumps({"stream_name": "S", "config": {**config, "name": "D", field: value}})
            assert await code(client, "CONSUMER.CREATE.S.D", body) == 10083
        for field in ("max_age", "duplicate_window", "subject_delete_marker_ttl"):
            body = json.dumps({"name": "T", "subjects": ["t"], field: 1})
            assert await code(client, "STREAM.CREATE.T", body) == 10052


@pytest.mark.errors_inside
async def test_no_message_is_lost_when_its_leader_is_while_they_go_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No batch can be made of several, and the second alone finds nobody who leads for a moment."""
    encode = Batch.encode
    tried: list[bytes] = []

    def broken(self: Batch) -> bytes:
        if len(self) > 1:
            raise MemoryError
        return encode(self)

    async with running(tmp_path) as stand:
        await code(stand.client, "STREAM.CREATE.S", json.dumps(STREAM))
        stream = stand.stream("S")
        propose = stream.propose_batch

        def absent(publication: Publication, data: bytes) -> None:
            tried.append(publication.batch.payloads[0])
            if len(tried) == 2:
                raise NotLeader
            propose(publication, data)

        monkeypatch.setattr(Batch, "encode", broken)
        monkeypatch.setattr(stream, "propose_batch", absent)
        answers = await asyncio.gather(*(asked(stand.client, "s.a", str(at)) for at in range(5)))
        assert [answer["seq"] for answer in answers] == [1, 2, 3, 4, 5]
        assert tried == [b"0", b"1", b"1", b"2", b"3", b"4"]
