"""Tables with a row for each server: ratios beside the longest waits of the same run.

Owns the layout of the scenarios that are about waiting. What costs is a ratio to the first server of the run; waits are
told in milliseconds, because the aim is absolute, and never without the other server's beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from benchmarks.outcome import Outcome
from benchmarks.scenario import Metric
from benchmarks.servers import KINDS

NODES: Final = ("", ".a", ".b", ".c")
"""What ends a metric's key: nothing for all nodes together, or one node's name."""
_NOTHING: Final = "-"


def tables(outcomes: Sequence[Outcome], kinds: Sequence[str]) -> Iterator[str]:
    """The lines of all tables: one for each run of scenarios that have the same metrics."""
    shown: tuple[Metric, ...] = ()
    for outcome in outcomes:
        metrics = outcome.scenario.metrics
        if metrics != shown:
            shown = metrics
            yield ""
            yield f"| {outcome.scenario.group} | server | {' | '.join(metric.label for metric in _columns(metrics))} |"
            yield "|---|---|" + "---:|" * len(list(_columns(metrics)))
        yield from rows(outcome, kinds)


def rows(outcome: Outcome, kinds: Sequence[str]) -> Iterator[str]:
    """One line for each kind that was measured or failed."""
    title = outcome.scenario.title
    for kind in kinds:
        if kind in outcome.failures:
            yield f"| {title} | {KINDS[kind].title} | failed: {outcome.failures[kind].strip().splitlines()[-1]} |"
        elif outcome.rounds.get(kind):
            cells = (cell(outcome, metric, kind, kinds[0]) for metric in _columns(outcome.scenario.metrics))
            yield f"| {title} | {KINDS[kind].title} | {' | '.join(cells)} |"
        title = ""


def cell(outcome: Outcome, metric: Metric, kind: str, first: str) -> str:
    """One value as the table shows it."""
    value = outcome.value(metric, kind)
    if value is None:
        return _NOTHING
    match metric.show:
        case "ratio":
            ratio = outcome.ratio(metric, kind, first)
            return _NOTHING if ratio is None else f"{'<' if outcome.bounded(kind, metric.key) else ''}{ratio:.2f}"
        case "share":
            return f"{value * 100:.0f} %"
        case "count":
            return f"{value:,.0f}"
        case "times":
            text = f"{value:.1f}"
            return f"**{text}**" if _missed(metric, value) else text
        case "wait":
            parts = [part for part in NODES[1:] if outcome.value(metric, kind, part) is not None] or [""]
            text = " / ".join(_wait(outcome, metric, kind, part) for part in parts)
            return f"**{text}**" if _missed(metric, value) else text


def _missed(metric: Metric, value: float) -> bool:
    return any(aim.limit and value > aim.limit for aim in metric.aims)


def _wait(outcome: Outcome, metric: Metric, kind: str, part: str) -> str:
    value = outcome.value(metric, kind, part) or 0.0
    return f"{'>' if outcome.bounded(kind, metric.key + part) else ''}{value * 1000:,.0f}"


def _columns(metrics: Iterable[Metric]) -> Iterator[Metric]:
    return (metric for metric in metrics if metric.table)
