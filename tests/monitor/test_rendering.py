"""Large answers are rendered in slices, and look as if they had been rendered at once."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from nimsnats.monitor.format import pretty
from nimsnats.monitor.rendering import pretty_in_slices
from nimsnats.runtime import Runtime
from nimsnats.slices import BUDGET, Slices

VALUES: list[object] = [
    {},
    [],
    {"a": [], "b": {}, "c": None, "d": 1.5, "e": True, "text": 'é <&> \u2028 " \\ \n'},
    {"rows": [{"name": f"s<{number}>", "state": {"bytes": number, "subjects": ["é", "&"]}} for number in range(400)]},
]


def _slices(step: int) -> Slices:
    clock = itertools.count(0, step)
    loop = asyncio.get_running_loop()
    return Slices(Runtime(lambda: 0, random.Random(1), loop, boot_time_ns=lambda: next(clock)))


@pytest.mark.parametrize("indent", [0, 2, 3])
@pytest.mark.parametrize("value", VALUES)
async def test_slices_change_nothing(value: object, indent: int) -> None:
    assert await pretty_in_slices(_slices(BUDGET), value, indent) == pretty(value, indent)


async def test_the_loop_is_given_back_between_slices() -> None:
    slices = _slices(BUDGET)  # each look at the clock ends a slice
    turns = 0
    rendering = asyncio.ensure_future(pretty_in_slices(slices, VALUES[-1]))
    while not rendering.done():
        await asyncio.sleep(0)
        turns += 1
    assert slices.cuts >= 20 and turns > slices.cuts
