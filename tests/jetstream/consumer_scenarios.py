"""What clients do with consumers, as raw requests, and a transcript of what a server answers.

Every scenario takes a client connection and records answers in comparable form: times and drawn names are replaced,
version keys are left out. `test_consumer_oracle.py` runs each against nats-server and against this server.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError, TimeoutError

SECOND = 1_000_000_000
_TIMES = ("created", "ts", "last_active", "timestamp", "pause_until", "pinned_ts")


def comparable(value: Any, key: str = "") -> Any:
    """A JSON value without what differs between two runs."""
    if isinstance(value, dict):
        return {k: comparable(v, k) for k, v in value.items() if k not in ("_nats.ver", "_nats.level", "id")}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if key in _TIMES and isinstance(value, str):
        return value if value.startswith("0001") else "TIME"
    if key in ("pause_remaining", "ack_time"):
        return "DURATION"
    return value


class Talk:
    """One run of a scenario."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.lines: list[Any] = []
        self._inboxes: dict[str, Any] = {}

    async def api(self, subject: str, body: Any = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """A JSON request whose answer is recorded."""
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        try:
            reply = await self.client.request(f"$JS.API.{subject}", payload, timeout=2, headers=headers)
        except (NoRespondersError, TimeoutError) as error:
            self.lines.append((subject, type(error).__name__))
            return {}
        answer = json.loads(reply.data)
        shown = comparable(answer)
        if "name" in shown and "config" in shown and "name" not in shown["config"]:
            shown["name"] = "DRAWN" if re.fullmatch(r"\w{8}", shown["name"]) else shown["name"]
        self.lines.append((subject, shown))
        return answer

    async def quiet(self, subject: str, body: Any = None) -> dict[str, Any]:
        """A JSON request that only prepares something."""
        reply = await self.client.request(f"$JS.API.{subject}", json.dumps(body or {}).encode(), timeout=2)
        answer = json.loads(reply.data)
        assert "error" not in answer, answer
        return answer

    async def stream(self, name: str = "S", **config: Any) -> None:
        await self.quiet(f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"{name.lower()}.>"], **config})

    async def consumer(self, name: str = "c", **config: Any) -> None:
        config = {"durable_name": name, "ack_policy": "explicit", **config}
        await self.quiet(f"CONSUMER.CREATE.S.{name}", {"stream_name": "S", "config": config})

    async def publish(self, *subjects: str, payload: bytes = b"x") -> None:
        for subject in subjects:
            await self.client.request(subject, payload, timeout=2)

    async def listen(self, inbox: str, queue: str = "") -> asyncio.Queue[Msg]:
        got: asyncio.Queue[Msg] = asyncio.Queue()
        self._inboxes[inbox] = await self.client.subscribe(inbox, queue, cb=got.put)
        await self.client.flush()
        return got

    async def ask(self, got: asyncio.Queue[Msg], inbox: str, body: Any, count: int, consumer: str = "c") -> list[Msg]:
        """A pull request; the next `count` messages at its inbox are recorded."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.S.{consumer}", payload, reply=inbox)
        return await self.expect(got, count)

    async def expect(self, got: asyncio.Queue[Msg], count: int, timeout: float = 3) -> list[Msg]:
        messages: list[Msg] = []
        try:
            while len(messages) < count:
                messages.append(await asyncio.wait_for(got.get(), timeout))
        except asyncio.TimeoutError:  # noqa: UP041
            self.lines.append("(nothing)")
        self.lines += [self.shown(message) for message in messages]
        return messages

    @staticmethod
    def shown(message: Msg) -> Any:
        reply = re.sub(r"\.\d{19}\.", ".TIME.", message.reply)
        reply = re.sub(r"(\$JS\.FC\.\w+\.\w+\.)\w+", r"\1ID", reply)
        headers = dict(message.headers or {})
        for name in ("Nats-Pin-Id", "Nats-Consumer-Stalled"):
            if name in headers:
                headers[name] = "DRAWN"
        return (message.subject, reply, headers, message.data[:20])

    async def answered(self, message: Msg, payload: bytes = b"") -> None:
        """A double ack, recorded."""
        try:
            reply = await self.client.request(message.reply, payload, timeout=0.3)
            self.lines.append(("ack", payload, reply.data, dict(reply.headers or {})))
        except (NoRespondersError, TimeoutError) as error:
            self.lines.append(("ack", payload, type(error).__name__))

    async def info(self, consumer: str = "c") -> dict[str, Any]:
        return await self.api(f"CONSUMER.INFO.S.{consumer}")


async def create_forms(talk: Talk) -> None:
    await talk.stream()
    create = {"stream_name": "S", "config": {"durable_name": "d", "ack_policy": "explicit"}}
    await talk.api("CONSUMER.DURABLE.CREATE.S.d", create)
    await talk.api("CONSUMER.CREATE.S.e", {"stream_name": "S", "config": {"durable_name": "e"}})
    await talk.api("CONSUMER.CREATE.S.f", {"stream_name": "S", "config": {}})
    await talk.api("CONSUMER.CREATE.S", {"stream_name": "S", "config": {"deliver_subject": "to"}})
    await talk.api("CONSUMER.CREATE.S", {"stream_name": "S", "config": {"name": "named"}})
    await talk.api(
        "CONSUMER.CREATE.S.g.s.a.*", {"stream_name": "S", "config": {"filter_subject": "s.a.*", "metadata": {"k": "v"}}}
    )
    await talk.api("CONSUMER.CREATE.S.m", {"stream_name": "S", "config": {"filter_subjects": ["s.a", "s.b"]}})
    await talk.api("CONSUMER.CREATE.S.n", {"stream_name": "S", "config": {"filter_subjects": ["s.a"]}})
    await talk.api("CONSUMER.INFO.S.d")
    await talk.api("CONSUMER.INFO.S.d", b"{}")
    await talk.api("CONSUMER.INFO.S.d", b"x")
    await talk.api("CONSUMER.INFO.S.zz")
    await talk.api("CONSUMER.INFO.Z.zz")
    for name in ("d", "e", "f", "g", "m", "n", "named"):
        await talk.api(f"CONSUMER.DELETE.S.{name}")
    await talk.api("CONSUMER.DELETE.S.d")
    await talk.api("CONSUMER.DELETE.S.d", b"x")


async def create_errors(talk: Talk) -> None:
    await talk.stream()

    def body(stream: str = "S", **config: Any) -> dict[str, Any]:
        return {"stream_name": stream, "config": config}

    requests: list[tuple[str, Any]] = [
        ("CREATE.S.c", b""),
        ("CREATE.S.c", b"{"),
        ("CREATE.S.c", {"stream_name": "S", "config": {"nope": 1}}),
        ("CREATE.S.c", {"stream_name": "S", "config": {"ack_wait": "1s"}}),
        ("CREATE.S.c", {"stream_name": "S", "config": {"ack_policy": "maybe"}}),
        ("CREATE.S.c", {"stream_name": "S", "action": "zz", "config": {}}),
        ("CREATE.S.c", body("T")),
        ("CREATE.T.c", body("T")),
        ("CREATE.S.c", body(durable_name="d")),
        ("DURABLE.CREATE.S.c", body()),
        ("DURABLE.CREATE.S.c", body(durable_name="d")),
        ("CREATE.S", body(durable_name="d")),
        ("CREATE.S.c.s.a", body(filter_subject="s.b")),
        ("CREATE.S.c.s.a", body(filter_subjects=["s.a", "s.b"])),
        ("CREATE.S.a/b", body()),
        ("CREATE.S.c", {**body(durable_name="c"), "action": "update"}),
        ("CREATE.S", body(name="a.b")),
    ]
    for name, config in _INVALID:
        requests.append(("CREATE.S.c", body(**config)))
        talk.lines.append(name)
    for subject, request in requests:
        await talk.api(f"CONSUMER.{subject}", request)


_INVALID: list[tuple[str, dict[str, Any]]] = [
    ("ack_wait", {"ack_policy": "explicit", "ack_wait": -1}),
    ("backoff", {"ack_policy": "explicit", "backoff": [-1]}),
    ("backoff longer", {"ack_policy": "explicit", "backoff": [1, 2, 3], "max_deliver": 2}),
    ("description", {"description": "d" * 5000}),
    ("filter", {"filter_subject": "a..b"}),
    ("both filters", {"filter_subject": "s.a", "filter_subjects": ["s.b"]}),
    ("empty filter", {"filter_subjects": ["s.a", ""]}),
    ("overlap", {"filter_subjects": ["s.a", "s.*"]}),
    ("rate pull", {"rate_limit_bps": 100}),
    ("sample", {"sample_freq": "x%"}),
    ("waiting push", {"deliver_subject": "d", "max_waiting": 5}),
    ("pending none", {"deliver_subject": "d", "max_ack_pending": 5}),
    ("fc pull", {"flow_control": True}),
    ("fc no heartbeat", {"deliver_subject": "d", "flow_control": True}),
    ("heartbeat pull", {"idle_heartbeat": SECOND}),
    ("heartbeat small", {"deliver_subject": "d", "idle_heartbeat": 1000}),
    ("expires small", {"max_expires": 1000}),
    ("deliver wild", {"deliver_subject": "d.*"}),
    ("deliver bad", {"deliver_subject": "d..e"}),
    ("deliver cycle", {"deliver_subject": "s.a"}),
    ("replicas", {"num_replicas": 3}),
    ("replicas <0", {"num_replicas": -1}),
    ("metadata", {"metadata": {"k": "v" * 140_000}}),
    ("all + seq", {"deliver_policy": "all", "opt_start_seq": 1}),
    ("all + time", {"deliver_policy": "all", "opt_start_time": "2020-01-01T00:00:00Z"}),
    ("last + seq", {"deliver_policy": "last", "opt_start_seq": 1}),
    ("new + seq", {"deliver_policy": "new", "opt_start_seq": 1}),
    ("lps no filter", {"deliver_policy": "last_per_subject"}),
    ("lps + seq", {"deliver_policy": "last_per_subject", "opt_start_seq": 1, "filter_subject": "s.>"}),
    ("seq none", {"deliver_policy": "by_start_sequence"}),
    (
        "seq + time",
        {"deliver_policy": "by_start_sequence", "opt_start_seq": 1, "opt_start_time": "2020-01-01T00:00:00Z"},
    ),
    ("time none", {"deliver_policy": "by_start_time"}),
    ("time + seq", {"deliver_policy": "by_start_time", "opt_start_seq": 1, "opt_start_time": "2020-01-01T00:00:00Z"}),
    ("time text", {"deliver_policy": "by_start_time", "opt_start_time": "yesterday"}),
    ("policy no group", {"priority_policy": "overflow"}),
    ("group push", {"deliver_subject": "d", "priority_policy": "overflow", "priority_groups": ["g"]}),
    ("group empty", {"priority_policy": "overflow", "priority_groups": [""]}),
    ("group name", {"priority_policy": "overflow", "priority_groups": ["g g"]}),
    ("group none", {"priority_groups": ["g"]}),
    ("timeout none", {"priority_timeout": SECOND}),
    ("direct pull", {"direct": True}),
    ("seq with ordered", {"deliver_policy": "by_start_sequence", "opt_start_seq": 7, "ack_policy": "none"}),
]


async def updates(talk: Talk) -> None:
    await talk.stream()
    await talk.publish("s.a", "s.b", "s.a")
    base = {"durable_name": "c", "ack_policy": "explicit"}
    push = {"durable_name": "p", "deliver_subject": "to", "ack_policy": "explicit"}
    await talk.consumer()
    await talk.consumer("p", deliver_subject="to")
    changes: list[tuple[dict[str, Any], str]] = [
        (base, "create"),
        ({**base, "description": "d"}, "create"),
        ({**base, "description": "d"}, ""),
        ({**base, "description": "e", "ack_wait": 5 * SECOND, "max_deliver": 3, "max_ack_pending": 7}, "update"),
        ({**base, "filter_subject": "s.b"}, "update"),
        ({**base, "deliver_policy": "new"}, ""),
        ({**base, "deliver_policy": "by_start_sequence", "opt_start_seq": 2}, ""),
        ({**base, "ack_policy": "none"}, ""),
        ({**base, "replay_policy": "original"}, ""),
        ({**base, "max_waiting": 7}, ""),
        ({**base, "mem_storage": True}, ""),
        ({**base, "deliver_subject": "to"}, ""),
        ({**base, "pause_until": "2100-01-01T00:00:00Z"}, ""),
        ({"name": "c", "ack_policy": "explicit"}, ""),
        (base, ""),
    ]
    for config, action in changes:
        await talk.api("CONSUMER.CREATE.S.c", {"stream_name": "S", "config": config, "action": action})
    for config in (
        {**push, "idle_heartbeat": SECOND},
        {**push, "idle_heartbeat": SECOND, "flow_control": True},
        {"durable_name": "p", "ack_policy": "explicit"},
        {**push, "deliver_subject": "there"},
    ):
        await talk.api("CONSUMER.CREATE.S.p", {"stream_name": "S", "config": config})
    await talk.listen("there")
    await talk.api("CONSUMER.CREATE.S.p", {"stream_name": "S", "config": push})


async def limits(talk: Talk) -> None:
    await talk.stream(max_consumers=2, consumer_limits={"max_ack_pending": 50, "inactive_threshold": 60 * SECOND})
    for name, config in (
        ("a", {}),
        ("b", {"ack_policy": "explicit", "max_ack_pending": 51}),
        ("b", {"ack_policy": "explicit", "inactive_threshold": 61 * SECOND}),
        ("b", {"ack_policy": "explicit", "max_ack_pending": -1}),
        ("c", {}),
    ):
        await talk.api(f"CONSUMER.CREATE.S.{name}", {"stream_name": "S", "config": config})


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
        await talk.client.request(".".join(again), b"", timeout=0.2)
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


async def paused(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer()
    await talk.publish("s.a")
    await talk.api("CONSUMER.PAUSE.S.c", {"pause_until": "2100-01-01T00:00:00Z"})
    await talk.info()
    got = await talk.listen("i")
    await talk.ask(got, "i", {"batch": 1, "expires": 200_000_000}, 1)
    await talk.api("CONSUMER.PAUSE.S.c", {"pause_until": "2000-01-01T00:00:00Z"})
    await talk.ask(got, "i", {"batch": 1, "expires": 2 * SECOND}, 1)
    await talk.api("CONSUMER.PAUSE.S.c")
    await talk.api("CONSUMER.PAUSE.S.zz")
    await talk.info()


async def lists(talk: Talk) -> None:
    await talk.stream()
    await talk.api("CONSUMER.NAMES.S")
    await talk.api("CONSUMER.LIST.S")
    await talk.consumer("b")
    await talk.consumer("a")
    await talk.api("CONSUMER.NAMES.S")
    await talk.api("CONSUMER.NAMES.S", {"offset": 1})
    await talk.api("CONSUMER.NAMES.S", {"offset": 5})
    await talk.api("CONSUMER.LIST.S", {"offset": 1})
    await talk.api("CONSUMER.LIST.S", {"offset": "x"})
    await talk.api("CONSUMER.NAMES.Z")
    await talk.api("CONSUMER.LIST.Z")
    await talk.api("CONSUMER.LEADER.STEPDOWN.S.a")


async def resets(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer()
    await talk.publish("s.a", "s.a", "s.a")
    got = await talk.listen("i")
    messages = await talk.ask(got, "i", {"batch": 3}, 3)
    await talk.answered(messages[0])
    await talk.api("CONSUMER.RESET.S.c")
    await talk.ask(got, "i", {"batch": 3}, 2)
    await talk.api("CONSUMER.RESET.S.c", {"seq": 1})
    await talk.info()
    await talk.consumer("n", deliver_policy="new")
    await talk.api("CONSUMER.RESET.S.n", {"seq": 1})
    await talk.consumer("s", deliver_policy="by_start_sequence", opt_start_seq=3)
    await talk.api("CONSUMER.RESET.S.s", {"seq": 1})


async def deletions(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer()
    await talk.publish("s.a", "s.b", "s.a", "s.b")
    events = await talk.listen("$JS.EVENT.ADVISORY.CONSUMER.*.S.*")
    got = await talk.listen("i")
    await talk.ask(got, "i", {"batch": 2}, 2)
    await talk.quiet("STREAM.MSG.DELETE.S", {"seq": 1})
    talk.lines.append(comparable(json.loads((await asyncio.wait_for(events.get(), 3)).data)))
    await talk.info()
    await talk.quiet("STREAM.PURGE.S", {"filter": "s.b"})
    await talk.info()
    await talk.quiet("STREAM.PURGE.S", {})
    await talk.info()
    await talk.publish("s.c")
    await talk.ask(got, "i", {"batch": 1}, 1)
    await talk.consumer("d")
    await talk.quiet("CONSUMER.DELETE.S.d")
    for _ in range(2):
        talk.lines.append(comparable(json.loads((await asyncio.wait_for(events.get(), 3)).data)))


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
    await talk.api("CONSUMER.UNPIN.S.c", {"group": "x"})
    await talk.api("CONSUMER.UNPIN.S.c", {"group": "g"})
    await talk.info()
    await talk.ask(got, "i", {"batch": 1, "group": "g"}, 1)


SCENARIOS: list[Callable[[Talk], Awaitable[None]]] = [
    create_forms,
    create_errors,
    updates,
    limits,
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
    paused,
    lists,
    resets,
    deletions,
    overflow,
    pinned,
]
