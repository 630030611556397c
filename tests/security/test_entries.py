"""Bad values in requests, acknowledgements and logs: their sender gets an error, and nothing else happens.

On one node and on three: what a client sends through the API, and what an older version of this server has let into a
log or a snapshot. Such a directory is made as that version made it, by proposing the raw entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from nats.aio.client import Client

from nimsnats.jetstream import kinds
from nimsnats.jetstream.consumer.consumer import Consumer
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.stream import Stream
from nimsnats.monitor.health import overall
from nimsnats.monitor.raftmetrics import raft_metrics
from nimsnats.monitor.view import NodeView
from nimsnats.raft.group import HostedGroup
from nimsnats.raft.home import Durable
from nimsnats.storage import CompactionPoint
from tests.broker.peer import until
from tests.jetstream.stand import Stand, running
from tests.jetstream.trio import Trio, TrioNode, ask, trio

BAD_TIME = "2023-02-30T00:00:00Z"
HUGE = "9" * 30


def created(name: str, **config: Any) -> bytes:
    """The body of a CONSUMER_CREATE entry."""
    settled = {"durable_name": name, "deliver_policy": "all", "ack_policy": "explicit", "replay_policy": "instant"}
    body = {"name": name, "config": {**settled, **config}, "created": 1, "generated": False, "action": ""}
    return pack(body)


POISON = [
    (kinds.CONSUMER_CREATE, created("bad", deliver_policy="by_start_time", opt_start_time=BAD_TIME)),
    (kinds.CONSUMER_CREATE, created("bad", pause_until="2023-13-01T00:00:00Z")),
    (kinds.CONSUMER_CREATE, created("bad", ack_wait="long")),
    (kinds.CONSUMER_CREATE, b"\xc1 no msgpack"),
    (kinds.CONSUMER_RESET, pack({"name": "good", "start": "one"})),
    (kinds.CONSUMER_ACKS, pack([[1, 2, [1, 2**62], None]])),
    (kinds.STREAM_PURGE, b"\x91" * 900 + b"\xc0"),
    (99, b"of a later version"),
]
CATALOGUE_POISON = [
    (kinds.META_STREAM_ADD, pack(["$G", "T", "S-$G-T-1", 1, {"name": "T", "subjects": 7}, [], ""])),
    (kinds.META_STREAM_UPDATE, pack(["$G", "S", {"name": 3}, ["x"]])),
    (kinds.META_GIVE_UP, pack([[]])),
    (kinds.META_STREAM_REMOVE, b""),
]


def poison(group: HostedGroup, entries: list[tuple[int, bytes]]) -> None:
    """Put raw entries into a group's log, as a server does that does not check them."""
    for kind, data in entries:
        group.propose(kind, data)


def hosted(stream: Stream) -> HostedGroup:
    """The stream's group as Raft has it."""
    assert isinstance(stream.group, HostedGroup)
    return stream.group


def refused(stream: Stream) -> list[tuple[int, str]]:
    """Kinds and reasons of what was refused."""
    return [(refusal.kind, refusal.reason) for refusal in stream.refusals.newest]


async def works(client: Client, stream: str = "S", subject: str = "s.a") -> int:
    """A publish to the stream is stored and can be read again; its sequence."""
    ack = json.loads((await client.request(subject, b"later", timeout=5)).data)
    assert "seq" in ack, ack
    answer = await ask(client, f"STREAM.MSG.GET.{stream}", {"seq": ack["seq"]})
    assert answer["message"]["subject"] == subject
    return int(ack["seq"])


async def create(client: Client, **config: Any) -> None:
    answer = await ask(client, "STREAM.CREATE.S", {"name": "S", "subjects": ["s.>"], **config})
    assert "error" not in answer
    await works(client)


async def durable(client: Client, name: str, **config: Any) -> dict[str, Any]:
    body = {"stream_name": "S", "config": {"durable_name": name, "ack_policy": "explicit", **config}}
    return await ask(client, f"CONSUMER.DURABLE.CREATE.S.{name}", body)


async def fetch(client: Client, name: str, batch: int = 1) -> list[str]:
    """The acknowledgement subjects of so many deliveries."""
    inbox = client.new_inbox()
    found = await client.subscribe(inbox)
    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.S.{name}", b'{"batch":%d}' % batch, reply=inbox)
    subjects = [(await found.next_msg(5)).reply for _ in range(batch)]
    await found.unsubscribe()
    return subjects


async def floor(client: Client, name: str) -> int:
    """The last stream sequence up to which everything is acknowledged."""
    return int((await ask(client, f"CONSUMER.INFO.S.{name}"))["ack_floor"]["stream_seq"])


# One node


BAD_TIMES = [BAD_TIME, "2023-04-31T00:00:00Z", "0000-00-00T00:00:00Z", "2023-02-29T12:00:00+01:00", "tomorrow", 5, ""]


async def test_a_consumer_with_a_time_that_is_none_is_refused_and_nothing_else_happens(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await create(stand.client)
        for number, time in enumerate(BAD_TIMES):
            config = {"deliver_policy": "by_start_time", "opt_start_time": time}
            answer = await durable(stand.client, f"c{number}", **config)
            assert answer["error"]["code"] in (400, 500), time
            assert await works(stand.client) == number + 2
        answer = await durable(stand.client, "p", pause_until=BAD_TIME)
        assert "error" in answer
    async with running(tmp_path) as stand:
        assert await works(stand.client) == len(BAD_TIMES) + 2
        assert (await ask(stand.client, "CONSUMER.NAMES.S"))["consumers"] == []


async def poisoned(stand: Stand) -> None:
    """A node whose logs hold what no version should have let in, and whose process ends as by a crash."""
    await create(stand.client)
    assert "error" not in await durable(stand.client, "good")
    catalogue = stand.engine.meta.group
    assert isinstance(catalogue, HostedGroup)
    poison(hosted(stand.stream("S")), POISON)
    poison(catalogue, CATALOGUE_POISON)
    await works(stand.client)
    await until(lambda: stand.engine.meta.refusals.count == len(CATALOGUE_POISON))


@pytest.mark.parametrize("crashed", [True, False], ids=["crash", "stop"])
async def test_a_poisoned_directory_starts_names_its_entries_and_goes_on(tmp_path: Path, crashed: bool) -> None:
    async with running(tmp_path) as stand:
        await poisoned(stand)
        expected = refused(stand.stream("S"))
        state = stand.stream("S").state()
        if crashed:  # without a snapshot, so that everything is replayed
            stand.host.abandon()
    assert [kind for kind, _ in expected] == [kind for kind, _ in POISON]
    for _ in range(2):
        async with running(tmp_path) as stand:
            stream = stand.stream("S")
            assert refused(stream) == expected and stream.refusals.count == len(POISON)
            assert stand.engine.meta.refusals.count == len(CATALOGUE_POISON)
            assert stream.consumers.names() == ["good"] and list(stand.engine.meta.streams) == [("$G", "S")]
            if state:
                assert stream.state() == state
            await works(stand.client)
            assert await fetch(stand.client, "good")
            await told(stand)
            state = b""


async def told(stand: Stand) -> None:
    """The operator hears of it, and no load balancer takes the node out."""
    view = NodeView(stand.broker, stand.engine)
    health = overall(view)
    assert (health["status"], health["status_code"]) == ("degraded", 200)
    lines = [line for line in health["problems"] if line.startswith("log: ")]
    assert len(lines) == 2 and any("CONSUMER" in line or "unknown kind 99" in line for line in lines), lines
    families = {family.name: family for family in await raft_metrics(stand.engine, each=False)}
    total = families["nimsnats_raft_refused_entries"].samples[0].value
    assert total == len(POISON) + len(CATALOGUE_POISON)
    assert families["nimsnats_raft_groups_failed"].samples[0].value == 0


async def test_a_poisoned_snapshot_keeps_what_can_be_kept(tmp_path: Path) -> None:
    """A consumer with a bad time has a state of its own, and needs the time no more. One that is nonsense is left
    out."""
    async with running(tmp_path) as stand:
        await create(stand.client)
        await durable(stand.client, "good")
        stream = stand.stream("S")
        group = hosted(stream)
        config = {"durable_name": "timed", "deliver_policy": "by_start_time", "opt_start_time": BAD_TIME}
        state = [[0, 0, 0, 0], [0, 0, 0, 0], [], [], [], []]
        body = {"name": "timed", "config": config, "created": 1, "generated": False, "state": state}
        group.propose(kinds.CONSUMER_RESTORED, pack(body))
        await works(stand.client)
        group.compact()
        await stand.host.synced()
        stored = await stand.database.load_group(group.name)
        assert stored is not None and stored.state is not None and isinstance(group.home, Durable)
        fields = msgpack.unpackb(stored.state, strict_map_key=False)
        fields["consumers"] += [
            [7, "odd", {"ack_wait": []}, 1, False, state],
            "nonsense",
            [8, "worse", {}, 1, False, [1]],
        ]
        point = CompactionPoint(
            group.applied, group.term, stored.snapshot_total, stored.members, msgpack.packb(fields), [], []
        )
        stand.database.compact(group.home.number, point)
        await stand.host.synced()
        stand.host.abandon()
    for _ in range(2):
        async with running(tmp_path) as stand:
            stream = stand.stream("S")
            assert stream.consumers.names() == ["good", "timed"]
            assert stream.refusals.count == 3 and "consumer odd" in stream.refusals.newest[0].reason
            await works(stand.client)
            assert (await ask(stand.client, "CONSUMER.INFO.S.timed"))["config"]["opt_start_time"] == BAD_TIME
            assert await fetch(stand.client, "good") and await fetch(stand.client, "timed")


@pytest.mark.errors_inside
@pytest.mark.parametrize("fault", ["it raises", "it cannot be written"])
async def test_an_acknowledgement_that_is_not_written_down_is_not_confirmed(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Consumer.take_acks
    broken = True

    def taken(self: Consumer, now: int) -> list[Any] | None:
        item = take(self, now)
        if item is None or not broken:
            return item
        if fault == "it raises":
            raise KeyError("a bug")
        return [*item[:-1], [1 << 70, 1]]

    monkeypatch.setattr(Consumer, "take_acks", taken)
    async with running(tmp_path) as stand:
        client = stand.client
        await create(client)
        await durable(client, "C", ack_wait=100_000_000)
        (subject,) = await fetch(client, "C")
        with pytest.raises(TimeoutError):
            await client.request(subject, b"+ACK", timeout=0.3)
        assert await floor(client, "C") == 0
        broken = False
        if fault == "it cannot be written":
            (subject,) = await fetch(client, "C")
            await client.request(subject, b"+ACK", timeout=5)
            assert await floor(client, "C") == 1


ACKS = [
    ("all", "$JS.ACK.S.{name}.1.1.{huge}.1.0", b""),
    ("all", "$JS.ACK.S.{name}.{huge}.1.1.1.0", b"+ACK"),
    ("all", "$JS.ACK.S.{name}.1.{huge}.1.1.0", b""),
    ("all", "$JS.ACK.S.{name}.1.1.18446744073709551616.1.0", b""),
    ("all", "$JS.ACK.S.{name}.1.1.-1.1.0", b""),
    ("all", "$JS.ACK.S.{name}.1.1.1_0.1.0", b""),
    ("explicit", "$JS.ACK.S.{name}.1.{huge}.{huge}.{huge}.{huge}", b"+TERM"),
    ("explicit", "$JS.ACK.S.{name}.1.1.1.1.0", b'-NAK {"delay": 9223372036854775808}'),
    ("explicit", "$JS.ACK.S.{name}.1.1.1.1.0", b'-NAK {"delay": ' + b"9" * 5000 + b"}"),
    ("explicit", "$JS.ACK.S.{name}.1.1.1.1.0", b"-NAK " + b"9" * 30 + b"h"),
    ("explicit", "$JS.ACK.S.{name}.1.1.1.1.0", b'-NAK {"delay": ' + b"[" * 2000),
    ("explicit", "$JS.ACK.S.{name}.1.1.1.1.0", b'-NAK {"delay": true}'),
]


async def test_an_acknowledgement_out_of_range_takes_no_other_along(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        client = stand.client
        await create(client)
        for number, (policy, subject, payload) in enumerate(ACKS):
            bad, good = f"bad{number}", f"good{number}"
            await durable(client, bad, ack_policy=policy)
            await durable(client, good)
            await fetch(client, bad)
            (acknowledged,) = await fetch(client, good)
            await client.publish(subject.format(name=bad, huge=HUGE), payload)  # of the same tick
            await client.publish(acknowledged, b"+ACK")
            await client.flush()
            consumer = stand.stream("S").consumers.get(good)
            assert consumer is not None
            await until(lambda consumer=consumer: consumer.state.floor_seq == 1)
    async with running(tmp_path) as stand:
        for number in range(len(ACKS)):
            assert await floor(stand.client, f"good{number}") == 1
        await works(stand.client)


# Three nodes


def catalogue_of(node: TrioNode) -> HostedGroup:
    """A node's part of the catalogue's group."""
    group = node.engine.meta.group
    assert isinstance(group, HostedGroup)
    return group


def settled(groups: list[HostedGroup]) -> bool:
    """Whether all members have applied all that any of them has."""
    return len({group.applied for group in groups}) == 1 and groups[0].applied == max(g.core.log.last for g in groups)


async def agree(cluster: Trio, count: int) -> None:
    """All replicas have applied everything, and hold the same bytes."""

    def same() -> bool:
        served = [node.served("S") for node in cluster.running]
        if any(one is None for one in served):
            return False
        groups = [hosted(one.stream) for one in served if one is not None]
        return settled(groups) and settled([catalogue_of(node) for node in cluster.running])

    await until(same)
    streams = [one.stream for node in cluster.running if (one := node.served("S")) is not None]
    assert len(streams) == len(cluster.running) and {stream.refusals.count for stream in streams} == {count}
    assert len({repr(refused(stream)) for stream in streams}) == 1
    assert len({stream.state() for stream in streams}) == 1
    assert len({node.engine.meta.snapshot().state for node in cluster.running}) == 1


async def restart(cluster: Trio, name: str) -> None:
    """Crash a node and start it again on the same disk."""
    await cluster[name].kill()
    node = TrioNode(cluster.directory, name, cluster.hub)
    cluster.nodes[[each.name for each in cluster.nodes].index(name)] = node
    await node.start()


async def test_a_poisoned_stream_of_three_goes_on_through_restarts(tmp_path: Path) -> None:
    async with trio(tmp_path) as cluster:
        await create(cluster.clients[0], num_replicas=3)
        leader = await cluster.led("S")
        served = cluster[leader].served("S")
        assert served is not None
        client = cluster.clients[0]
        assert "error" not in await durable(client, "good")
        answer = await durable(client, "c", deliver_policy="by_start_time", opt_start_time=BAD_TIME)
        assert "error" in answer
        before = served.stream.refusals.count
        poison(hosted(served.stream), POISON)
        (catalogue,) = (group for group in map(catalogue_of, cluster.nodes) if group.leading)
        poison(catalogue, CATALOGUE_POISON)
        await works(client)
        count = before + len(POISON)
        await agree(cluster, count)
        for node in ("n1", "n2", "n3"):
            await restart(cluster, node)
            await cluster.led("S")
        late = await cluster.nodes[2].connect()
        try:
            assert await works(late) == 3
            await agree(cluster, count)
            assert await fetch(late, "good")
        finally:
            await late.close()
        for node in cluster.nodes:
            await node.stop()
