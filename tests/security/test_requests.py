"""Arbitrary JSON, header values, acknowledgement tokens and raw entries, through real clients and real logs.

Every request is answered, later publishes are stored, replicas hold the same bytes, and a restart makes the same again:
on one node and on three.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from nimsnats.jetstream import kinds
from nimsnats.jetstream.stream import Stream
from nimsnats.raft.group import HostedGroup
from tests.broker.peer import until
from tests.jetstream.stand import Stand, running
from tests.jetstream.trio import Trio, TrioNode, ask, trio
from tests.security.strategies import STREAM, campaign, entries

Move = tuple[str, Any, Any]
_json_numbers = st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63) - 1, 1.5]) | st.integers(
    -5, 50
)
_texts = st.sampled_from(
    ["", "a", "H", "h.>", "h.a", "*", "a b", "x.\x00", "2023-02-30T00:00:00Z", "2024-02-29T00:00:00Z", "1h", "\ud800"]
)
_json = st.recursive(
    st.none() | st.booleans() | _json_numbers | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=5,
)
_FIELDS = {
    "durable_name": st.sampled_from(["c0", "c1"]),
    "deliver_policy": st.sampled_from(["all", "last", "new", "by_start_sequence", "by_start_time", "last_per_subject"]),
    "opt_start_time": _texts,
    "opt_start_seq": _json_numbers,
    "pause_until": _texts,
    "ack_policy": st.sampled_from(["none", "all", "explicit"]),
    "ack_wait": _json_numbers,
    "backoff": st.lists(_json_numbers, max_size=3),
    "filter_subject": _texts,
    "max_deliver": _json_numbers,
    "max_ack_pending": _json_numbers,
    "inactive_threshold": _json_numbers,
    "sample_freq": _texts,
    "metadata": st.dictionaries(_texts, _texts, max_size=2),
}


def _mostly(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The right thing, or now and then other JSON."""
    return st.one_of(right, right, right, _json)


@st.composite
def _some(draw: st.DrawFn) -> dict[str, Any]:
    chosen = draw(st.lists(st.sampled_from(sorted(_FIELDS)), max_size=4, unique=True))
    return {name: draw(_mostly(_FIELDS[name])) for name in chosen}


_keys = st.sampled_from(["seq", "filter", "keep", "pause_until", "start_time", "batch"])
_bodies = st.one_of(
    _some().map(lambda config: json.dumps({"stream_name": "H", "config": config}).encode()),
    _json.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(
        st.sampled_from(["seq", "filter", "keep", "pause_until", "start_time", "batch"]), _json, max_size=3
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"{", b"[" * 3000, b'{"config":' * 700, b"\xff\x00", b'{"seq":' + b"9" * 5000 + b"}", b""]),
)
_requests = st.sampled_from(
    (
        *("CONSUMER.DURABLE.CREATE.H.c0", "CONSUMER.CREATE.H", "CONSUMER.CREATE.H.c1", "CONSUMER.PAUSE.H.good"),
        *("CONSUMER.DELETE.H.c0", "CONSUMER.INFO.H.good", "CONSUMER.LIST.H", "STREAM.PURGE.H", "STREAM.MSG.GET.H"),
        *("STREAM.MSG.DELETE.H", "STREAM.INFO.H", "STREAM.CREATE.U", "STREAM.UPDATE.U", "STREAM.LIST"),
    )
)
_tokens = st.sampled_from(
    [b"1", b"2", b"0", b"-1", b"1_0", b"18446744073709551615", b"18446744073709551616", b"9" * 30, b"x"]
)
_acks = st.tuples(*[_tokens] * 5).map(b".".join)
_said = st.sampled_from(
    (
        *(b"", b"+ACK", b"+TERM", b"+WPI", b"-NAK", b"-NAK " + b"9" * 30 + b"h", b'-NAK {"delay":1e400}'),
        *(
            b'-NAK {"delay":[[[',
            b"-NAK {" + b'"a":{' * 900,
            b'+NXT {"batch":99999999999999999999}',
            b"+NXT " + b"[" * 900,
        ),
    )
)
_headers = st.tuples(
    st.sampled_from(["Nats-TTL", "Nats-Expected-Last-Sequence", "Nats-Expected-Last-Subject-Sequence", "Nats-Rollup"])
    | st.sampled_from(["Nats-Msg-Id", "Nats-Expected-Last-Msg-Id", "Nats-Expected-Stream", "Nats-Marker-Reason"]),
    st.sampled_from(
        ["1", "0", "-1", "9" * 20, "9" * 5000, "1h", "9" * 30 + "h", "never", "x", "sub", "all", "H", "\u00e4"]
    ),
)
_FINAL = {kinds.STREAM_CONFIG, kinds.STREAM_PURGE, kinds.STREAM_RESTORED, kinds.RESTORED}
"""Kinds of which one may leave a stream that takes no messages any more, and rightly."""
moves: st.SearchStrategy[Move] = st.one_of(
    st.tuples(st.just("ask"), _requests, _bodies),
    st.tuples(st.just("ask"), _requests, _bodies),
    st.tuples(st.just("ack"), _acks, _said),
    st.tuples(st.just("publish"), st.sampled_from(["h.a", "h.b", "h.\x01", "h.\x7f.c"]), _headers),
    st.tuples(
        st.just("let in"), st.none(), entries({kind: STREAM[kind] for kind in sorted(set(STREAM) - {2, 4, 7, 130})})
    ),
)


class Place(Protocol):
    """Where it happens."""

    client: Client

    def leader(self) -> Stream: ...
    def replicas(self) -> list[Stream]: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class One:
    """One node."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = AsyncExitStack()
        self._stand: Stand
        self.client: Client

    async def start(self) -> None:
        self._stand = await self._stack.enter_async_context(running(self._directory))
        self.client = self._stand.client

    async def stop(self) -> None:
        await self._stack.aclose()

    def leader(self) -> Stream:
        return self._stand.stream("H")

    def replicas(self) -> list[Stream]:
        return [self.leader()]


class Three:
    """Three nodes; a client that talks to the first of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = AsyncExitStack()
        self._trio: Trio
        self.client: Client
        self._again = False

    async def start(self) -> None:
        if not self._again:
            self._again = True
            self._trio = await self._stack.enter_async_context(trio(self._directory))
        else:
            for number, node in enumerate(self._trio.nodes):
                self._trio.nodes[number] = TrioNode(self._directory, node.name, self._trio.hub)
            await asyncio.gather(*(node.start() for node in self._trio.nodes))
            for node in self._trio.nodes:
                self._stack.push_async_callback(node.stop)
            await self._trio.led("H")
        self.client = await nats.connect(self._trio.nodes[0].url, allow_reconnect=False)

    async def stop(self) -> None:
        await self.client.close()
        for node in self._trio.nodes:
            await node.stop()

    async def end(self) -> None:
        await self._stack.aclose()

    def leader(self) -> Stream:
        return next(stream for stream in self.replicas() if stream.leading)

    def replicas(self) -> list[Stream]:
        return [served.stream for node in self._trio.nodes if (served := node.served("H")) is not None]


class Scene:
    """A place with a stream H on it, on a loop of its own."""

    def __init__(self, make: type[One] | type[Three], directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.place: Place = make(directory)
        self.replicas = 1 if make is One else 3

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def start(self) -> None:
        await self.place.start()
        client = self.place.client
        config = {"subjects": ["h.>"], "num_replicas": self.replicas, "allow_msg_ttl": True, "allow_rollup_hdrs": True}
        await ask(client, "STREAM.CREATE.H", {"name": "H", **config})
        good = {"durable_name": "good", "ack_policy": "all"}
        await ask(client, "CONSUMER.DURABLE.CREATE.H.good", {"stream_name": "H", "config": good})

    async def make(self, move: Move) -> None:
        """Do it, and see that whoever waits for an answer has one."""
        what, first, second = move
        client = self.place.client
        if what == "ask":
            answer = await client.request(f"$JS.API.{first}", second, timeout=20)
            json.loads(answer.data)
        elif what == "ack":
            await client.publish(f"$JS.ACK.H.good.{first.decode()}", second)
        elif what == "publish":
            answer = await client.request(first, b"x", timeout=20, headers={second[0]: second[1]})
            json.loads(answer.data)
        else:
            kind, data = second
            self.place.leader().propose(kind, data)

    async def works(self) -> None:
        answer = json.loads((await self.place.client.request("h.z", b"later", timeout=20)).data)
        assert answer.get("seq", 0) > 0, answer

    async def agreed(self) -> bytes:
        """The state of all replicas, once all have applied everything."""

        def same() -> bool:
            groups = [stream.group for stream in self.place.replicas()]
            return len(groups) == self.replicas and len({(g.applied, g.committed) for g in groups}) == 1

        await until(same)
        streams = self.place.replicas()
        assert not any(isinstance(stream.group, HostedGroup) and stream.group.failure for stream in streams)
        (state,) = {stream.state() for stream in streams}
        return state

    async def finish(self) -> None:
        """Replicas agree, and a restart brings back what was there."""
        await self.works()
        await self.agreed()
        before = _kept(self.place.leader())
        await self.place.stop()
        await self.place.start()
        assert _kept(self.place.leader()) == before
        await self.works()
        await self.agreed()
        await self.place.stop()
        if isinstance(self.place, Three):
            await self.place.end()


def _kept(stream: Stream) -> tuple[object, ...]:
    """What a restart must not change. Ephemeral consumers may end meanwhile, and messages with a TTL run out."""
    names = [name for name in stream.consumers.names() if name in ("good", "c0", "c1")]
    lasting = [
        seq
        for seq in range(max(1, stream.last_seq - 500), stream.last_seq + 1)
        if stream.live(seq) and seq not in stream.expiry.deadlines
    ]
    return stream.last_seq, lasting, names, stream.refusals.count, list(stream.refusals.newest)


@pytest.fixture(scope="module", params=[One, Three], ids=["one", "three"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(request.param, tmp_path_factory.mktemp("scene"))
    scene.run(scene.start())
    yield scene
    scene.run(scene.finish())
    scene.loop.close()


@pytest.mark.timeout(120)
@campaign(200)
@given(move=moves)
def test_whatever_is_said_is_answered_and_changes_nothing_else(scene: Scene, move: Move) -> None:
    scene.run(scene.make(move))


@pytest.mark.extended
@pytest.mark.timeout(7200)
@campaign(10_000)
@given(move=moves)
def test_whatever_is_said_is_answered_and_changes_nothing_else_at_length(scene: Scene, move: Move) -> None:
    scene.run(scene.make(move))
