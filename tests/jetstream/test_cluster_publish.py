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
from tests.jetstream.trio import Trio, TrioNode, trio


class Stream:
    """Three nodes that all hold the stream S, and a client on each."""

    def __init__(self, nodes: Trio) -> None:
        self.trio = nodes
        self.nodes = nodes.nodes
        self.clients = nodes.clients
        self.contexts = [client.jetstream() for client in nodes.clients]

    def last(self, node: TrioNode) -> int:
        """The last sequence of a node's replica."""
        return node.app.streams["S"].stream.store.last_seq

    async def leader(self) -> TrioNode:
        """Who leads, once somebody does."""
        return self.trio[await self.trio.led("S")]


@fixture
async def stream(tmp_path: Path) -> AsyncIterator[Stream]:
    async with trio(tmp_path) as nodes:
        made = Stream(nodes)
        await made.contexts[0].add_stream(name="S", subjects=["s.>"], num_replicas=3)
        await nodes.led("S")
        await until(lambda: all("S" in node.app.streams for node in nodes.nodes))
        await until(lambda: all(node.app.streams["S"].stream.group.leader for node in nodes.nodes))
        yield made


async def outcome(js: JetStreamContext, subject: str, data: bytes, headers: dict[str, Any] | None) -> object:
    try:
        ack = await js.publish(subject, data, headers=headers, timeout=5)
    except APIError as error:
        return error.code, error.err_code, error.description
    return ack.seq, ack.duplicate


async def test_answers_do_not_depend_on_the_node(stream: Stream) -> None:
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
        await until(lambda node=node: stream.last(node) == last)


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


async def test_publishers_at_other_nodes_wait_for_the_next_leader(stream: Stream) -> None:
    leader = await stream.leader()
    others = [at for at, node in enumerate(stream.nodes) if node is not leader]
    stop = asyncio.Event()
    floods = [asyncio.create_task(flood(stream.clients[at], stream.contexts[at], stop)) for at in others]
    await until(lambda: stream.last(leader) > 200)
    reached = stream.last(leader)
    await leader.kill()
    await until(lambda: any(node.leads("S") for node in stream.trio.running))
    after = await stream.leader()
    await until(lambda: stream.last(after) > reached + 400)
    stop.set()
    acknowledged: dict[int, bytes] = {}
    for found in await asyncio.gather(*floods):
        assert not acknowledged.keys() & found.keys()
        acknowledged.update(found)
    js = stream.contexts[others[0]]
    for seq in list(acknowledged)[-50:] + list(acknowledged)[:50]:
        assert (await js.get_msg("S", seq)).data == acknowledged[seq]


async def test_a_handed_over_lead_refuses_nothing(stream: Stream) -> None:
    stop = asyncio.Event()
    floods = [
        asyncio.create_task(flood(client, js, stop)) for client, js in zip(stream.clients, stream.contexts, strict=True)
    ]
    for _ in range(3):
        before = await stream.leader()
        await stream.trio.ask(0, "STREAM.LEADER.STEPDOWN.S")
        await until(lambda before=before: any(node.leads("S") and node is not before for node in stream.nodes))
    stop.set()
    acknowledged = await asyncio.gather(*floods)
    assert all(acknowledged)
    assert sum(map(len, acknowledged)) == len({seq for found in acknowledged for seq in found})


async def test_acknowledgements_travel_to_the_leader_in_a_row(stream: Stream) -> None:
    """A consumer's clients are at nodes that do not lead: whatever they acknowledge in one write arrives."""
    count = 1000
    await asyncio.gather(*(stream.contexts[0].publish("s.x", b"%d" % number) for number in range(count)))
    await stream.contexts[0].add_consumer("S", durable_name="C", ack_policy="explicit", max_ack_pending=count)
    leader = await stream.leader()
    for at, node in enumerate(stream.nodes):
        if node is leader:
            continue
        js, client = stream.contexts[at], stream.clients[at]
        before = (await js.consumer_info("S", "C")).num_pending or 0
        messages = await (await js.pull_subscribe_bind("C", "S")).fetch(count // 2, timeout=5)
        assert [int(message.data) for message in messages] == [count - before + step for step in range(count // 2)]
        for message in messages:
            await client.publish(message.reply, b"+ACK")
        await client.flush()
        floor = count - before + count // 2
        reached = 0
        while reached < floor:
            info = await js.consumer_info("S", "C")
            assert info.ack_floor is not None
            reached = info.ack_floor.stream_seq
        assert (reached, info.num_ack_pending) == (floor, 0)
