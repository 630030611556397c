"""A fixed set of seeds is clean, and a seed means the same every time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.child import run_seed, run_seeds

SEEDS = range(1, 25)


def check(seeds: range, steps: int) -> None:
    """Run them, and fail with what was violated."""
    failures = [f"seed {result.seed}: {result.failure}" for result in run_seeds(seeds, steps) if result.failure]
    assert not failures, "\n".join(failures)


def test_no_seed_of_a_fixed_set_breaks_a_promise() -> None:
    check(SEEDS, 20)


def test_a_seed_is_the_same_history_every_time() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7"]
    told = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": order}, capture_output=True, text=True, check=True
        ).stdout.partition(" virtual s")[0]
        for order in ("1", "2")
    }
    result = run_seed(7, 20)
    assert len(told) == 1 and f"trace {result.trace:08x}" in told.pop()


@pytest.mark.extended
@pytest.mark.timeout(1800)
def test_campaign() -> None:
    failures = [
        f"seed {result.seed}: {result.failure}" for result in run_seeds(range(1000, 1500), 25) if result.failure
    ]
    assert not failures, "\n".join(failures)
