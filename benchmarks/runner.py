"""Puts servers through scenarios in turn and takes medians.

Owns the order: within a scenario all servers live side by side (idle but for the one that is measured) and are measured
A B A B …, so that drift of the machine hits all of them alike.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import (
    cluster,
    collector,
    core,
    crowds,
    filters,
    floods,
    footprint,
    jetstream,
    latency,
    requests,
    scale,
    sheet,
)
from benchmarks.outcome import OURS, Outcome
from benchmarks.scenario import Scenario, Settings
from benchmarks.servers import KINDS, Server

SCENARIOS: tuple[Scenario, ...] = (
    *core.SCENARIOS,
    *latency.SCENARIOS,
    *jetstream.SCENARIOS,
    *footprint.SCENARIOS,
    *cluster.SCENARIOS,
    *scale.SCENARIOS,
    *floods.SCENARIOS,
    *requests.SCENARIOS,
    *collector.SCENARIOS,
    *crowds.SCENARIOS,
    *filters.SCENARIOS,
)

FAMILIES: tuple[str, ...] = ("floods", "requests", "crowds", "filters")
"""Groups that are measured only when they are asked for: each takes long."""


def select(only: Sequence[str], families: Sequence[str] = ()) -> list[Scenario]:
    """Scenarios of `families` whose name contains one of `only`, or every one of them when `only` is empty.

    Without families it is all scenarios that `only` names, or those that belong to no family.
    """
    chosen = [s for s in SCENARIOS if s.group in families or (not families and (only or s.group not in FAMILIES))]
    return [s for s in chosen if not only or any(word in s.name for word in only)]


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
    """The ratios of the first kind that is not a baseline, or what failed; of a row for each server, the rows."""
    if outcome.scenario.layout == "servers":
        return "\n" + "\n".join(sheet.rows(outcome, kinds))
    parts = [f"{kind} FAILED: {reason.strip().splitlines()[-1]}" for kind, reason in outcome.failures.items()]
    ours = next((kind for kind in OURS if outcome.rounds.get(kind)), "")
    for theirs in kinds:
        if ours and theirs != ours and outcome.rounds.get(theirs):
            for metric in outcome.scenario.metrics:
                ratio = outcome.ratio(metric, ours, theirs)
                if ratio is not None:
                    parts.append(f"{metric.key} {ratio:.2f} x {theirs}")
    return ", ".join(parts)
