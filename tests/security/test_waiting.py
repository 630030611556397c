"""Pull requests beyond what may wait: refused at the price of one look, however many are waiting already."""

from __future__ import annotations

import json
from pathlib import Path

from tests.jetstream.stand import running
from tests.security.test_values import STREAM, code

NEXT = "$JS.API.CONSUMER.MSG.NEXT.S.C"
PULL = b'{"batch":1,"expires":60000000000}'
WAITING = 512
CONSUMER = {"name": "C", "durable_name": "C", "ack_policy": "explicit", "max_waiting": WAITING}


async def test_requests_beyond_the_waiting_ones_are_refused_without_asking_for_all_of_them(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        client = stand.client
        await code(client, "STREAM.CREATE.S", json.dumps(STREAM))
        await code(client, "CONSUMER.CREATE.S.C", json.dumps({"stream_name": "S", "config": CONSUMER}))
        inbox, refused = await client.subscribe("inbox"), await client.subscribe("refused")
        for _ in range(WAITING):
            await client.publish(NEXT, PULL, reply="inbox")
        await client.flush()
        interest = stand.broker.accounts["$G"].interest
        before, more = interest.matches, 1000
        for _ in range(more):
            await client.publish(NEXT, PULL, reply="refused")
        for _ in range(more):
            message = await refused.next_msg(timeout=20)
            assert (message.headers or {})["Status"] == "409"
        assert interest.matches - before < more * 10
        await inbox.unsubscribe()  # from now on those who wait take nobody's place
        await client.publish(NEXT, PULL, reply="refused")
        await client.publish("s.a", b"x")
        message = await refused.next_msg(timeout=20)
        assert message.subject == "s.a"


async def test_a_request_whose_inbox_nobody_ever_listened_to_takes_no_place(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        client = stand.client
        await code(client, "STREAM.CREATE.S", json.dumps(STREAM))
        await code(client, "CONSUMER.CREATE.S.C", json.dumps({"stream_name": "S", "config": CONSUMER}))
        served = await client.subscribe("served")
        for round_ in range(2):
            for _ in range(WAITING):
                await client.publish(NEXT, PULL, reply=f"nobody.{round_}")
        await client.publish(NEXT, PULL, reply="served")
        await client.publish("s.a", b"x")
        assert (await served.next_msg(timeout=20)).subject == "s.a"
