"""Who publishes faster than a stream stores is slowed down, not dropped; a limit that is reached costs what comes, not
what waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import StreamInfo

from nimsnats.broker import brake, route_brake
from nimsnats.jetstream import publish, waiting
from nimsnats.jetstream.publish import Ingest
from nimsnats.jetstream.waiting import Waiting
from tests.broker.peer import Peer, until
from tests.broker.route_stand import routed
from tests.jetstream.stand import Stand, running
from tests.jetstream.trio import Trio, trio

LONG = 3600.0
"""Seconds; whatever is waited for must not need them."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small marks, so that little traffic is a flood."""
    for name, value in (("FULL_MESSAGES", 200), ("ROOM_MESSAGES", 50), ("FULL_BYTES", 2**20), ("ROOM_BYTES", 2**19)):
        monkeypatch.setattr(publish, name, value)
    for module in (publish, waiting):
        monkeypatch.setattr(module, "MAX_BATCH", 64)


@pytest.fixture
def for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holds end by nothing but what is tested."""
    monkeypatch.setattr(brake, "HOLD", LONG)
    monkeypatch.setattr(brake, "PATIENCE", LONG)


def flood(count: int, size: int, subject: bytes = b"s") -> bytes:
    """Publishes that ask for no acknowledgement."""
    return (b"PUB %b %d\r\n" % (subject, size) + b"x" * size + b"\r\n") * count


def acked(count: int, size: int) -> bytes:
    """Publishes that do."""
    return b"".join(b"PUB s i.%d %d\r\n%b\r\n" % (number, size, b"x" * size) for number in range(count))


async def told(peer: Peer) -> bytes:
    """The next line that is no PING: a server that is slow sends its first one."""
    while (line := await peer.line()) == b"PING":
        pass
    return line


class Still:
    """A stream whose disk stands still: what is proposed is kept until `go_on`."""

    def __init__(self, stand: Stand, name: str = "S") -> None:
        self.stream = stand.stream(name)
        self.ingest: Ingest = stand.engine.accounts["$G"].streams[name].ingest
        self.stats = stand.broker.stats
        self.held: list[tuple[publish.Publication, bytes]] = []
        self.stream.propose_batch = self._keep  # type: ignore[method-assign]

    def _keep(self, publication: publish.Publication, data: bytes) -> None:
        self.held.append((publication, data))

    def go_on(self) -> None:
        """The disk works again."""
        del self.stream.propose_batch
        for publication, data in self.held:
            self.stream.propose_batch(publication, data)

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return len(self.ingest._pending)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("count", "size"), [(5000, 100), (80, 65536)])
async def test_a_flood_is_stored_whole(tmp_path: Path, count: int, size: int) -> None:
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        peer, other = [await Peer.connect(stand.broker.port) for _ in range(2)]
        peer.send(flood(count, size))
        ending = asyncio.ensure_future(peer.sync())
        while not ending.done():
            assert set(await other.sync()) <= {b"PING"}
            assert len(stand.engine.accounts["$G"].streams["S"].ingest._pending) < 30_000
        await until(lambda: stand.stream("S").store.last_seq == count)
        stats = stand.broker.stats
        assert stats.slowed_total and stats.slowed_seconds and not stats.slowed


@pytest.mark.extended
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("count", "size"), [(300_000, 100), (12_000, 65536)])
async def test_a_large_flood_is_stored_whole(tmp_path: Path, count: int, size: int) -> None:
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        peer = await Peer.connect(stand.broker.port)
        for _ in range(10):
            peer.send(flood(count // 10, size))
            await peer.writer.drain()
        await peer.sync()
        await until(lambda: stand.stream("S").store.last_seq == count, 200)


class Counted(list[bytes]):
    """A column that counts the elements which are looked at, copied or taken out."""

    touched = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        Counted.touched += len(found) if isinstance(at, slice) else 1
        return found

    def __delitem__(self, at: Any) -> None:
        Counted.touched += len(range(len(self))[at]) if isinstance(at, slice) else 1
        super().__delitem__(at)

    def __iter__(self) -> Any:
        for each in super().__iter__():
            Counted.touched += 1
            yield each

    def __add__(self, others: Any) -> Any:
        Counted.touched += len(self) + len(others)
        return super().__add__(others)


def counted(columns: Waiting) -> None:
    """Have what happens to these columns be counted."""
    for name in ("subjects", "replies", "headers", "payloads"):
        setattr(columns, name, Counted(getattr(columns, name)))
    Counted.touched = 0


@pytest.mark.parametrize("rows", [False, True])
async def test_a_full_queue_refuses_in_steps_that_do_not_depend_on_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: bool
) -> None:
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        still = Still(stand)
        steps: list[int] = []
        for most in (1000, 20_000):
            monkeypatch.setattr(publish, "QUEUE_MESSAGES", most)
            monkeypatch.setattr(publish, "FULL_MESSAGES", most // 2)
            while still.waiting < most or len(still.held) < publish.MAX_FLYING:
                still.ingest.receive(b"s", b"", b"", b"x", None)
                if len(still.held) < publish.MAX_FLYING:
                    await asyncio.sleep(0)
            counted(still.ingest._pending)
            for _ in range(50):
                if rows:
                    still.ingest.receive_rows(b"s", [b"a", b"b"], [b"x", b"x"], None)
                else:
                    still.ingest.receive(b"s", b"r", b"", b"x", None)
            assert still.waiting == most
            steps.append(Counted.touched)
        assert steps[0] == steps[1] < 50 * 50
        still.go_on()


async def deleted(stand: Stand, still: Still) -> None:
    """The stream goes."""
    await stand.client.jetstream().delete_stream("S")
    still.held.clear()


async def narrowed(stand: Stand, still: Still) -> None:
    """The disk works again, and the stream listens to something else."""
    still.go_on()
    await stand.client.jetstream().update_stream(name="S", subjects=["t"])


async def closed(stand: Stand, still: Still) -> None:
    """The group stops on this node."""
    still.ingest.close()


async def unled(stand: Stand, still: Still) -> None:
    """Nobody leads the stream for longer than messages wait for a leader."""
    still.stream.leading = False
    for publication, _ in still.held:
        publication.refused(ConnectionError())


async def repaired(stand: Stand, still: Still) -> None:
    """The disk works again."""
    still.go_on()


@pytest.mark.usefixtures("small", "for_ever")
@pytest.mark.parametrize("end", [deleted, narrowed, closed, unled, repaired])
async def test_a_held_publisher_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Stand, Still], Any]
) -> None:
    monkeypatch.setattr(publish, "_LEADERLESS", 0.1)
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        still, peer = Still(stand), await Peer.connect(stand.broker.port)
        peer.send(flood(1000, 100))
        await until(lambda: still.stats.slowed == 1)
        peer.send(b"PING\r\n")
        await stand.client.flush()
        await end(stand, still)
        assert await told(peer) == b"PONG"
        await until(lambda: not still.stats.slowed)


@pytest.mark.usefixtures("small", "for_ever")
async def test_a_publisher_that_hangs_up_while_it_is_held_is_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        still, peer = Still(stand), await Peer.connect(stand.broker.port)
        peer.send(flood(1000, 100))
        await until(lambda: still.stats.slowed == 1)
        (held,) = [each for each in stand.broker.clients.values() if each.brakes]
        held.transport.abort()  # type: ignore[union-attr]
        await until(lambda: not still.stats.slowed)
        still.go_on()


@pytest.mark.usefixtures("small")
async def test_behind_the_bound_publishes_are_refused_and_nothing_acknowledged_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brake, "HOLD", 0.05)
    monkeypatch.setattr(brake, "PATIENCE", 0.1)
    monkeypatch.setattr(publish, "QUEUE_MESSAGES", 1000)
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        still, peer = Still(stand), await Peer.connect(stand.broker.port)
        peer.send(b"SUB i.* 1\r\n" + acked(5000, 100))
        lines = await peer.sync()
        refused = lines.count(b"NATS/1.0 429 Too Many Requests")
        kept = sum(len(publication.batch) for publication, _ in still.held) + 1000
        assert refused == 5000 - kept and still.waiting == 1000
        still.go_on()
        acks: list[dict[str, Any]] = []
        while len(acks) < kept:
            line = await peer.line()
            if line.startswith(b"{"):
                acks.append(json.loads(line))
        assert [ack["seq"] for ack in acks] == list(range(1, kept + 1))
        assert stand.stream("S").store.last_seq == kept


@asynccontextmanager
async def far_from_the_leader(nodes: Trio, replicas: int) -> AsyncIterator[tuple[str, str, StreamInfo]]:
    """A stream on three nodes: who leads it, and a node that does not."""
    made = await nodes.contexts[0].add_stream(name="S", subjects=["s"], num_replicas=replicas)
    leader = await nodes.led("S")
    away = next(node.name for node in nodes.nodes if node.name != leader)
    yield leader, away, made


async def port(nodes: Trio, name: str) -> Peer:
    """A connection to a node."""
    return await Peer.connect(nodes[name].server.broker.port)


@pytest.mark.usefixtures("small")
async def test_floods_through_other_nodes_are_stored_whole(tmp_path: Path) -> None:
    """Through a follower's relay, and over a route from a node without a replica, whose other traffic flows on."""
    async with trio(tmp_path) as nodes:
        for replicas in (3, 1):
            async with far_from_the_leader(nodes, replicas) as (leader, away, _):
                stream = nodes[leader].app.streams["S"].stream
                peer, other, listener = await port(nodes, away), await port(nodes, away), await port(nodes, leader)
                await listener.sync(b"SUB talk 1\r\n")
                account = nodes[away].server.broker.accounts["APP"]
                await until(lambda account=account: account.has_interest(b"talk"))
                if replicas == 3:
                    await until(lambda away=away: "S" in nodes[away].app.streams)
                    await until(lambda away=away: bool(nodes[away].app.streams["S"].stream.group.leader))
                await until(lambda account=account: account.has_interest(b"s"))
                peer.send(flood(1500, 100) + flood(20, 65536))
                ending = asyncio.ensure_future(peer.sync())
                while not ending.done():
                    other.send(b"PUB talk 2\r\nhi\r\n")
                    assert [await told(listener) for _ in range(2)] == [b"MSG talk 1 2", b"hi"]
                await until(lambda stream=stream: stream.store.last_seq == 1520)
                assert nodes[away].server.broker.stats.slowed_total
                assert not nodes[leader].server.broker.stats.slowed_total, "no route is held"
                for each in (peer, other, listener):
                    each.close()
            await nodes.contexts[0].delete_stream("S")


@pytest.mark.usefixtures("small", "for_ever")
async def test_who_is_held_for_a_queue_at_another_node_goes_on_when_that_is_gone(tmp_path: Path) -> None:
    """Because it says so, or because it says nothing any more; meanwhile whoever shares the route is served."""
    async with trio(tmp_path) as nodes, far_from_the_leader(nodes, 1) as (leader, away, _):
        node, stats = nodes[leader], nodes[away].server.broker.stats
        await until(lambda: nodes[away].server.broker.accounts["APP"].has_interest(b"s"))
        stream = node.app.streams["S"].stream
        held: list[tuple[publish.Publication, bytes]] = []
        stream.propose_batch = lambda publication, data: held.append((publication, data))  # type: ignore[method-assign]
        peer = await port(nodes, away)
        table = nodes[away].server.routes
        assert table is not None
        for says_so in (False, True):
            ending = asyncio.ensure_future(flooding(peer))
            await until(lambda: stats.slowed == 1)
            assert list(table.brakes.slowed) == [(b"APP", b"$JS.S.S")]
            assert await nodes.ask(nodes.nodes.index(nodes[away]), "INFO")
            if says_so:
                del stream.propose_batch
                for publication, data in held:
                    stream.propose_batch(publication, data)
            await until(lambda: not stats.slowed)
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)


async def flooding(peer: Peer) -> None:
    """Publish on and on, as fast as the server reads."""
    while True:
        peer.send(flood(100, 100))
        await peer.writer.drain()
        await asyncio.sleep(0)


NONSENSE: Iterable[bytes] = (
    b"", b"null", b"[]", b"{}", b"\xff", b'{"server": 1, "account": "A", "group": "G", "seconds": 1}',
    b'{"server": "X", "account": "A", "group": "G", "seconds": "1"}',
    b'{"server": "X", "account": "A", "group": "G", "seconds": true}',
    b'{"server": "X", "account": ["A"], "group": "G", "seconds": 1}',
    b'{"server": "X", "account": "A", "group": "G"}',
)  # fmt: skip


async def test_notices_that_make_no_sense_hold_nobody() -> None:
    async with routed("A") as table:
        broker = table.broker
        for payload in NONSENSE:
            broker.system_account.publish(route_brake.SUBJECT, payload)
        assert not table.brakes.slowed
        assert not broker.runtime.fence.counts
        broker.system_account.publish(
            route_brake.SUBJECT, b'{"server": "X", "account": "A", "group": "G", "seconds": 1}'
        )
        assert list(table.brakes.slowed) == [(b"A", b"G")]
