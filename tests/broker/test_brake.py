"""Who publishes too fast is held for a moment, and goes on for sure: on virtual time, over memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from nimsnats.broker import turns
from nimsnats.broker.brake import HOLD, PATIENCE, Brake
from nimsnats.broker.client import ClientConnection
from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.reasons import Reason
from nimsnats.broker.server import Broker
from nimsnats.runtime import Runtime
from tests.simulation.loop import SimLoop


class Side:
    """A client over memory, and the connection that the broker has of it."""

    def __init__(self, broker: Broker) -> None:
        self.said = bytearray()
        self.local = broker.connect_local(self.said.extend)
        self.connection: ClientConnection = self.local.client
        self.local.write(b'CONNECT {"verbose":false}\r\n')

    @property
    def pongs(self) -> int:
        """How many PINGs were answered."""
        return self.said.count(b"PONG\r\n")


class Stage:
    """A broker on virtual time."""

    def __init__(self, loop: SimLoop, **options: Any) -> None:
        self.loop = loop
        self.runtime = Runtime(self._clock, Random(1), loop, boot_time_ns=self._clock)
        self.broker = Broker(BrokerOptions(**options), self.runtime)
        self.stats = self.broker.stats

    def _clock(self) -> int:
        return int(self.loop.now * 1e9)

    def brake(self) -> Brake:
        """The brake of some queue."""
        return Brake(self.runtime, self.stats)

    async def pass_time(self, seconds: float) -> None:
        """Let virtual time pass."""
        await self.runtime.sleep(seconds)


def play(story: Callable[[Stage], Awaitable[None]], **options: Any) -> None:
    """Run a story on virtual time."""
    loop = SimLoop()

    async def main() -> None:
        await story(Stage(loop, **options))

    loop.run(main(), until=10_000)


def test_a_held_publisher_reads_on_when_there_is_room() -> None:
    async def story(stage: Stage) -> None:
        side, other, brake = Side(stage.broker), Side(stage.broker), stage.brake()
        await stage.pass_time(0.1)
        brake.hold(side.connection)
        brake.hold(side.connection)
        side.local.write(b"PING\r\n")
        other.local.write(b"PING\r\n")
        await stage.pass_time(HOLD / 2)
        assert (side.pongs, other.pongs, len(brake), stage.stats.slowed) == (0, 1, 1, 1)
        brake.moved(room=False)
        await stage.pass_time(0.01)
        assert side.pongs == 0
        brake.moved(room=True)
        await stage.pass_time(0.01)
        assert (side.pongs, len(brake), stage.stats.slowed, stage.stats.slowed_total) == (1, 0, 0, 1)
        assert stage.stats.slowed_seconds == pytest.approx(HOLD / 2 + 0.01)
        assert side.connection.stalls == 1

    play(story)


def test_no_hold_lasts_longer_than_its_bound() -> None:
    async def story(stage: Stage) -> None:
        side, brake = Side(stage.broker), stage.brake()
        await stage.pass_time(0.1)
        brake.hold(side.connection)
        side.local.write(b"PING\r\n")
        await stage.pass_time(HOLD - 0.01)
        assert side.pongs == 0
        await stage.pass_time(0.02)
        assert side.pongs == 1
        brake.hold(side.connection)
        side.local.write(b"PING\r\n")
        await stage.pass_time(HOLD - 0.01)
        assert side.pongs == 1
        await stage.pass_time(0.02)
        assert side.pongs == 2

    play(story)


def test_a_queue_that_does_not_move_holds_nobody() -> None:
    async def story(stage: Stage) -> None:
        side, brake = Side(stage.broker), stage.brake()
        await stage.pass_time(0.1)
        brake.hold(side.connection)
        await stage.pass_time(PATIENCE + 0.1)
        brake.hold(side.connection)
        assert len(brake) == 0
        brake.moved(room=False)
        brake.hold(side.connection)
        assert len(brake) == 1

    play(story)


@pytest.mark.parametrize("end", ["release", "bound", "room"])
def test_several_queues_hold_one_publisher(end: str) -> None:
    async def story(stage: Stage) -> None:
        side, brakes = Side(stage.broker), [stage.brake(), stage.brake()]
        await stage.pass_time(0.1)
        for brake in brakes:
            brake.hold(side.connection)
        side.local.write(b"PING\r\n")
        brakes[0].release()
        await stage.pass_time(0.01)
        assert side.pongs == 0
        if end == "release":
            brakes[1].release()
        elif end == "room":
            brakes[1].moved(room=True)
        else:
            await stage.pass_time(HOLD)
        await stage.pass_time(0.01)
        assert side.pongs == 1
        assert [len(brake) for brake in brakes] == [0, 0]

    play(story)


def test_a_stalled_publisher_that_is_held_goes_on_after_both() -> None:
    async def story(stage: Stage) -> None:
        side, brake = Side(stage.broker), stage.brake()
        await stage.pass_time(0.1)
        side.connection.stalled = True
        side.local.write(b"PING\r\n")
        await stage.pass_time(0.001)
        brake.hold(side.connection)
        side.local.write(b"PING\r\n")
        await stage.pass_time(0.1)
        assert side.pongs == 1
        brake.release()
        await stage.pass_time(0.001)
        assert side.pongs == 2

    play(story)


def test_who_closes_while_held_is_forgotten() -> None:
    async def story(stage: Stage) -> None:
        side, brake = Side(stage.broker), stage.brake()
        await stage.pass_time(0.1)
        brake.hold(side.connection)
        side.connection.close(Reason.KICKED)
        assert (len(brake), stage.stats.slowed) == (0, 0)
        brake.hold(side.connection)
        brake.release()
        await stage.pass_time(2 * HOLD)
        assert len(brake) == 0

    play(story)


def test_who_is_held_is_not_stale() -> None:
    """Its PONGs wait behind what is not read."""

    async def story(stage: Stage) -> None:
        side, idle, brake = Side(stage.broker), Side(stage.broker), stage.brake()
        await stage.pass_time(0.01)
        for _ in range(10):
            brake.hold(side.connection)
            await stage.pass_time(0.2)
            brake.moved(room=False)
        assert idle.connection.reason is Reason.STALE
        assert not side.connection.closed

    play(story, ping_interval=0.3, ping_max=1)


def test_publishers_come_back_a_few_at_a_time() -> None:
    """Each may bring as much as it is read at once."""

    async def story(stage: Stage) -> None:
        sides, brake = [Side(stage.broker) for _ in range(50)], stage.brake()
        await stage.pass_time(0.1)
        for side in sides:
            brake.hold(side.connection)
        brake.moved(room=True)
        freed = [side for side in sides if not side.connection.halts]
        assert 0 < len(freed) < 10 and freed == sides[: len(freed)]
        while len(brake):
            before = len(brake)
            brake.moved(room=True)
            assert len(brake) < before

    play(story)


def test_what_is_read_in_a_turn_follows_its_cost() -> None:
    async def story(stage: Stage) -> None:
        connection = Side(stage.broker).connection
        for spent in (0, 0, 0, 0):
            stage.broker.turns.taken(connection, spent)
            await stage.pass_time(0)
        assert connection.share == turns.MOST
        stage.broker.turns.taken(connection, 4 * turns.BUDGET)
        await stage.pass_time(0)
        assert connection.share == turns.MOST // 4
        stage.broker.turns.taken(connection, 1000 * turns.BUDGET)
        await stage.pass_time(0)
        assert connection.share == turns.LEAST

    play(story)


def test_so_many_read_on_in_one_turn_and_the_others_in_the_next() -> None:
    async def story(stage: Stage) -> None:
        sides = [Side(stage.broker) for _ in range(2 * turns.TOGETHER + 5)]
        await stage.pass_time(0.1)
        for side in sides:
            stage.broker.turns.taken(side.connection, 0)
        counts: list[int] = []

        def count() -> None:
            counts.append(sum(not side.connection.halts for side in sides))
            if len(counts) < 4:
                stage.loop.call_soon(count)

        stage.loop.call_soon(count)
        await stage.pass_time(0.1)
        assert counts == [turns.TOGETHER, 2 * turns.TOGETHER, len(sides), len(sides)]

    play(story)
