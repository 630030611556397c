"""Requests that come over routes wait in a bounded queue and are worked off in slices."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from nimsnats.jetstream.api import queue
from nimsnats.jetstream.api.queue import RequestQueue
from nimsnats.runtime import Runtime
from nimsnats.slices import BUDGET, Slices
from tests.broker.peer import until
from tests.jetstream.stand import running


class _Bench:
    """A queue whose clock moves when it is read: each look ends a slice."""

    def __init__(self) -> None:
        clock = itertools.count(0, BUDGET)
        loop = asyncio.get_running_loop()
        self.runtime = Runtime(lambda: 0, random.Random(1), loop, boot_time_ns=lambda: next(clock))
        self.told: list[int] = []
        self.done: list[int] = []
        self.slices = Slices(self.runtime)
        log = logging.getLogger("nimsnats.jetstream")
        self.queue = RequestQueue(self.runtime, self.slices, log, self.told.append)

    def put(self, *numbers: int) -> None:
        for number in numbers:
            self.queue.put(10, self.done.append, number)


async def test_a_flood_gives_the_loop_back_after_each_slice_and_keeps_its_order() -> None:
    bench = _Bench()
    bench.put(*range(200))
    assert bench.done == []  # nothing is worked off while a route is read
    before, turns = 0, 0
    while len(bench.done) < 200:
        await asyncio.sleep(0)
        assert len(bench.done) - before <= 1
        before, turns = len(bench.done), turns + 1
    assert turns >= 200 and bench.slices.cuts == 199
    assert bench.done == list(range(200))


async def test_what_comes_after_the_queue_was_empty_goes_on() -> None:
    bench = _Bench()
    for number in range(3):
        bench.put(number)
        for _ in range(4):
            await asyncio.sleep(0)
        assert bench.done == list(range(number + 1)) and len(bench.queue) == 0


@pytest.mark.errors_inside
async def test_an_error_costs_one_request() -> None:
    bench = _Bench()
    bench.put(1)
    bench.queue.put(0, lambda: 1 // 0)
    bench.put(2)
    for _ in range(10):
        await asyncio.sleep(0)
    assert bench.done == [1, 2]


@pytest.mark.parametrize("bound", ["MOST", "MOST_BYTES"])
async def test_a_full_queue_drops_what_waits_and_says_so(
    bound: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue, bound, 50 if bound == "MOST" else 500)
    caplog.set_level(logging.WARNING, "nimsnats.jetstream")
    bench = _Bench()
    bench.put(*range(120))
    assert bench.told == [50, 50] and bench.queue.dropped == 100 and len(bench.queue) == 20
    assert [record.getMessage() for record in caplog.records] == [
        "JetStream API queue limit reached, dropping 50 requests"
    ]
    for _ in range(50):
        await asyncio.sleep(0)
    assert bench.done == list(range(100, 120))


async def test_a_node_tells_the_system_account_what_it_has_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MOST", 50)
    events: list[Any] = []
    answers: list[bytes] = []
    async with running(tmp_path) as stand:
        engine, account = stand.engine, stand.broker.global_account
        stand.broker.system_account.subscribe(
            b"$JS.EVENT.ADVISORY.API.LIMIT_REACHED", lambda *message: events.append(json.loads(message[3]))
        )
        account.subscribe(b"answers.*", lambda *message: answers.append(message[0]))
        dispatcher = engine.dispatcher("$G")
        assert dispatcher is not None
        for number in range(60):
            dispatcher.take(b"$JS.API.STREAM.NAMES", b"answers.%d" % number, b"", b"", 1)
        assert [event["dropped"] for event in events] == [50]
        assert events[0]["type"] == "io.nats.jetstream.advisory.v1.api_limit_reached"
        assert events[0]["server"] == engine.server_name
        await until(lambda: len(answers) == 10)
        assert answers == [b"answers.%d" % number for number in range(50, 60)]
