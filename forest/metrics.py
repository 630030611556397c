"""ForestMetrics: plain counters of one forest, and the gate that keeps its log from flooding.

Owns: numbers only. It knows no metrics library: a node reads `samples()` and exposes them in whatever format it
speaks. Names follow Prometheus conventions (`forest_..._total` for counters).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]

MOST_LABELS = 200
"""Different labels that one counter takes."""

HELP: dict[str, str] = {
    "forest_items_received_total": "Items delivered to a worker, redeliveries included.",
    "forest_items_handled_total": "Items handled and acknowledged.",
    "forest_items_ignored_total": "Valid items of no interest, acknowledged.",
    "forest_items_poison_total": "Items that can never be handled, terminated.",
    "forest_items_retried_total": "Items handed back for a later try.",
    "forest_items_abandoned_total": "Items terminated after their handler failed too often.",
    "forest_leaves_dropped_total": "Leaves stored on the wind, by the pattern that captured them.",
    "forest_leaves_duplicate_total": "Leaves the wind already had, by the pattern that captured them.",
    "forest_composts_total": "State changes stored in the humus.",
    "forest_composts_duplicate_total": "State changes the humus already had.",
    "forest_soil_writes_total": "Changes applied to the soil.",
    "forest_soil_replays_total": "State changes the soil already had.",
    "forest_soil_conflicts_total": "State changes refused because the key belongs to another origin.",
    "forest_webhooks_total": "Webhook requests by HTTP status.",
    "forest_plugins_broken_total": "Trees and nims that could not be started.",
    "forest_demo_events_total": "Sample payments fed by the demo.",
}


@dataclass(slots=True)
class ForestMetrics:
    """Monotonic counters keyed by name and labels; `count` adds, `value` and `total` read, `samples` lists all."""

    _counters: Counter[tuple[str, Labels]] = field(default_factory=Counter[tuple[str, Labels]])
    _kinds: Counter[str] = field(default_factory=Counter[str])

    def count(self, name: str, amount: int = 1, /, **labels: str) -> None:
        """Add `amount` to a counter of `HELP`. Beyond `MOST_LABELS` of a name, further ones are counted as "other": a
        plug-in's words must not make a time series of each."""
        assert name in HELP, name
        key = name, tuple(sorted(labels.items()))
        if key not in self._counters:
            if self._kinds[name] >= MOST_LABELS:
                key = name, tuple((label, "other") for label, _ in key[1])
            else:
                self._kinds[name] += 1
        self._counters[key] += amount

    def value(self, name: str, /, **labels: str) -> int:
        """One counter with exactly these labels."""
        return self._counters[name, tuple(sorted(labels.items()))]

    def total(self, name: str, /, **labels: str) -> int:
        """The sum over all counters of that name that carry (at least) these labels."""
        wanted = set(labels.items())
        return sum(n for (known, have), n in self._counters.items() if known == name and wanted <= set(have))

    def samples(self) -> Iterator[tuple[str, dict[str, str], int]]:
        """(name, labels, value) of everything counted so far, in a stable order."""
        for name, labels in sorted(self._counters):
            yield name, dict(labels), self._counters[name, labels]


class LogGate:
    """Lets through at most `limit` lines per key in `period` seconds, and tells how many it kept back before."""

    def __init__(self, clock: Callable[[], float], limit: int = 5, period: float = 60.0) -> None:
        self._clock = clock
        self._limit = limit
        self._period = period
        self._windows: dict[str, tuple[float, int]] = {}

    def admit(self, key: str) -> int | None:
        """None to stay silent; otherwise the number of lines suppressed in the window that has just ended."""
        now = self._clock()
        began, seen = self._windows.get(key, (now, 0))
        suppressed = 0
        if now - began >= self._period:
            suppressed = max(0, seen - self._limit)
            began, seen = now, 0
        self._windows[key] = (began, seen + 1)
        return suppressed if seen < self._limit else None
