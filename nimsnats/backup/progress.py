"""How far a backup or a restore is: a bar on a terminal, plain lines elsewhere.

Owns the wording and the rate of these lines. Sizes are bytes of messages as the server counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import click

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_BAR: Final = 30
_FAST, _SLOW = 0.1, 10.0
"""Seconds between two states on a terminal, and elsewhere."""


def sized(size: float) -> str:
    """A size for people."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


class Progress:
    """One stream's way. `clock` is in seconds; `total` 0 when unknown."""

    def __init__(self, what: str, total: int, clock: Callable[[], float], *, terminal: bool, quiet: bool) -> None:
        self._what = what
        self._total = total
        self._clock = clock
        self._terminal = terminal
        self._quiet = quiet
        self._begun = self._told = clock()
        self._done = 0

    def move(self, size: int) -> None:
        """So many bytes more."""
        self._done += size
        now = self._clock()
        if self._quiet or now - self._told < (_FAST if self._terminal else _SLOW):
            return
        self._told = now
        rate = self._done / max(now - self._begun, 0.001)
        share = min(self._done / self._total, 1.0) if self._total else 0.0
        if self._terminal:
            bar = "#" * round(share * _BAR)
            click.echo(f"\r{self._what} [{bar:<{_BAR}}] {share:4.0%} {sized(rate)}/s \x1b[K", nl=False, err=True)
        else:
            click.echo(f"{self._what}: {sized(self._done)} of {sized(self._total)}, {sized(rate)}/s", err=True)

    def end(self, line: str) -> None:
        """It has ended; `line` says how."""
        if self._terminal and not self._quiet:
            click.echo("\r\x1b[K", nl=False, err=True)
        click.echo(line)
