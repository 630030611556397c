"""`python -m tests.security.fuzz`: coverage-guided fuzzing of everything that reads bytes from outside.

    python -m tests.security.fuzz --list                          the targets
    python -m tests.security.fuzz --target parser --seconds 600   one of them
    python -m tests.security.fuzz --all --minutes 60              all, an equal share of the time each
    python -m tests.security.fuzz --target parser --input FILE    one input again, with its traceback

Needs the extra `fuzz` (atheris). Corpora and findings are kept in a temporary folder, which is named at the end when
there is something in it worth keeping, or in `--folder`, from where the next run goes on. One line a target: its
executions, edges covered, findings. Ends with 1 when something was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.security.fuzz.targets import TARGETS

HANG = 60
"""Seconds after which an input counts as one that never ends."""
MEMORY = 2048
"""Megabytes that a worker may hold."""
_PATIENCE = 3 * HANG
"""Seconds that a worker may take to end after its time."""
_UNITS = re.compile(r"^#(\d+)\t", re.MULTILINE)
_COVERED = re.compile(r"cov: (\d+)")
_TOTAL = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


@dataclass
class Outcome:
    """What a target's runs came to."""

    executions: int = 0
    edges: int = 0
    findings: list[Path] = field(default_factory=list[Path])


def run_worker(name: str, folder: Path, seconds: int) -> tuple[int, int, bool]:
    """Executions, edges, and whether the worker came to its end."""
    options = [
        f"-max_total_time={seconds}", f"-timeout={HANG}", f"-rss_limit_mb={MEMORY}", "-print_final_stats=1",
    ]  # fmt: skip
    log = folder / "log"
    command = [sys.executable, "-m", "tests.security.fuzz.worker", name, str(folder), *options]
    with log.open("wb") as out:
        try:
            status = subprocess.run(
                command, stdout=out, stderr=out, timeout=seconds + _PATIENCE, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    text = log.read_text(errors="replace")
    counted = [int(found) for found in _TOTAL.findall(text)] or [int(found) for found in _UNITS.findall(text)]
    edges = [int(found) for found in _COVERED.findall(text)]
    return max(counted, default=0), max(edges, default=0), status == 0


def campaign(name: str, folder: Path, seconds: int) -> Outcome:
    """Run one target for that long; a worker that dies is a finding, and another goes on."""
    outcome = Outcome()
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + seconds
    while (left := round(ends - time.monotonic())) > 0:
        executions, edges, whole = run_worker(name, folder, left)
        outcome.executions += executions
        outcome.edges = max(outcome.edges, edges)
        if whole:
            break
        kept = folder / "findings" / f"Ended-{len(outcome.findings)}.txt"
        kept.parent.mkdir(exist_ok=True)
        shutil.copy(folder / "log", kept)
        outcome.findings.append(kept)
        if not executions or len(outcome.findings) > 3:
            break
    outcome.findings = sorted((folder / "findings").glob("*.txt"))
    return outcome


def told(name: str, outcome: Outcome) -> str:
    """The line of a target."""
    found = f"{len(outcome.findings)} finding{'s' * (len(outcome.findings) != 1)}"
    return f"{name:18} {outcome.executions:>10} executions  {outcome.edges:>6} edges  {found}"


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.security.fuzz")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="name the targets")
    what.add_argument("--target", choices=sorted(TARGETS))
    what.add_argument("--all", action="store_true", help="every target in turn")
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--input", type=Path, help="run this input once, without atheris")
    parser.add_argument("--folder", type=Path, help="keep corpora and findings here")
    given = parser.parse_args()
    if given.list:
        print("\n".join(TARGETS))
        return 0
    if given.input is not None and given.target:
        TARGETS[given.target].run(given.input.read_bytes())
        print("nothing found")
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is missing: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    names = list(TARGETS) if given.all else [given.target]
    seconds = max(5, round((given.seconds + given.minutes * 60 or 60) / len(names)))
    folder = given.folder or Path(tempfile.mkdtemp(prefix="nimsnats-fuzz-"))
    outcomes = {name: campaign_told(name, folder / name, seconds) for name in names}
    executions = sum(outcome.executions for outcome in outcomes.values())
    findings = [path for outcome in outcomes.values() for path in outcome.findings]
    for path in findings:
        print(f"  {path.with_suffix('')}: {path.read_text(errors='replace').splitlines()[0]}")
    print(f"{len(names)} targets, {executions} executions, {len(findings)} findings")
    if not findings and given.folder is None:
        shutil.rmtree(folder)
    return 1 if findings else 0


def campaign_told(name: str, folder: Path, seconds: int) -> Outcome:
    """Run one target and print its line."""
    outcome = campaign(name, folder, seconds)
    print(told(name, outcome), flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
