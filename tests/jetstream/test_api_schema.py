"""Every kind of answer fits the published JSON schemas, where those are at hand (NATS_SCHEMAS or ../shared)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.jetstream.stand import running

_GUESS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "schemas"
SCHEMAS = Path(os.environ.get("NATS_SCHEMAS", _GUESS)) / "jetstream"

pytestmark = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="no schemas here (NATS_SCHEMAS)")


def validate(document: dict[str, Any]) -> None:
    *_, area, version, name = document["type"].split(".")
    schema = json.loads((SCHEMAS / area / version / f"{name}.json").read_text())
    jsonschema.validate(document, schema)


async def test_answers_fit_their_schemas(tmp_path: Path) -> None:
    requests: list[tuple[str, Any]] = [
        ("INFO", None),
        ("STREAM.CREATE.S", {"name": "S", "subjects": ["s.>"], "allow_direct": True, "description": "d"}),
        ("STREAM.CREATE.S", {"name": "S", "max_msgs": 5}),
        ("STREAM.UPDATE.S", {"name": "S", "subjects": ["s.>"], "max_msgs": 9}),
        ("STREAM.NAMES", None),
        ("STREAM.LIST", None),
        ("STREAM.INFO.S", {"subjects_filter": ">", "deleted_details": True}),
        ("STREAM.INFO.NONE", None),
        ("STREAM.MSG.GET.S", {"seq": 2}),
        ("STREAM.MSG.GET.S", {"seq": 99}),
        ("STREAM.MSG.DELETE.S", {"seq": 2}),
        ("STREAM.PURGE.S", {"filter": "s.a"}),
        ("STREAM.LEADER.STEPDOWN.S", None),
        ("STREAM.PEER.REMOVE.S", {"peer": "x"}),
        ("STREAM.DELETE.S", None),
    ]
    async with running(tmp_path) as stand:
        for subject, body in requests:
            payload = json.dumps(body).encode() if body else b""
            answer = json.loads((await stand.client.request(f"$JS.API.{subject}", payload)).data)
            validate(answer)
            if subject.startswith("STREAM.UPDATE"):
                for name in ("a", "b", "c"):
                    ack = await stand.client.request(f"s.{name}", b"x", headers={"A": "b"})
                    document = json.loads(ack.data)
                    schema = json.loads((SCHEMAS / "api" / "v1" / "pub_ack_response.json").read_text())
                    jsonschema.validate(document, schema)


async def test_advisories_are_published_to_listeners_and_fit_their_schemas(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        events = await stand.client.subscribe("$JS.EVENT.ADVISORY.>")
        await stand.client.flush()
        await stand.client.request("$JS.API.STREAM.CREATE.S", b'{"name":"S"}')
        await stand.client.request("$JS.API.STREAM.UPDATE.S", b'{"name":"S","description":"x"}')
        await stand.client.request("$JS.API.STREAM.DELETE.S")
        seen = [json.loads((await events.next_msg(timeout=20)).data) for _ in range(6)]
    for event in seen:
        validate(event)
    actions = [event["action"] for event in seen if "action" in event]
    assert actions == ["create", "modify", "delete"]
    audited = [event["subject"] for event in seen if "subject" in event]
    assert audited == [f"$JS.API.STREAM.{verb}.S" for verb in ("CREATE", "UPDATE", "DELETE")]
