"""`python -m benchmarks`: run scenarios side by side, print ratios, write the JSON file, update the record."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import report, runner
from benchmarks.outcome import Outcome
from benchmarks.scenario import QUICK, Scenario, Settings
from benchmarks.servers import KINDS, add_base


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (1 when a scenario failed)."""
    options = _parser().parse_args(argv)
    scenarios = runner.select(options.only, options.families)
    if options.list:
        for scenario in scenarios:
            print(f"{scenario.name:28} {scenario.title}")
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-base-") as unpacked:
        kinds: list[str] = options.servers
        if options.base:
            add_base(options.base, Path(unpacked))
            kinds = [*kinds, "base"]
        return _run(scenarios, kinds, options)


def _run(scenarios: list[Scenario], kinds: list[str], options: argparse.Namespace) -> int:
    settings = _settings(options)
    outcomes = runner.run(scenarios, kinds, settings, options.store)
    run = report.document(outcomes, kinds, settings)
    path = report.save(run, options.out)
    table = report.markdown(outcomes, run, kinds)
    print(table)
    if options.compare:
        print(report.compare(run, json.loads(options.compare.read_text())))
    if options.record:
        _record(outcomes, run, kinds)
    print(f"absolute figures: {path}")
    return 1 if any(outcome.failures for outcome in outcomes) else 0


def _record(outcomes: list[Outcome], run: dict[str, Any], kinds: list[str]) -> None:
    """Each family has a section of the record; everything else is one table."""
    for section in ("", *runner.FAMILIES):
        part = [o for o in outcomes if (o.scenario.group if o.scenario.group in runner.FAMILIES else "") == section]
        if part:
            report.record(report.markdown(part, run, kinds), section=section)


def _settings(options: argparse.Namespace) -> Settings:
    settings = QUICK if options.quick else Settings()
    if options.families:
        settings = replace(settings, rounds=1)  # of waits the longest counts, and each round takes long
    given = {"duration": options.duration, "rounds": options.rounds, "scale": options.scale}
    given["subjects"] = options.subjects
    given["patience"] = options.patience
    return replace(settings, **{key: value for key, value in given.items() if value is not None})


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _kinds(text: str) -> list[str]:
    kinds = _words(text)
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"unknown server {kind!r}: choose from {', '.join(KINDS)}")
    return kinds


def _family(text: str) -> str:
    if text not in runner.FAMILIES:
        raise argparse.ArgumentTypeError(f"unknown family {text!r}: choose from {', '.join(runner.FAMILIES)}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="nimsnats beside nats-server, in ratios")
    parser.add_argument(
        "families", nargs="*", type=_family, help=f"{', '.join(runner.FAMILIES)}: only these; without, everything else"
    )
    parser.add_argument("--quick", action="store_true", help="shorter measurements, under three minutes for everything")
    parser.add_argument("--only", type=_words, default=[], help="parts of scenario names, comma separated")
    parser.add_argument("--list", action="store_true", help="name the scenarios and stop")
    parser.add_argument(
        "--servers", type=_kinds, default=["go", "nims", "go-sync"], help=f"comma separated: {', '.join(KINDS)}"
    )
    parser.add_argument("--base", metavar="REVISION", help="also measure nimsnats as of this git revision, in turn")
    parser.add_argument("--duration", type=float, help="seconds of each measurement")
    parser.add_argument("--rounds", type=int, help="measurements of each server in each scenario")
    parser.add_argument("--scale", type=float, help="shrinks fixed amounts of messages and connections")
    parser.add_argument("--subjects", type=int, help="subjects that are stored before requests are measured")
    parser.add_argument("--patience", type=float, help="seconds after which a flood or a request is given up")
    parser.add_argument(
        "--store", type=Path, help="where the servers keep their data (default: the temporary directory)"
    )
    parser.add_argument("--out", type=Path, default=report.OUT, help="where the JSON file goes")
    parser.add_argument("--compare", type=Path, metavar="JSON", help="also print the change since an earlier run")
    parser.add_argument("--record", action="store_true", help="put the table on top of benchmarks/RESULTS.md")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
