"""How clients create, change, list and delete consumers.

Each scenario is run against nats-server and against this server by `test_consumer_oracle.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from tests.jetstream.consumer_talk import SECOND, Talk, comparable


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
    unset = {"pause_until": "0001-01-01T00:00:00Z", "filter_subjects": None, "backoff": [], "max_batch": -1}
    await talk.api("CONSUMER.CREATE.S.u", {"stream_name": "S", "config": {"name": "u", **unset}})
    await talk.api("CONSUMER.INFO.S.d")
    await talk.api("CONSUMER.INFO.S.d", b"{}")
    await talk.api("CONSUMER.INFO.S.d", b"x")
    await talk.api("CONSUMER.INFO.S.zz")
    await talk.api("CONSUMER.INFO.Z.zz")
    for name in ("d", "e", "f", "g", "m", "n", "u", "named"):
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


async def pedantic(talk: Talk) -> None:
    await talk.stream(consumer_limits={"max_ack_pending": 50})
    for config in (
        {"max_deliver": -5},
        {"max_waiting": -2},
        {"ack_policy": "explicit", "ack_wait": SECOND, "backoff": [2 * SECOND]},
        {"max_batch": -1},
        {"deliver_subject": "to"},
        {"ack_policy": "explicit"},
    ):
        body = {"stream_name": "S", "config": config}
        await talk.api("CONSUMER.CREATE.S.c", {**body, "pedantic": True})
        await talk.api("CONSUMER.CREATE.S.d", body)
        for name in "cd":
            await talk.api(f"CONSUMER.DELETE.S.{name}")


async def headers_and_levels(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer(headers_only=True)
    await talk.client.request("s.a", b"abc", headers={"Own": "1"}, timeout=20)
    got = await talk.listen("i")
    await talk.ask(got, "i", {"batch": 1}, 1)
    await talk.client.publish(
        "$JS.API.CONSUMER.MSG.NEXT.S.c", b"", reply="i", headers={"Nats-Required-Api-Level": "99"}
    )
    await talk.expect(got, 1)
    await talk.api("CONSUMER.INFO.S.c", headers={"Nats-Required-Api-Level": "99"})
    await talk.api("CONSUMER.NOPE.S.c")
    await talk.api("CONSUMER.INFO.S")


async def stream_deleted(talk: Talk) -> None:
    await talk.stream()
    await talk.consumer()
    got = await talk.listen("i")
    await talk.ask(got, "i", {"batch": 1, "expires": 20 * SECOND}, 0)
    while (await talk.quiet("CONSUMER.INFO.S.c"))["num_waiting"] == 0:
        pass
    await talk.quiet("STREAM.DELETE.S")
    await talk.expect(got, 1)
    await talk.api("CONSUMER.MSG.NEXT.S.c")


SCENARIOS: list[Callable[[Talk], Awaitable[None]]] = [
    create_forms,
    create_errors,
    updates,
    limits,
    paused,
    lists,
    resets,
    deletions,
    pedantic,
    headers_and_levels,
    stream_deleted,
]
