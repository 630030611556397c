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
from typing import Any

from benchmarks import cluster, core, footprint, jetstream, latency, scale
from benchmarks.scenario import Metric, Scenario, Settings
from benchmarks.servers import KINDS, Server

SCENARIOS: tuple[Scenario, ...] = (
    *core.SCENARIOS,
    *latency.SCENARIOS,
    *jetstream.SCENARIOS,
    *footprint.SCENARIOS,
    *cluster.SCENARIOS,
    *scale.SCENARIOS,
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
    with _Standing(base) as standing:
        for scenario in scenarios:
            chosen = [kind for kind in kinds if kind in scenario.servers or kind in ("go-again", "base")]
            began = time.perf_counter()
            outcome = _run_one(scenario, chosen, settings, standing)
            outcomes.append(outcome)
            progress(f"{scenario.name:28} {_summary(outcome, chosen)}  ({time.perf_counter() - began:.0f} s)")
    return outcomes


class _Standing(ExitStack):
    """Servers that live from measurement to measurement; single ones for one scenario, clusters for all that follow."""

    def __init__(self, base: Path | None) -> None:
        super().__init__()
        self.base = base
        self._start: Callable[..., Any] = Server
        self._servers: dict[str, Any] = {}

    def begin(self, scenario: Scenario) -> None:
        """End those that the scenario has no use for."""
        if scenario.fresh or scenario.start is Server or scenario.start is not self._start:
            self.close()
            self._servers.clear()
        self._start = scenario.start

    def get(self, kind: str) -> Any:
        """The server of a kind, started when it is first wanted."""
        if kind not in self._servers:
            self._servers[kind] = self.enter_context(self._start(KINDS[kind], self.base))
        return self._servers[kind]


def _run_one(scenario: Scenario, kinds: Sequence[str], settings: Settings, standing: _Standing) -> Outcome:
    outcome = Outcome(scenario, {kind: [] for kind in kinds})
    standing.begin(scenario)
    for _ in range(min(settings.rounds, scenario.rounds)):
        for kind in kinds:
            if kind in outcome.failures:
                continue
            try:
                if scenario.fresh:
                    with scenario.start(KINDS[kind], standing.base) as server:
                        outcome.rounds[kind].append(scenario.measure(server, settings))
                    continue
                server = standing.get(kind)
                os.sync()
                outcome.rounds[kind].append(scenario.measure(server, settings))
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
