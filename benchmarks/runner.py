"""Puts servers through scenarios in turn and takes medians.

Owns the order: within a scenario all servers live side by side (idle but for the one that is measured) and are measured
A B A B …, so that drift of the machine hits all of them alike.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import core, footprint, jetstream, latency
from benchmarks.scenario import Metric, Scenario, Settings
from benchmarks.servers import KINDS, Server

SCENARIOS: tuple[Scenario, ...] = (
    *core.SCENARIOS,
    *latency.SCENARIOS,
    *jetstream.SCENARIOS,
    *footprint.SCENARIOS,
)

OURS: tuple[str, ...] = ("nims", "base", "go-again")
"""Whom the ratios are about: the first of these that is measured."""


@dataclass(slots=True)
class Outcome:
    """All rounds of one scenario: server kind -> one dictionary of metric values a round."""

    scenario: Scenario
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict[str, list[dict[str, float]]])
    failures: dict[str, str] = field(default_factory=dict[str, str])

    def median(self, kind: str, key: str) -> float | None:
        """Median over the rounds; None when the kind was not measured."""
        values = [round_[key] for round_ in self.rounds.get(kind, ())]
        return statistics.median(values) if values else None

    def ratio(self, metric: Metric, ours: str, theirs: str) -> float | None:
        """How many times as good `ours` is as `theirs`, from the medians."""
        mine, other = self.median(ours, metric.key), self.median(theirs, metric.key)
        return None if mine is None or other is None else metric.ratio(mine, other)

    def spread(self, metric: Metric, ours: str, theirs: str) -> tuple[float, float] | None:
        """Smallest and largest ratio of any two measurements that followed each other."""
        pairs = zip(self.rounds.get(ours, ()), self.rounds.get(theirs, ()), strict=False)
        ratios = [metric.ratio(mine[metric.key], other[metric.key]) for mine, other in pairs]
        return (min(ratios), max(ratios)) if ratios else None


def select(only: Sequence[str]) -> list[Scenario]:
    """Scenarios whose name contains one of `only`; all of them when it is empty."""
    return [s for s in SCENARIOS if not only or any(word in s.name for word in only)]


def run(
    scenarios: Sequence[Scenario],
    kinds: Sequence[str],
    settings: Settings,
    base: Path | None = None,
    progress: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> list[Outcome]:
    """Measure every scenario on those of `kinds` that it is meant for; stores live below `base`."""
    footprint.raise_descriptor_limit()
    outcomes: list[Outcome] = []
    for scenario in scenarios:
        chosen = [kind for kind in kinds if kind in scenario.servers or kind in ("go-again", "base")]
        began = time.perf_counter()
        outcome = _run_one(scenario, chosen, settings, base)
        outcomes.append(outcome)
        progress(f"{scenario.name:28} {_summary(outcome, chosen)}  ({time.perf_counter() - began:.0f} s)")
    return outcomes


def _run_one(scenario: Scenario, kinds: Sequence[str], settings: Settings, base: Path | None) -> Outcome:
    outcome = Outcome(scenario, {kind: [] for kind in kinds})
    with ExitStack() as stack:
        standing: dict[str, Server] = {}
        for _ in range(settings.rounds):
            for kind in kinds:
                if kind in outcome.failures:
                    continue
                try:
                    if scenario.fresh:
                        with Server(KINDS[kind], base) as server:
                            outcome.rounds[kind].append(scenario.measure(server, settings))
                        continue
                    if kind not in standing:
                        standing[kind] = stack.enter_context(Server(KINDS[kind], base))
                    os.sync()
                    outcome.rounds[kind].append(scenario.measure(standing[kind], settings))
                except Exception as error:  # one scenario that fails on one server must not cost the whole run
                    outcome.failures[kind] = f"{type(error).__name__}: {error}"
    return outcome


def _summary(outcome: Outcome, kinds: Sequence[str]) -> str:
    """The ratios of the first kind that is not a baseline, or what failed."""
    parts = [f"{kind} FAILED: {reason.strip().splitlines()[-1]}" for kind, reason in outcome.failures.items()]
    ours = next((kind for kind in OURS if outcome.rounds.get(kind)), "")
    for theirs in kinds:
        if ours and theirs != ours and outcome.rounds.get(theirs):
            for metric in outcome.scenario.metrics:
                ratio = outcome.ratio(metric, ours, theirs)
                if ratio is not None:
                    parts.append(f"{metric.key} {ratio:.2f} x {theirs}")
    return ", ".join(parts)
