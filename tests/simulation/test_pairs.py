"""Two whole nodes and a witness that may fail: nothing is lost, nothing diverges, and a weaker rule shows."""

from __future__ import annotations

import pytest

from tests.simulation.child import run_seeds
from tests.simulation.witness_history import MUTATIONS, pairs

SEEDS = range(1, 9)


def test_no_seed_of_two_nodes_breaks_a_promise() -> None:
    with pairs():
        results = list(run_seeds(SEEDS, 20))
    failures = [f"seed {result.seed}: {result.failure}" for result in results if result.failure]
    assert not failures, "\n".join(failures)
    assert sum(result.elections for result in results), "somebody must have gone alone"


@pytest.mark.extended
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_weaker_rule_is_caught(mutation: str) -> None:
    with pairs():
        results = run_seeds(range(1, 40), 20, mutation=mutation)
        assert any("applies another entry than was chosen" in result.failure for result in results)


@pytest.mark.extended
@pytest.mark.timeout(1800)
def test_campaign() -> None:
    with pairs():
        results = list(run_seeds(range(1000, 1300), 25))
    failures = [f"seed {result.seed}: {result.failure}" for result in results if result.failure]
    assert not failures, "\n".join(failures)
    print(f"{len(results)} histories of two nodes, {sum(result.elections for result in results)} times alone")
