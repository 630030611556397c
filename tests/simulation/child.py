"""Runs each history in a process of its own: nothing of one seed can be seen by the next, and nothing is cleaned up.

Owns the forks and the way back. A history that takes more processor time than any can need is ended by the kernel, and
that is a failure like any other.
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tests.simulation.history import Result, run_history

MOST_CPU: Final = 60
"""Seconds of processor time for one history."""


def run_seed(seed: int, steps: int, *, aloud: bool = False, mutation: str = "") -> Result:
    """Run one history and return its result."""
    return next(run_seeds([seed], steps, aloud=aloud, mutation=mutation))


def run_seeds(
    seeds: Iterable[int],
    steps: int,
    *,
    jobs: int = 1,
    aloud: bool = False,
    mutation: str = "",
    go_on: Callable[[], bool] = lambda: True,
) -> Iterator[Result]:
    """Run many, `jobs` at a time; results come as they are ready. No new one begins once `go_on` says no."""
    waiting = iter(seeds)
    running: dict[int, tuple[int, int, list[bytes]]] = {}
    more = True
    while more or running:
        while more and len(running) < jobs:
            seed = next(waiting, None) if go_on() else None
            if seed is None:
                more = False
                break
            reading, pid = _fork(seed, steps, aloud, mutation)
            running[reading] = (pid, seed, [])
        ready, _, _ = select.select(list(running), [], []) if running else ([], [], [])
        for reading in ready:
            pid, seed, parts = running[reading]
            data = os.read(reading, 1 << 20)
            if data:
                parts.append(data)
                continue
            del running[reading]
            os.close(reading)
            _, status = os.waitpid(pid, 0)
            yield pickle.loads(b"".join(parts)) if parts else _without_result(seed, steps, status)


def _without_result(seed: int, steps: int, status: int) -> Result:
    return Result(seed, steps, f"the history has no end, or the simulation crashed (exit status {status:#x})")


def _fork(seed: int, steps: int, aloud: bool, mutation: str) -> tuple[int, int]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(writing)
        return reading, pid
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU, MOST_CPU))
        result = run_history(seed, steps, aloud=aloud, mutation=mutation)
        sys.stdout.flush()
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(result, pipe)
    finally:
        os._exit(0)
