"""A fixed set of seeds is clean, and a seed means the same every time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

import pytest

from tests.simulation.child import run_seed, run_seeds
from tests.simulation.mutations import MUTATIONS

SEEDS = (
    *range(1, 33), 190, 326, 1073, 1125, 2210, 2308, 3009, 10195, 10202, 30638, 50372, 50377, 60105, 90120, 91796,
    93380, 96209,
)  # fmt: skip
"""Any; and some that have found something once. Histories change with the code: they may be others now."""


def check(seeds: Iterable[int], steps: int) -> None:
    """Run them, and fail with what was violated."""
    failures = [f"seed {result.seed}: {result.failure}" for result in run_seeds(seeds, steps) if result.failure]
    assert not failures, "\n".join(failures)


@pytest.mark.timeout(300)
def test_no_seed_of_a_fixed_set_breaks_a_promise() -> None:
    check(SEEDS, 20)


@pytest.mark.parametrize("seed", [7, 13])
def test_a_seed_is_the_same_history_every_time(seed: int) -> None:
    """Also where sets have another order, in another process."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
    traces = {f"{run_seed(seed, 20).trace:08x}"}
    for order in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": order}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        traces.add(told.partition("trace ")[2][:8])
    assert len(traces) == 1


@pytest.mark.extended
@pytest.mark.timeout(1800)
def test_campaign() -> None:
    failures = [
        f"seed {result.seed}: {result.failure}" for result in run_seeds(range(1000, 1500), 25) if result.failure
    ]
    assert not failures, "\n".join(failures)


@pytest.mark.extended
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_bug_is_found(name: str) -> None:
    """By a seed that is clean without it, at or behind the first one that found it when it was planted."""
    first = MUTATIONS[name].seed
    results = run_seeds(range(first, first + 150), 20, mutation=name)
    assert any(result.failure and not run_seed(result.seed, 20).failure for result in results)
