"""Publishing while leaders change: every message is answered, and what is acknowledged is there."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nats.js import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError

from tests.broker.peer import until
from tests.jetstream.trio import trio


async def test_no_publish_is_left_without_an_answer_while_leaders_change(tmp_path: Path) -> None:
    """An answer may be that nobody leads (503) or that leadership was lost, at once; silence would cost a client its
    time-out, which is far longer than a change of leaders."""
    acknowledged: dict[int, bytes] = {}
    stopping = asyncio.Event()

    async def publish(js: JetStreamContext, worker: int) -> None:
        number = 0
        while not stopping.is_set():
            data = b"%d-%d" % (worker, number)
            try:
                ack = await js.publish("s.x", data, timeout=10)  # a TimeoutError fails the test
            except (NoStreamResponseError, APIError):
                continue
            assert ack.seq not in acknowledged, "two messages with one sequence"
            acknowledged[ack.seq] = data
            number += 1

    async with trio(tmp_path) as cluster:
        contexts = [client.jetstream() for client in cluster.clients]
        await contexts[0].add_stream(name="S", subjects=["s.x"], num_replicas=3)
        work = [asyncio.create_task(publish(js, worker)) for worker, js in enumerate(contexts * 8)]
        for _ in range(6):
            before, at = await cluster.led("S"), len(acknowledged)
            answer = await cluster.ask(0, "STREAM.LEADER.STEPDOWN.S")
            assert answer.get("success") and await cluster.led("S") != before
            await until(lambda at=at: len(acknowledged) > at + 100 or any(task.done() for task in work))
        stopping.set()
        await asyncio.gather(*work)
        for seq, data in acknowledged.items():
            assert (await contexts[seq % 3].get_msg("S", seq)).data == data
