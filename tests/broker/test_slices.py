"""What a client asks for is worked off in slices: others have their turn in between, and nothing is lost or changed."""

from __future__ import annotations

import asyncio
import random
import time

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.reasons import Reason
from nimsnats.broker.server import Broker
from nimsnats.runtime import Runtime
from nimsnats.slices import BUDGET
from tests.broker.peer import Peer, running, until

CONNECT = b'CONNECT {"verbose":false,"pedantic":false}\r\n'


class _Both:
    """A broker whose clock moves only when it is read, and two clients in memory: one asks for much, one for a PONG."""

    def __init__(self, step: int) -> None:
        self.now = 0
        self.step = step
        loop = asyncio.get_running_loop()
        self.broker = Broker(BrokerOptions(), Runtime(lambda: 0, random.Random(1), loop, boot_time_ns=self._clock))
        self.heard = bytearray()
        self.answered = bytearray()
        self.much = self.broker.connect_local(self.heard.extend)
        self.other = self.broker.connect_local(self.answered.extend)

    def _clock(self) -> int:
        self.now += self.step
        return self.now

    async def turns_until(self, done: bytes, by: bytearray) -> int:
        turns = 0
        while done not in by:
            await asyncio.sleep(0)
            turns += 1
            assert turns < 100_000
        return turns


async def test_subscriptions_in_one_write_leave_others_their_turn() -> None:
    both = _Both(BUDGET)  # each look at the clock ends a slice
    both.much.write(CONNECT)
    both.other.write(CONNECT)
    await both.turns_until(b"INFO", both.answered)
    both.much.write(b"".join(b"SUB a.%d %d\r\n" % (i, i) for i in range(4000)) + b"PING\r\n")
    both.other.write(b"PING\r\n")
    soon = await both.turns_until(b"PONG", both.answered)
    later = await both.turns_until(b"PONG", both.heard)
    assert soon < 8 and later > 40
    assert both.broker.global_account.interest.count == 4000


async def test_publishes_to_many_receivers_leave_others_their_turn() -> None:
    both = _Both(BUDGET)
    both.much.write(CONNECT + b"".join(b"SUB fan %d\r\n" % i for i in range(2000)) + b"PING\r\n")
    both.other.write(CONNECT)
    await both.turns_until(b"PONG", both.heard)
    both.heard.clear()
    both.much.write(b"PUB fan 1\r\nx\r\n" * 30 + b"PING\r\n")
    both.other.write(b"PING\r\n")
    soon = await both.turns_until(b"PONG", both.answered)
    assert soon < 8
    assert both.heard.count(b"MSG fan ") <= 2000 * 8
    await both.turns_until(b"PONG", both.heard)
    assert both.heard.count(b"MSG fan ") == 2000 * 30
    assert both.heard.endswith(b"PONG\r\n")


async def test_in_a_simulator_nothing_is_cut() -> None:
    both = _Both(0)
    both.much.write(CONNECT + b"".join(b"SUB a.%d %d\r\n" % (i, i) for i in range(2000)) + b"PING\r\n")
    await both.turns_until(b"PONG", both.heard)
    assert both.broker.slices.cuts == 0


async def test_everything_is_done_in_order_however_it_is_cut() -> None:
    async with running() as broker:
        broker.runtime.boot_time_ns = lambda: time.monotonic_ns() * 1000  # slices of four microseconds
        peer = await Peer.connect(broker.port)
        said = b"".join(
            b"SUB b.%d %d\r\nPUB b.%d 1\r\nx\r\nUNSUB %d\r\nPUB b.%d 1\r\ny\r\n" % (i, i, i, i, i) for i in range(3000)
        )
        lines = await peer.sync(said)
        assert lines == [line for i in range(3000) for line in (b"MSG b.%d %d 1" % (i, i), b"x")]
        assert broker.slices.cuts > 10
        assert broker.global_account.interest.count == 0


async def test_a_client_that_leaves_while_its_input_is_held_is_gone() -> None:
    both = _Both(BUDGET)
    both.much.write(CONNECT + b"".join(b"SUB a.%d %d\r\n" % (i, i) for i in range(4000)))
    await until(lambda: both.broker.slices.cuts >= 2)
    (client, *_) = both.broker.clients.values()
    client.close(Reason.STALE)
    for _ in range(100):
        await asyncio.sleep(0)  # its next slice would be now
    assert both.broker.global_account.interest.count == 0


async def test_a_client_with_many_subscriptions_leaves_in_slices() -> None:
    both = _Both(0)
    both.much.write(CONNECT + b"".join(b"SUB a.%d.* %d\r\n" % (i, i) for i in range(4000)) + b"PING\r\n")
    both.other.write(CONNECT)
    await both.turns_until(b"PONG", both.heard)
    both.step = BUDGET
    interest = both.broker.global_account.interest
    both.much.close()
    await until(lambda: len(both.broker.clients) == 1)
    assert 3000 < interest.count < 4000
    both.other.write(b"PING\r\n")
    await both.turns_until(b"PONG", both.answered)
    assert interest.count
    await until(lambda: not interest.count)
    assert 10 < both.broker.slices.cuts < 20
