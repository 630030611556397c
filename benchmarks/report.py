"""What a run looks like on paper: a JSON file with everything, a Markdown table with ratios, a record in RESULTS.md.

Owns the file formats. Absolute figures go into the JSON file only: the tables speak in ratios, and say for the few aims
that are absolute whether they are met.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks import sheet
from benchmarks.outcome import OURS, Outcome
from benchmarks.scenario import Aim, Metric, Settings
from benchmarks.servers import KINDS, ServerError

HERE: Final = Path(__file__).parent
OUT: Final = HERE / "out"
RESULTS: Final = HERE / "RESULTS.md"
_MARK: Final = "<!-- newest run below -->\n"


def ours(kinds: Sequence[str]) -> str:
    """The server that the ratios are about: this checkout, else a revision of it, else the Go server's second self."""
    return next((kind for kind in OURS if kind in kinds), "")


def document(outcomes: Sequence[Outcome], kinds: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Everything about a run as a JSON-able dictionary."""
    scenarios: dict[str, Any] = {}
    for outcome in outcomes:
        ratios = {
            metric.key: {
                theirs: {
                    "ratio": outcome.ratio(metric, ours(kinds), theirs),
                    "range": outcome.spread(metric, ours(kinds), theirs),
                }
                for theirs in _baselines(outcome, kinds)
            }
            for metric in outcome.scenario.metrics
        }
        scenarios[outcome.scenario.name] = {
            "title": outcome.scenario.title,
            "units": {metric.key: metric.unit for metric in outcome.scenario.metrics},
            "rounds": outcome.rounds,
            "failures": outcome.failures,
            "ratios": ratios,
        }
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": _versions(kinds),
        "settings": {
            "duration": settings.duration,
            "warm": settings.warm,
            "rounds": settings.rounds,
            "scale": settings.scale,
            "subjects": settings.subjects,
            "patience": settings.patience,
        },
        "scenarios": scenarios,
    }


def machine() -> dict[str, Any]:
    """Where the run took place."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Short id of the checked-out commit, with a `+` when files differ from it; empty outside a repository."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=HERE, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def markdown(outcomes: Sequence[Outcome], run: dict[str, Any], kinds: Sequence[str]) -> str:
    """The table of ratios, preceded by one line about the machine and the versions."""
    where = run["machine"]
    versions = ", ".join(dict.fromkeys(str(version) for version in run["versions"].values()))
    lines = [
        f"{run['time'][:10]}, commit {run['commit']}, {where['cores']} cores, Linux {where['kernel']} "
        f"{where['machine']}, Python {where['python']}, {versions}, median of {run['settings']['rounds']} rounds of "
        f"{run['settings']['duration']} s, scale {run['settings']['scale']:g}",
    ]
    ratios = [outcome for outcome in outcomes if outcome.scenario.layout == "ratios"]
    if ratios:
        lines += ["", "| scenario | times as good as | ratio | lowest to highest | aim |", "|---|---|---:|---:|---|"]
    for outcome in ratios:
        lines.extend(_rows(outcome, kinds))
    lines.extend(sheet.tables([outcome for outcome in outcomes if outcome.scenario.layout == "servers"], kinds))
    return "\n".join(lines) + "\n"


def _rows(outcome: Outcome, kinds: Sequence[str]) -> Iterator[str]:
    mine = ours(kinds)
    for kind, reason in outcome.failures.items():
        yield f"| {outcome.scenario.title} | failed on {kind} | | | {reason.strip().splitlines()[-1]} |"
    for metric in filter(lambda metric: metric.table, outcome.scenario.metrics):
        label = outcome.scenario.title if metric.key == "rate" else f"{outcome.scenario.title}: {metric.key}"
        for theirs in _baselines(outcome, kinds):
            ratio, spread = outcome.ratio(metric, mine, theirs), outcome.spread(metric, mine, theirs)
            if ratio is None or spread is None:
                continue
            aims = ", ".join(filter(None, (_aim(outcome, metric, aim, mine, theirs) for aim in metric.aims)))
            yield (f"| {label} | {KINDS[theirs].title} | {ratio:.2f} | {spread[0]:.2f} to {spread[1]:.2f} | {aims} |")


def _aim(outcome: Outcome, metric: Metric, aim: Aim, mine: str, theirs: str) -> str:
    """Says of an aim that concerns this row if it is met."""
    if aim.limit:
        value = outcome.median(mine, metric.key)
        return f"at most {_quantity(aim.limit, metric.unit)}: {_met(value is not None and value <= aim.limit)}"
    if aim.against != theirs:
        return ""
    ratio = outcome.ratio(metric, mine, theirs)
    return f"{aim.ratio:g}: {_met(ratio is not None and ratio >= aim.ratio)}"


def _met(met: bool) -> str:
    return "met" if met else "**missed**"


def _quantity(value: float, unit: str) -> str:
    return f"{value / 1024:g} KiB" if unit == "bytes" else f"{value:g} {unit}"


def _baselines(outcome: Outcome, kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if kind != ours(kinds) and outcome.rounds.get(kind)]


def _versions(kinds: Sequence[str]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for kind in kinds:
        try:
            versions[kind] = KINDS[kind].version()
        except (ServerError, OSError) as error:
            versions[kind] = str(error)
    return versions


def save(run: dict[str, Any], directory: Path = OUT) -> Path:
    """Write the JSON file of a run; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{run['time'].replace(':', '')}-{run['commit']}.json"
    path.write_text(json.dumps(run, indent=1))
    return path


def record(table: str, path: Path = RESULTS, section: str = "") -> None:
    """Put a run's table on top of the record, or on top of a section of it that is made when it is missing."""
    text = path.read_text() if path.exists() else _HEADER
    wanted = f"<!-- newest {section} below -->\n" if section else _MARK
    if section and wanted not in text:
        text += f"\n## {section.capitalize()}\n\n{_SECTION}\n{wanted}"
    head, mark, rest = text.partition(wanted)
    if not mark:
        raise ValueError(f"{path} has lost its marker line {wanted.strip()!r}")
    path.write_text(f"{head}{mark}\n{table}{rest}")


_HEADER: Final = f"""# Measured against nats-server

Ratios of `python -m benchmarks --record`, newest first. A ratio says how many times as good nimsnats is as the other
server on the same machine in the same run: 2.00 is twice the rate, half the latency, or half the memory. nimsnats
acknowledges after fsync; nats-server does so only with
`sync_interval: always`, its default acknowledges from the page cache.

{_MARK}"""


_SECTION: Final = """A row for each server. Rates, memory, processor time and durations without a unit say how many
times as good it is as the first server of the same run. Waits are the longest ones, in milliseconds; where there are
three nodes, those of each. `>` had not ended when the measurement did, `<` is a rate that was not kept up, bold misses
the aim. Crowds tell how many times as much an operation costs beside the crowd as alone on the same server.
"""


def compare(run: dict[str, Any], earlier: dict[str, Any]) -> str:
    """How the ratios have changed since an earlier run, as a Markdown table."""
    lines = [f"| scenario | against | {earlier['commit']} | {run['commit']} | change |", "|---|---|---:|---:|---:|"]
    for name, scenario in run["scenarios"].items():
        before = earlier["scenarios"].get(name, {}).get("ratios", {})
        for key, ratios in scenario["ratios"].items():
            for theirs, now in ratios.items():
                old = before.get(key, {}).get(theirs, {}).get("ratio")
                if old and now["ratio"]:
                    change = (now["ratio"] / old - 1) * 100
                    lines.append(f"| {name} {key} | {theirs} | {old:.2f} | {now['ratio']:.2f} | {change:+.0f} % |")
    return "\n".join(lines) + "\n"
