"""What happened, one dense line per event, and a hash over all of it.

Legend: time in virtual seconds, then who, then what. `r >n1` and `c >n1` are bytes that arrive on a route or on a
client's connection; `n1 INF` is a log line of a node; `##` the nemesis; `!!` a broken promise; `p1` a publisher.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Final
from zlib import crc32

_LAST: Final = 400


class Trace:
    """The history as it is told. `now` gives the virtual time; with `aloud` every line is printed as it comes."""

    def __init__(self, now: Callable[[], float], aloud: bool = False) -> None:
        self.now = now
        self.aloud = aloud
        self.count = 0
        self.hash = 0
        self.last: deque[tuple[float, str, str, object]] = deque(maxlen=_LAST)

    def __call__(self, who: str, what: str, detail: object = "") -> None:
        now = self.now()
        self.count += 1
        self.hash = crc32(f"{now!r} {who} {what} {detail}".encode(), self.hash)
        self.last.append((now, who, what, detail))
        if self.aloud:
            sys.stdout.write(line(now, who, what, detail))

    def packet(self, who: str, data: bytes) -> None:
        """Bytes that arrive."""
        now = self.now()
        self.count += 1
        self.hash = crc32(data, crc32(b"%r" % now, self.hash))
        if self.aloud:
            self.last.append((now, who, f"{len(data)}B", data[:90]))
            sys.stdout.write(line(now, who, f"{len(data)}B", data[:90]))

    def tail(self, count: int) -> str:
        """The last events."""
        return "".join(line(*each) for each in list(self.last)[-count:])


def line(now: float, who: str, what: str, detail: object) -> str:
    """One event as text."""
    return f"{now:12.6f} {who:<7} {what} {detail}".rstrip() + "\n"
