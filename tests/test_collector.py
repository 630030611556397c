"""The garbage collector of a process: what is old is frozen, cycles are found before, and all is left as it was."""

from __future__ import annotations

import gc
import weakref

import pytest

from nimsnats import collector as collector_module
from nimsnats.collector import MIDDLE, OLD, YOUNG, Collector
from nimsnats.runtime import Runtime


class _Thing:
    """Something that can be part of a cycle."""

    def __init__(self) -> None:
        self.other: object = None


def _grow(kept: list[_Thing], count: int) -> None:
    kept.extend(_Thing() for _ in range(count))


async def test_growth_is_frozen_and_no_full_collection_comes_by_itself() -> None:
    before = gc.get_threshold()
    fulls = gc.get_stats()[2]["collections"]
    collector = Collector(Runtime.real())
    collector.start()
    try:
        started = gc.get_stats()[2]["collections"] - fulls
        kept: list[_Thing] = []
        frozen = gc.get_freeze_count()
        looks = 0
        while collector.freezes < 3:
            _grow(kept, YOUNG * MIDDLE)
            collector.look()
            looks += 1
            assert looks < 100
        assert gc.get_freeze_count() - frozen > 2 * OLD * YOUNG * MIDDLE
        assert gc.get_stats()[2]["collections"] - fulls == started + collector.freezes
        assert collector.pauses >= 3 * OLD and collector.longest <= collector.paused
        gone = weakref.ref(kept.pop(0))
        assert gone() is None  # reference counts end what is frozen
    finally:
        collector.stop()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


async def test_a_cycle_is_found_before_it_would_be_frozen() -> None:
    collector = Collector(Runtime.real())
    collector.start()
    try:
        kept: list[_Thing] = []
        thing = _Thing()
        thing.other = thing
        gone = weakref.ref(thing)
        _grow(kept, YOUNG * MIDDLE * 2)  # makes it old
        del thing
        while not collector.freezes:
            _grow(kept, YOUNG * MIDDLE)
            collector.look()
        assert gone() is None
    finally:
        collector.stop()


async def test_a_cycle_among_frozen_objects_is_found_when_all_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "FEW", 1 << 40)  # however large the process of the tests has become
    collector = Collector(Runtime.real())
    thing = _Thing()
    thing.other = thing
    gone = weakref.ref(thing)
    collector.start()
    try:
        del thing
        gc.collect()
        assert gone() is not None
        collector.look_at_all()
        assert gone() is None
    finally:
        collector.stop()
        collector.stop()
