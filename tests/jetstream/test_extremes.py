"""Requests at the edges of what fits: each is answered, and the stream and the server go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jetstream.stand import Stand, running


async def ask(stand: Stand, subject: str, body: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await stand.client.request(subject, body, timeout=5)).data)
    return answer


@pytest.mark.parametrize("by", ["first_seq", "purge"])
async def test_a_stream_that_has_used_up_its_sequences_refuses_and_lives(tmp_path: Path, by: str) -> None:
    async with running(tmp_path) as stand:
        config = {"name": "S", "subjects": ["s"], **({"first_seq": 2**64 - 2} if by == "first_seq" else {})}
        assert "error" not in await ask(stand, "$JS.API.STREAM.CREATE.S", json.dumps(config).encode())
        if by == "purge":
            await ask(stand, "$JS.API.STREAM.PURGE.S", b'{"seq":%d}' % (2**64 - 2))
        assert (await ask(stand, "s", b""))["seq"] == 2**64 - 2
        for _ in range(2):
            assert (await ask(stand, "s", b""))["error"]["err_code"] == 10077
        assert (await ask(stand, "$JS.API.STREAM.PURGE.S", b""))["purged"] == 1
    async with running(tmp_path) as stand:
        state = (await ask(stand, "$JS.API.STREAM.INFO.S", b""))["state"]
        assert (state["messages"], state["last_seq"]) == (0, 2**64 - 2)


async def test_times_beyond_64_bits_are_as_far_as_can_be(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await ask(stand, "$JS.API.STREAM.CREATE.S", b'{"name":"S","subjects":["s"]}')
        far = "9999-12-31T23:59:59Z"
        config = {"durable_name": "C", "ack_policy": "explicit", "pause_until": far}
        body = json.dumps({"stream_name": "S", "config": config}).encode()
        assert (await ask(stand, "$JS.API.CONSUMER.CREATE.S.C", body))["paused"] is True
        pause = json.dumps({"pause_until": far}).encode()
        assert (await ask(stand, "$JS.API.CONSUMER.PAUSE.S.C", pause))["paused"] is True
        for group in stand.host.groups():
            group.compact()
    async with running(tmp_path) as stand:
        assert (await ask(stand, "$JS.API.CONSUMER.INFO.S.C", b""))["paused"] is True


async def test_half_characters_are_replaced(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        body = b'{"name":"S","description":"a\\ud800b\\ud83d\\ude00","metadata":{"\\udfff":"x"}}'
        config = (await ask(stand, "$JS.API.STREAM.CREATE.S", body))["config"]
        assert config["description"] == "a\ufffdb\U0001f600" and config["metadata"]["\ufffd"] == "x"


async def test_thousands_of_subjects_do_not_stop_the_server(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        for name in ("A", "B"):
            body = json.dumps({"name": name, "subjects": [f"{name}.{n}" for n in range(5000)]}).encode()
            assert len((await ask(stand, f"$JS.API.STREAM.CREATE.{name}", body))["config"]["subjects"]) == 5000
        body = json.dumps({"name": "C", "subjects": ["B.*"]}).encode()
        assert (await ask(stand, "$JS.API.STREAM.CREATE.C", body))["error"]["err_code"] == 10065


async def test_thousands_of_filters_do_not_stop_the_server(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await ask(stand, "$JS.API.STREAM.CREATE.S", b'{"name":"S","subjects":["s.>"],"retention":"workqueue"}')
        for name in ("A", "B"):
            filters = [f"s.{name}.{n}" for n in range(5000)]
            config = {"durable_name": name, "ack_policy": "explicit", "filter_subjects": filters}
            body = json.dumps({"stream_name": "S", "config": config}).encode()
            assert "error" not in await ask(stand, f"$JS.API.CONSUMER.CREATE.S.{name}", body)
        config["filter_subjects"] = [*filters, "s.B.*"]
        body = json.dumps({"stream_name": "S", "config": config}).encode()
        assert (await ask(stand, "$JS.API.CONSUMER.CREATE.S.B", body))["error"]["err_code"] == 10138
