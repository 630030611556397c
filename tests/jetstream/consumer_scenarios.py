"""How clients receive and acknowledge messages.

Each scenario is run against nats-server and against this server by `test_consumer_oracle.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.msg import Msg
from nats.errors import TimeoutError

from tests.jetstream.consumer_talk import SECOND, Talk, comparable
from tests.jetstream.silence import answer_of


async def work_queue(talk: Talk) -> None:
    await talk.stream(retention="workqueue")
    await talk.publish("s.a", "s.b")
    for name, config in (
        ("n", {"ack_policy": "none"}),
        ("n", {"ack_policy": "none", "deliver_subject": "to"}),
        ("n", {"ack_policy": "all"}),
        ("n", {"ack_policy": "explicit", "deliver_policy": "new"}),
        ("a", {"ack_policy": "explicit", "filter_subject": "s.a"}),
        ("b", {"ack_policy": "explicit"}),
        ("b", {"ack_policy": "explicit", "filter_subject": "s.*"}),
        ("b", {"ack_policy": "explicit", "filter_subject": "s.*", "deliver_policy": "new"}),
        ("b", {"ack_policy": "explicit", "deliver_policy": "new"}),
        ("b", {"ack_policy": "explicit", "filter_subject": "s.b"}),
        ("b", {"ack_policy": "explicit", "filter_subject": "s.*"}),
    ):
        await talk.api(f"CONSUMER.CREATE.S.{name}", {"stream_name": "S", "config": config})
    got = await talk.listen("i")
    message = (await talk.ask(got, "i", {"batch": 1}, 1, "b"))[0]
    await talk.answered(message)
    talk.lines.append((await talk.quiet("STREAM.INFO.S"))["state"]["messages"])


async def interest(talk: Talk) -> None:
    await talk.stream(retention="interest")
    await talk.publish("s.a")
    await talk.consumer("one")
    await talk.consumer("two", filter_subject="s.b")
    await talk.publish("s.a", "s.b", "s.c")

    async def stored() -> None:
        state = (await talk.quiet("STREAM.INFO.S"))["state"]
        talk.lines.append((state["messages"], state["first_seq"], state["last_seq"]))

    await stored()
    got = await talk.listen("i")
    for message in await talk.ask(got, "i", {"batch": 3}, 3, "one"):
        await talk.answered(message)
    await stored()
    await talk.api("CONSUMER.DELETE.S.two")
    await stored()


async def deliver_policies(talk: Talk) -> None:
    await talk.stream()
    await talk.publish("s.a", "s.b", "s.a", "s.c")
    policies: list[dict[str, Any]] = [
        {"deliver_policy": "all"},
        {"deliver_policy": "last"},
        {"deliver_policy": "last", "filter_subject": "s.b"},
        {"deliver_policy": "last", "filter_subject": "s.zz"},
        {"deliver_policy": "new"},
        {"deliver_policy": "by_start_sequence", "opt_start_seq": 3},
        {"deliver_policy": "by_start_sequence", "opt_start_seq": 30},
        {"deliver_policy": "by_start_time", "opt_start_time": "2020-01-01T00:00:00Z"},
        {"deliver_policy": "last_per_subject", "filter_subject": "s.>"},
        {"deliver_policy": "last_per_subject", "filter_subjects": ["s.a", "s.b"]},
        {"deliver_policy": "last_per_subject", "filter_subject": "s.zz"},
        {"filter_subject": "s.b"},
        {"filter_subjects": ["s.b", "s.c"]},
    ]
    for index, policy in enumerate(policies):
        name = f"c{index}"
        await talk.api(
            f"CONSUMER.CREATE.S.{name}",
            {"stream_name": "S", "config": {"durable_name": name, "ack_policy": "explicit", **policy}},
        )
        got = await talk.listen(f"i{index}")
        count = 0
        await talk.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.S.{name}", b'{"batch":5,"no_wait":true}', reply=f"i{index}"
        )
        while True:
            message = (await talk.expect(got, 1))[0]
            count += 1
            if message.headers and "Status" in message.headers:
                break
        await talk.info(name)


async def pull_statuses(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(max_batch=10, max_expires=5 * SECOND, max_bytes=2000, max_waiting=2)
    got = await talk.listen("i")
    ask = talk.ask
    await ask(got, "i", {"batch": 1, "no_wait": True}, 1)
    await ask(got, "i", {"batch": 11}, 1)
    await ask(got, "i", {"batch": 1, "expires": 6 * SECOND}, 1)
    await ask(got, "i", {"batch": 1, "max_bytes": 2001}, 1)
    await ask(got, "i", b"{", 1)
    await ask(got, "i", b'{"batch":"x"}', 1)
    await ask(got, "i", {"batch": 1, "expires": SECOND, "idle_heartbeat": SECOND}, 1)
    await ask(got, "i", {"batch": 5, "expires": 200_000_000, "max_bytes": 1000}, 1)
    await ask(got, "i", {"batch": 1, "min_pending": 5}, 1)
    await ask(got, "i", {"batch": 1, "id": "x"}, 1)
    await ask(got, "i", {"batch": 1, "priority": 10}, 1)
    await ask(got, "i", {"batch": 5, "expires": SECOND, "idle_heartbeat": 400_000_000}, 3)
    await talk.publish("s.a", "s.a", "s.a")
    await ask(got, "i", {"batch": 5, "no_wait": True}, 4)
    await talk.publish("s.a", payload=b"x" * 500)
    await ask(got, "i", {"batch": 5, "max_bytes": 300}, 1)
    await ask(got, "i", {"batch": 1, "max_bytes": 1000}, 2)
    await ask(got, "i", {"batch": 3, "no_wait": True, "expires": 200_000_000}, 1)
    await ask(got, "i", {"batch": 3, "no_wait": True, "expires": 3 * SECOND}, 0)
    await talk.publish("s.a")
    await talk.expect(got, 2)
    await ask(got, "i", {"batch": 1, "expires": 3 * SECOND}, 0)
    await ask(got, "i", {"batch": 1, "expires": 3 * SECOND}, 0)
    await ask(got, "i", {"batch": 1, "expires": 3 * SECOND}, 1)
    await talk.info()
    await talk.api("CONSUMER.DELETE.S.c")
    await talk.expect(got, 2)
    await talk.api("CONSUMER.MSG.NEXT.S.c")
    await talk.api("CONSUMER.MSG.NEXT.Z.c")
    await talk.consumer("p", deliver_subject="to")
    await ask(got, "i", {"batch": 1}, 1, "p")


async def request_bodies(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer()
    await talk.publish(*["s.a"] * 12)
    got = await talk.listen("i")
    await talk.ask(got, "i", b"", 1)
    await talk.ask(got, "i", b"2", 2)
    await talk.ask(got, "i", b"hello", 1)
    await talk.ask(got, "i", b"{}", 1)
    await talk.ask(got, "i", {"batch": 0}, 1)
    await talk.ask(got, "i", {"batch": -3}, 1)
    await talk.ask(got, "i", {"batch": 2, "unknown": 1}, 2)
    await talk.info()


async def acknowledgements(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(ack_wait=30 * SECOND)
    await talk.publish(*["s.a"] * 8)
    got = await talk.listen("i")
    messages = await talk.ask(got, "i", {"batch": 6}, 6)
    await talk.answered(messages[1], b"+ACK")
    await talk.info()
    await talk.answered(messages[0], b"+OK")
    await talk.info()
    await talk.answered(messages[0])
    await talk.answered(messages[2], b"-NAK")
    await talk.answered(messages[3], b"+WPI")
    await talk.answered(messages[4], b"+TERM because")
    await talk.answered(messages[5], b"what")
    await talk.info()
    await talk.ask(got, "i", {"batch": 2}, 2)
    await talk.info()
    again = messages[2].reply.split(".")
    again[5] = "99"
    try:
        await answer_of(talk.client, ".".join(again), b"")
        talk.lines.append("answered")
    except TimeoutError:
        talk.lines.append("silent")
    await talk.client.publish(messages[5].reply, b"+NXT", reply="i")
    await talk.expect(got, 1)
    await talk.info()


async def acknowledge_all(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(ack_policy="all")
    await talk.publish(*["s.a"] * 5)
    got = await talk.listen("i")
    messages = await talk.ask(got, "i", {"batch": 5}, 5)
    await talk.answered(messages[2])
    await talk.info()
    await talk.answered(messages[1])
    await talk.answered(messages[4])
    await talk.info()


async def without_acknowledgements(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(ack_policy="none")
    await talk.publish("s.a", "s.a")
    got = await talk.listen("i")
    messages = await talk.ask(got, "i", {"batch": 1}, 1)
    await talk.answered(messages[0])
    await talk.info()


async def redelivery(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(ack_wait=300_000_000, max_deliver=2)
    await talk.publish("s.a", "s.b")
    events = await talk.listen("$JS.EVENT.ADVISORY.CONSUMER.*.S.c")
    got = await talk.listen("i")
    await talk.ask(got, "i", {"batch": 10, "expires": 3 * SECOND}, 4)
    await talk.info()
    for _ in range(2):
        event = json.loads((await asyncio.wait_for(events.get(), 3)).data)
        talk.lines.append(comparable(event))
    await talk.info()


async def backoff(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(backoff=[100_000_000, 200_000_000], max_deliver=3)
    await talk.publish("s.a")
    got = await talk.listen("i")
    await talk.ask(got, "i", {"batch": 10, "expires": SECOND}, 4)
    await talk.info()


async def negative(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer()
    await talk.publish("s.a", "s.b")
    events = await talk.listen("$JS.EVENT.ADVISORY.CONSUMER.*.S.c")
    got = await talk.listen("i")
    messages = await talk.ask(got, "i", {"batch": 10, "expires": 3 * SECOND}, 2)
    await talk.client.publish(messages[0].reply, b'-NAK {"delay":300000000}')
    await talk.client.publish(messages[1].reply, b"-NAK 100ms")
    await talk.expect(got, 2)
    await talk.client.publish(messages[0].reply, b"-NAK")
    await talk.expect(got, 1)
    await talk.client.publish(messages[1].reply, b"+TERM enough")
    for _ in range(4):
        talk.lines.append(comparable(json.loads((await asyncio.wait_for(events.get(), 3)).data)))
    await talk.info()


async def max_ack_pending(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(max_ack_pending=2)
    await talk.publish(*["s.a"] * 4)
    got = await talk.listen("i")
    messages = await talk.ask(got, "i", {"batch": 4, "expires": 5 * SECOND}, 2)
    await talk.info()
    await talk.answered(messages[0])
    await talk.expect(got, 1)
    await talk.info()


async def push(talk: Talk) -> None:
    await talk.stream()
    await talk.publish("s.a", "s.b")
    await talk.consumer(deliver_subject="to", idle_heartbeat=300_000_000, headers_only=True)
    await talk.info()
    got = await talk.listen("to")
    await talk.expect(got, 3)
    await talk.info()
    await talk.consumer("q", deliver_subject="toq", deliver_group="g", flow_control=True, idle_heartbeat=5 * SECOND)
    await talk.listen("toq")
    await talk.info("q")
    got = await talk.listen("toq2", "g")
    got = await talk.listen("toq", "g")
    await talk.expect(got, 2)
    await talk.info("q")


async def flow_control(talk: Talk) -> None:
    await talk.stream()
    await talk.publish(*["s.a"] * 12, payload=b"x" * 400_000)
    await talk.consumer(deliver_subject="to", idle_heartbeat=500_000_000, flow_control=True, ack_policy="none")
    got = await talk.listen("to")
    messages = await talk.expect(got, 8)
    request = next(m for m in messages if not m.data)
    await talk.client.publish(request.reply)
    await talk.expect(got, 5)


async def overflow(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(priority_policy="overflow", priority_groups=["g"])
    got = await talk.listen("i")
    await talk.ask(got, "i", {"batch": 1}, 1)
    await talk.ask(got, "i", {"batch": 1, "group": "x"}, 1)
    await talk.ask(got, "i", {"batch": 1, "group": "g", "min_pending": 2, "expires": 3 * SECOND}, 0)
    await talk.publish("s.a")
    await talk.info()
    await talk.publish("s.a")
    await talk.expect(got, 1)
    await talk.ask(got, "i", {"batch": 1, "group": "g"}, 1)


async def pinned(talk: Talk) -> None:
    await talk.stream()
    await talk.publish(*["s.a"] * 5)
    await talk.consumer(priority_policy="pinned_client", priority_groups=["g"], priority_timeout=10 * SECOND)
    got = await talk.listen("i")
    await talk.info()
    first = (await talk.ask(got, "i", {"batch": 1, "group": "g"}, 1))[0]
    assert first.headers is not None
    pin = first.headers["Nats-Pin-Id"]
    await talk.ask(got, "i", {"batch": 1, "group": "g", "expires": 300_000_000}, 1)
    await talk.ask(got, "i", {"batch": 1, "group": "g", "id": "wrong"}, 1)
    await talk.ask(got, "i", {"batch": 1, "group": "g", "id": pin}, 1)
    await talk.api("CONSUMER.UNPIN.S.c", {})
    await talk.api("CONSUMER.UNPIN.NONE.c", {})
    await talk.api("CONSUMER.UNPIN.NONE.c", {"group": "g"})
    await talk.api("CONSUMER.UNPIN.S.c", b"")
    await talk.api("CONSUMER.UNPIN.S.c", {"group": "x"})
    await talk.api("CONSUMER.UNPIN.S.c", {"group": "g"})
    await talk.info()
    await talk.ask(got, "i", {"batch": 1, "group": "g"}, 1)


async def samples(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(sample_freq="100%")
    await talk.publish("s.a", "s.a")
    events = await talk.listen("$JS.EVENT.METRIC.CONSUMER.ACK.S.c")
    got = await talk.listen("i")
    messages = await talk.ask(got, "i", {"batch": 2}, 2)
    await talk.answered(messages[0])
    await talk.answered(messages[1], b"+TERM")
    talk.lines.append(comparable(json.loads((await asyncio.wait_for(events.get(), 3)).data)))


async def prioritized(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(priority_policy="prioritized", priority_groups=["g"])
    order: list[str] = []
    done = asyncio.Event()

    def note(name: str) -> Callable[[Msg], Awaitable[None]]:
        async def take(message: Msg) -> None:
            order.append(name)
            if len(order) == 8:
                done.set()

        return take

    for name, priority in (("a", 5), ("b", 1), ("c", 1), ("d", 9)):
        await talk.client.subscribe(f"i.{name}", cb=note(name))
        body = {"batch": 2, "group": "g", "priority": priority, "expires": 5 * SECOND}
        await talk.client.publish("$JS.API.CONSUMER.MSG.NEXT.S.c", json.dumps(body).encode(), reply=f"i.{name}")
        await talk.client.flush()
    await talk.publish(*["s.a"] * 8)
    await asyncio.wait_for(done.wait(), 3)
    talk.lines.append(order)


SCENARIOS: list[Callable[[Talk], Awaitable[None]]] = [
    work_queue,
    interest,
    deliver_policies,
    pull_statuses,
    request_bodies,
    acknowledgements,
    acknowledge_all,
    without_acknowledgements,
    redelivery,
    backoff,
    negative,
    max_ack_pending,
    push,
    flow_control,
    overflow,
    pinned,
    samples,
    prioritized,
]
