"""Requests that were accepted although nothing in them was understood: each is refused, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.publish import Publication
from tests.broker.peer import until
from tests.jetstream.stand import running
from tests.security.test_values import STREAM, asked, code

NO_RESETS = (b"x", b"5", b'"seq"', b"true", b"\xff", b"[]", b"{", b'{"seq":-1}', b'{"seq":"1"}', b"x{}")


async def test_a_reset_that_is_no_request_leaves_the_consumer_where_it_is(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await code(stand.client, "STREAM.CREATE.S", json.dumps(STREAM))
        await asked(stand.client, "s.a", "x")
        await code(
            stand.client,
            "CONSUMER.CREATE.S.C",
            '{"stream_name":"S","config":{"name":"C","durable_name":"C","ack_policy":"explicit"}}',
        )
        subscription = await stand.client.jetstream().pull_subscribe_bind("C", "S")
        await subscription.fetch(1)
        for body in NO_RESETS:
            answer = await stand.client.request("$JS.API.CONSUMER.RESET.S.C", body)
            assert json.loads(answer.data)["error"]["err_code"] == 10025, body
        consumer = stand.stream("S").consumers.get("C")
        assert consumer is not None
        await until(lambda: consumer.state.delivered_seq == 1)  # a delivery is written down after it was made
        for body in (b"", b"{}", b"null", b' {"seq":null} '):
            answer = await stand.client.request("$JS.API.CONSUMER.RESET.S.C", body)
            assert json.loads(answer.data)["reset_seq"] == 1, body


@pytest.mark.parametrize("mirror", [{}, {"name": ""}, {"name": "T"}])
async def test_a_mirror_of_anything_is_refused(tmp_path: Path, mirror: dict[str, str]) -> None:
    async with running(tmp_path) as stand:
        assert await code(stand.client, "STREAM.CREATE.S", json.dumps({"name": "S", "mirror": mirror})) == 10052
        assert not stand.engine.accounts["$G"].streams
        assert await code(stand.client, "STREAM.CREATE.S", json.dumps({**STREAM, "mirror": None})) == 0
        assert await code(stand.client, "STREAM.UPDATE.S", json.dumps({**STREAM, "mirror": mirror})) == 10052


async def test_messages_of_atomic_batches_that_were_stored_stay_when_the_log_is_applied_again(tmp_path: Path) -> None:
    """They are refused now (`test_values.py` has the code); a log from before keeps its sequences."""
    block = b"NATS/1.0\r\nNats-Batch-Id: a\r\n\r\n"
    async with running(tmp_path) as stand:
        await code(stand.client, "STREAM.CREATE.S", json.dumps(STREAM))
        for rules, last in ((1, 1), (2, 1), (0, 2)):
            batch = Batch(stand.broker.runtime.time_ns(), [b"s.a"], [b"1"], [block])
            batch.rules = rules
            stand.stream("S").propose_batch(Publication(Batch.decode(batch.encode())), batch.encode())
            await asked(stand.client, "s.b", "x", {"Nats-Expected-Last-Sequence": "0"})  # refused, after the batch
            assert stand.stream("S").last_seq == last, rules
    async with running(tmp_path) as stand:
        await until(lambda: stand.stream("S").last_seq == 2)
