"""What the rounds of one scenario have brought, kind by kind: medians, the worst of them, ratios.

Owns the arithmetic between the dictionaries that a measurement returns and what the tables show. A wait that had not
ended when the measurement stopped is stored with a second key that ends in `OPEN`: the value is then a lower bound, and
a rate an upper one.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Final

from benchmarks.scenario import Metric, Scenario

OURS: tuple[str, ...] = ("nims", "base", "go-again")
"""Whom the ratios are about: the first of these that is measured."""

OPEN: Final = ">"
"""Ends the key that says of another one: its value is a bound, because waiting went on."""


@dataclass(slots=True)
class Outcome:
    """All rounds of one scenario: server kind -> one dictionary of metric values a round."""

    scenario: Scenario
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict[str, list[dict[str, float]]])
    failures: dict[str, str] = field(default_factory=dict[str, str])

    def median(self, kind: str, key: str) -> float | None:
        """Median over the rounds that have the key; None when there is none."""
        values = self._values(kind, key)
        return statistics.median(values) if values else None

    def longest(self, kind: str, key: str) -> float | None:
        """The largest value of any round; None when there is none."""
        return max(self._values(kind, key), default=None)

    def bounded(self, kind: str, key: str) -> bool:
        """The value of some round is a bound."""
        return any(round_.get(key + OPEN) for round_ in self.rounds.get(kind, ()))

    def value(self, metric: Metric, kind: str, part: str = "") -> float | None:
        """What stands for a kind's rounds: the median, or, of a wait, the longest. `part` names one node's."""
        summed = self.longest if metric.show == "wait" else self.median
        return summed(kind, metric.key + part)

    def ratio(self, metric: Metric, ours: str, theirs: str) -> float | None:
        """How many times as good `ours` is as `theirs`."""
        mine, other = self.value(metric, ours), self.value(metric, theirs)
        return None if mine is None or other is None else metric.ratio(mine, other)

    def spread(self, metric: Metric, ours: str, theirs: str) -> tuple[float, float] | None:
        """Smallest and largest ratio of any two measurements that followed each other."""
        pairs = zip(self._values(ours, metric.key), self._values(theirs, metric.key), strict=False)
        ratios = [metric.ratio(mine, other) for mine, other in pairs]
        return (min(ratios), max(ratios)) if ratios else None

    def _values(self, kind: str, key: str) -> list[float]:
        return [round_[key] for round_ in self.rounds.get(kind, ()) if key in round_]
