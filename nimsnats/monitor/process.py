"""What the operating system says about this process: memory, processor time, cores. Linux, with a portable fallback."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from typing import Final

_PAGE: Final = resource.getpagesize()
_INTERVAL: Final = 1.0


def resident_bytes() -> int:
    """Resident memory; where /proc is missing, the peak so far."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine_bytes() -> int:
    """Memory of the whole machine; 0 where that is not known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * _PAGE
    except (OSError, ValueError):
        return 0


def cpu_seconds() -> float:
    """Processor time of the process so far, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CpuMeter:
    """Processor use in percent (100 is one core), over the time since the previous reading that was a second old."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._time = clock()
        self._used = cpu_seconds()
        self._percent = 0.0

    def percent(self) -> float:
        """The latest figure, renewed at most once a second."""
        now, used = self._clock(), cpu_seconds()
        if now - self._time >= _INTERVAL:
            self._percent = round(100 * (used - self._used) / (now - self._time), 1)
            self._time, self._used = now, used
        return self._percent
