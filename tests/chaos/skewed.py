"""`python -m tests.chaos.skewed FILE …`: a node whose wall clock is wrong by as many seconds as FILE says.

Only what the node takes for the time of day is wrong, as after an operator or a bad time server has set the clock;
durations go on as they are.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

_FORM = struct.Struct("<d")


def set_skew(file: Path, seconds: float) -> None:
    """Set a node's clock wrong, or with 0 right again."""
    with file.open("r+b") as stream, mmap.mmap(stream.fileno(), _FORM.size) as memory:
        memory[:] = _FORM.pack(seconds)


def make(file: Path) -> None:
    """A file for a clock that is right."""
    file.write_bytes(_FORM.pack(0.0))


def main() -> None:
    """Bend the clock, then run the node."""
    file = Path(sys.argv.pop(1))
    with file.open("rb") as stream:
        memory = mmap.mmap(stream.fileno(), _FORM.size, access=mmap.ACCESS_READ)
    right_ns, right = time.time_ns, time.time

    def skew() -> float:
        return float(_FORM.unpack(memory[:])[0])

    time.time_ns = lambda: right_ns() + int(skew() * 1e9)
    time.time = lambda: right() + skew()
    from nimsnats.cli import main as run

    run()


if __name__ == "__main__":
    main()
