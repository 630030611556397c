"""`python -m tests.chaos --minutes N --seed S`: faults on a cluster of real processes, and a table of what each cost.

    python -m tests.chaos --minutes 30 --seed 7             whatever comes
    python -m tests.chaos --plan growth                     1 -> 2 -> 3 -> 5 -> 1 -> 3 nodes under load
    python -m tests.chaos --plan kills --minutes 5          kill -9 of any node of three every 10 s
    python -m tests.chaos --plan rolling                    a restart of all, one by one

Needs the right to make network namespaces. Ends with 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.chaos import campaign, faults
from tests.chaos.network import NotPermitted
from tests.chaos.world import World

SKIPPED = 77
"""Exit code where namespaces are not permitted."""


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plan", choices=("any", "growth", "kills", "rolling"), default="any")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two kills")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--disk", type=int, default=128, help="megabytes of each node's disk (plan any)")
    parser.add_argument("--logs", type=Path, help="an existing folder for what the nodes log")
    options = parser.parse_args()
    say = stopwatch()
    made = campaign.world(disk=options.disk if options.plan == "any" else 0)
    return conduct(made, lambda world: run(world, options, say))


def stopwatch() -> Callable[[str], None]:
    """Prints lines with the seconds since now."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:7.1f}] {text}", flush=True)

    return say


def conduct(made: AbstractContextManager[World], work: Callable[[World], Coroutine[Any, Any, campaign.Report]]) -> int:
    """Do the work in a world and print what came of it; the exit code."""
    try:
        with made as world:
            report = asyncio.run(_ended_by_sigterm(work(world)))
    except NotPermitted as reason:
        print(reason)
        return SKIPPED
    print(report.table())
    for line in report.errors:
        print("ERROR", line)
    return 1 if report.errors else 0


async def _ended_by_sigterm(work: Coroutine[Any, Any, campaign.Report]) -> campaign.Report:
    """Without that, namespaces would be left behind."""
    task, own = asyncio.current_task(), os.getpid()
    assert task is not None

    def terminated(_number: int, _frame: object) -> None:
        if os.getpid() == own:  # the children that open namespaces inherit this, and are ended by the same signal
            task.cancel()

    signal.signal(signal.SIGTERM, terminated)
    return await work


async def run(world: World, options: argparse.Namespace, say: Callable[[str], None]) -> campaign.Report:
    """What was asked for."""
    nodes = 1 if options.plan == "growth" else options.nodes
    async with campaign.running(world, options.seed, nodes, say, options.logs) as under_load:
        if options.plan == "growth":
            return await campaign.growth(under_load)
        if options.plan == "kills":
            return await campaign.kills(under_load, options.minutes, options.every)
        if options.plan == "rolling":
            return await campaign.rolling(under_load)
        return await campaign.random_faults(under_load, options.minutes, faults.ALL)


if __name__ == "__main__":
    sys.exit(main())
