"""Replays one history (`--seed N --steps M`), or runs many (`campaign`).

A history is decided by its seed, the number of its faults (`--steps`) and the commit. A campaign shows progress, stops
by itself, and ends with 1 when a seed has failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import Final

from tests.simulation.child import run_seed, run_seeds
from tests.simulation.history import Result
from tests.simulation.mutations import MUTATIONS

STEPS: Final = 20


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="the history to replay")
    parser.add_argument("--steps", type=int, default=STEPS, help="how many faults")
    parser.add_argument("--mutation", default="", choices=["", *MUTATIONS], help="a bug to plant")
    parser.add_argument("--trace", action="store_true", help="print every event as it happens")
    commands = parser.add_subparsers(dest="command")
    campaign = commands.add_parser("campaign", help="run many seeds")
    campaign.add_argument("--seeds", default="1..1000", help="first..last")
    campaign.add_argument("--steps", type=int, default=STEPS, help="how many faults")
    campaign.add_argument("--jobs", type=int, default=1, help="histories at a time")
    campaign.add_argument("--minutes", type=float, default=0.0, help="begin no new one after so long")
    bugs = commands.add_parser("mutations", help="plant bugs, and see that they are found")
    bugs.add_argument("names", nargs="*", help="which (default: all)")
    bugs.add_argument("--first", type=int, default=1, help="the first seed")
    bugs.add_argument("--most", type=int, default=300, help="seeds for each")
    bugs.add_argument("--steps", type=int, default=STEPS, help="how many faults")
    bugs.add_argument("--jobs", type=int, default=1, help="histories at a time")
    arguments = parser.parse_args()
    if arguments.command == "campaign":
        return _campaign(arguments)
    if arguments.command == "mutations":
        return _mutations(arguments)
    if arguments.seed is None:
        parser.error("which --seed?")
    result = run_seed(arguments.seed, arguments.steps, aloud=arguments.trace, mutation=arguments.mutation)
    _report(result)
    return 1 if result.failure else 0


def _campaign(arguments: argparse.Namespace) -> int:
    first, _, last = arguments.seeds.partition("..")
    seeds = range(int(first), int(last or first) + 1)
    end = time.monotonic() + arguments.minutes * 60 if arguments.minutes else float("inf")
    failed: list[int] = []
    done, cpu, virtual, acknowledged = 0, 0.0, 0.0, 0
    for result in run_seeds(seeds, arguments.steps, jobs=arguments.jobs, go_on=lambda: time.monotonic() < end):
        done += 1
        cpu, virtual, acknowledged = cpu + result.cpu, virtual + result.virtual, acknowledged + result.acknowledged
        if result.failure:
            failed.append(result.seed)
            print(f"seed {result.seed}: {result.failure[:1000]}", flush=True)
        if done % 50 == 0:
            print(f"{done} seeds, {len(failed)} failed, {cpu:.0f} CPU s, {virtual:.0f} virtual s", flush=True)
    print(
        f"{done} seeds of {arguments.steps} faults: {len(failed)} failed {failed or ''}; {cpu:.0f} CPU s, {virtual:.0f}"
        f" virtual s, {acknowledged} publishes acknowledged; commit {_commit()}"
    )
    return 1 if failed else 0


def _mutations(arguments: argparse.Namespace) -> int:
    missed: list[str] = []
    for name in arguments.names or MUTATIONS:
        seeds = range(arguments.first, arguments.first + arguments.most)
        tried, cpu, caught = 0, 0.0, False
        for result in run_seeds(seeds, arguments.steps, jobs=arguments.jobs, mutation=name):
            tried, cpu = tried + 1, cpu + result.cpu
            caught = bool(result.failure) and not run_seed(result.seed, arguments.steps).failure
            if caught:
                what = result.failure.partition("\n")[0][:160]
                print(f"{name}: seed {result.seed}, the {tried}., {cpu:.0f} CPU s: {what}", flush=True)
                break
        if not caught:
            missed.append(name)
            print(f"{name}: not found by {tried} seeds, {cpu:.0f} CPU s", flush=True)
    return 1 if missed else 0


def _report(result: Result) -> None:
    print(
        f"seed {result.seed} steps {result.steps}: {'VIOLATED' if result.failure else 'clean'};"
        f" trace {result.trace:08x}, {result.events} events, {result.virtual:.1f} virtual s, {result.cpu:.2f} CPU s,"
        f" {result.acknowledged} published, {result.delivered} delivered, {result.written} keys set,"
        f" {result.elections} elections, {result.applied} applied"
    )
    if result.failure:
        print(f"commit {_commit()}\n{result.failure}\n--- the last events\n{result.tail}", end="")


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
