"""Slices of long work, counted on a clock that moves when it is looked at."""

from __future__ import annotations

import asyncio
import random

from nimsnats.runtime import Runtime
from nimsnats.slices import BUDGET, TOGETHER, Slices


def _runtime(step: int) -> Runtime:
    """A runtime whose clock goes on by `step` nanoseconds each time that it is read."""
    now = 0

    def clock() -> int:
        nonlocal now
        now += step
        return now

    return Runtime(lambda: 0, random.Random(1), asyncio.get_running_loop(), boot_time_ns=clock)


async def test_cut_work_goes_on_in_turns_and_a_few_at_a_time() -> None:
    slices = Slices(_runtime(1))
    went: list[int] = []
    for number in range(10):
        slices.later(lambda number=number: went.append(number))
    seen: list[int] = []
    while len(went) < 10:
        await asyncio.sleep(0)
        seen.append(len(went))
    assert went == list(range(10))
    assert seen == [TOGETHER, 2 * TOGETHER, 10]
    assert slices.cuts == 10


async def test_a_task_rests_when_its_slice_is_over_and_others_run_meanwhile() -> None:
    slices = Slices(_runtime(BUDGET // 4))
    order: list[str] = []

    async def work(name: str) -> None:
        end = slices.end()
        for step in range(8):
            order.append(f"{name}{step}")
            if slices.over(end):
                end = await slices.rest()

    await asyncio.gather(work("a"), work("b"))
    assert sorted(order) == [f"{name}{step}" for name in "ab" for step in range(8)]
    assert "b0" in order[:5] and slices.cuts >= 2


async def test_where_time_stands_still_nothing_is_cut() -> None:
    slices = Slices(_runtime(0))
    end = slices.end()
    assert not any(slices.over(end) for _ in range(1000))


async def test_who_is_given_up_while_it_rests_keeps_nobody_waiting() -> None:
    slices = Slices(_runtime(1))
    gone = asyncio.create_task(slices.rest())
    stays = asyncio.create_task(slices.rest())
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays > 0
    assert gone.cancelled()
