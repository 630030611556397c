"""Loaded by a Python server under test when its first collector pause is to be measured: counts the pauses in a file.

Python imports a module of this name at its start from PYTHONPATH; `benchmarks.collector` puts this directory there. The
file, named by the environment, holds for each generation the number of collections, their seconds, and the longest.
"""

from __future__ import annotations

import gc
import mmap
import os
import struct
import time

_LAYOUT = struct.Struct("<Qdd")


def _count(path: str) -> None:
    with open(path, "r+b") as file:
        table = mmap.mmap(file.fileno(), 3 * _LAYOUT.size)
    clock = time.perf_counter
    began = 0.0

    def collected(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = clock()
            return
        seconds = clock() - began
        at = info["generation"] * _LAYOUT.size
        number, total, longest = _LAYOUT.unpack_from(table, at)
        _LAYOUT.pack_into(table, at, number + 1, total + seconds, max(longest, seconds))

    gc.callbacks.append(collected)


if path := os.environ.get("BENCHMARKS_COLLECTOR"):
    _count(path)
