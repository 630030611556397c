"""Publishing at a replica that does not lead: the same answers, and messages wait for a leader instead of failing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError
from pytest_asyncio import fixture

from tests.broker.peer import until
from tests.jetstream.trio import Trio, trio


@fixture
async def stream(tmp_path: Path) -> AsyncIterator[Trio]:
    """Three nodes that all hold the stream S."""
    async with trio(tmp_path) as cluster:
        await cluster.contexts[0].add_stream(name="S", subjects=["s.>"], num_replicas=3)
        await until(lambda: sum(node.leads("S") for node in cluster.nodes) == 1)
        await until(lambda: all((held := node.served("S")) and held.stream.group.leader for node in cluster.nodes))
        yield cluster


async def outcome(js: JetStreamContext, subject: str, data: bytes, headers: dict[str, Any] | None) -> object:
    try:
        ack = await js.publish(subject, data, headers=headers, timeout=5)
    except APIError as error:
        return error.code, error.err_code, error.description
    return ack.seq, ack.duplicate


async def test_answers_do_not_depend_on_the_node(stream: Trio) -> None:
    """Stored, duplicate, wrong expectation, too large: each through every node, alone and in one batch."""
    await stream.contexts[0].update_stream(name="S", subjects=["s.>"], num_replicas=3, max_msg_size=2000)
    wanted: list[object] = []
    last = 0
    for number, js in enumerate(stream.contexts):
        script: list[tuple[str, bytes, dict[str, Any] | None]] = [
            ("s.a", b"plain", None),
            ("s.b", b"id", {"Nats-Msg-Id": f"id-{number}"}),
            ("s.b", b"id", {"Nats-Msg-Id": f"id-{number}"}),
            ("s.c", b"expects", {"Nats-Expected-Last-Sequence": "999"}),
            ("s.d", b"x" * 2001, None),
            ("s.e", b"after", None),
        ]
        wanted = [
            (last + 1, None),
            (last + 2, None),
            (last + 2, True),
            (400, 10071, f"wrong last sequence: {last + 2}"),
            (400, 10054, "message size exceeds maximum allowed"),
            (last + 3, None),
        ]
        assert [await outcome(js, *each) for each in script] == wanted
        last += 3
        together = await asyncio.gather(*(outcome(js, "s.f", b"%d" % one, None) for one in range(500)))
        assert together == [(last + 1 + one, None) for one in range(500)], "in the order of publishing"
        last += 500
    for node in stream.nodes:
        await until(lambda node=node: (served := node.served("S")) and served.stream.store.last_seq == last)


async def flood(client: Client, js: JetStreamContext, stop: asyncio.Event) -> dict[int, bytes]:
    """Publish until stopped; the payloads of what was acknowledged, by sequence. Nothing may be refused, nor stay
    without an answer, but for what was under way to a leader that is gone."""
    acknowledged: dict[int, bytes] = {}
    number = 0
    while not stop.is_set():
        batch = [b"%d-%d" % (id(client), number + step) for step in range(20)]
        number += 20
        answers = await asyncio.gather(*(js.publish("s.x", data, timeout=5) for data in batch), return_exceptions=True)
        for data, answer in zip(batch, answers, strict=True):
            if isinstance(answer, APIError) and answer.err_code == 10008:
                continue  # it was under way to the leader that is gone
            if isinstance(answer, BaseException):
                raise answer
            assert answer.seq not in acknowledged
            acknowledged[answer.seq] = data
    return acknowledged


async def test_publishers_at_other_nodes_wait_for_the_next_leader(stream: Trio) -> None:
    leader = stream[await stream.led("S")]
    others = [at for at, node in enumerate(stream.nodes) if node is not leader]
    stop = asyncio.Event()
    floods = [asyncio.create_task(flood(stream.clients[at], stream.contexts[at], stop)) for at in others]
    served = leader.served("S")
    assert served is not None
    await until(lambda: served.stream.store.last_seq > 200)
    reached = served.stream.store.last_seq
    await leader.kill()
    rest = [stream.nodes[at] for at in others]
    await until(lambda: any(node.leads("S") for node in rest))
    after = next(found for node in rest if node.leads("S") and (found := node.served("S")))
    await until(lambda: after.stream.store.last_seq > reached + 400)
    stop.set()
    acknowledged: dict[int, bytes] = {}
    for found in await asyncio.gather(*floods):
        assert not acknowledged.keys() & found.keys()
        acknowledged.update(found)
    js = stream.contexts[others[0]]
    for seq in list(acknowledged)[-50:] + list(acknowledged)[:50]:
        assert (await js.get_msg("S", seq)).data == acknowledged[seq]


async def test_a_handed_over_lead_refuses_nothing(stream: Trio) -> None:
    stop = asyncio.Event()
    floods = [
        asyncio.create_task(flood(client, js, stop)) for client, js in zip(stream.clients, stream.contexts, strict=True)
    ]
    for _ in range(3):
        before = await stream.led("S")
        await stream.ask(0, "STREAM.LEADER.STEPDOWN.S")
        await until(lambda before=before: stream.leader("S") not in ("", before))
    stop.set()
    acknowledged = await asyncio.gather(*floods)
    assert all(acknowledged)
    assert sum(map(len, acknowledged)) == len({seq for found in acknowledged for seq in found})
