"""What a measurement is: its name, what it yields, which way is better, and what it aims for.

Owns the vocabulary that the scenario modules, the runner and the report share. It measures nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.servers import Kind, Server


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to measure: `warm` and `duration` in seconds; `scale` shrinks fixed amounts (messages, connections)."""

    warm: float = 0.4
    duration: float = 2.5
    rounds: int = 3
    scale: float = 1.0
    subjects: int = 1_000_000
    """How many are stored before requests are measured."""
    patience: float = 45.0
    """Seconds after which a flood or a request that a server does not get done with is given up, reported as open."""


QUICK: Final = Settings(warm=0.25, duration=1.0, rounds=3, scale=0.5, subjects=100_000, patience=12.0)


@dataclass(frozen=True, slots=True)
class Aim:
    """What the project wants: `ratio` times as good as `against`, or an absolute value no worse than `limit`."""

    against: str = "go"
    ratio: float = 0.0
    limit: float = 0.0


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a scenario. A ratio always reads "times as good as", whichever way is better."""

    key: str
    unit: str
    better: Literal["higher", "lower"] = "higher"
    aims: tuple[Aim, ...] = ()
    table: bool = True
    """False keeps the metric out of the Markdown table; the JSON file has it."""
    show: Literal["ratio", "wait", "share", "count", "times"] = "ratio"
    """How a table with a row for each server tells it: as a ratio to the first server, or by itself."""
    title: str = ""

    @property
    def label(self) -> str:
        """What heads its column."""
        unit = ", ms" if self.show == "wait" else ""
        return f"{self.title or self.key}{unit}"

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times as good as `theirs` `ours` is."""
        over, under = (ours, theirs) if self.better == "higher" else (theirs, ours)
        return over / under if under else 0.0


CPU: Final = Metric("cpu", "s", "lower", table=False)
"""Processor time of the server for one message."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A measurement that any server can be put through.

    `measure` gets a running server, or, with `fresh`, starts nothing but a kind's own servers: then it is called with a
    new server each round. `servers` are the kinds it is worth running on. `start` starts one, or a cluster of them that
    counts as one and stands until a scenario starts something else. `rounds` bounds the number of measurements where
    one takes long. `layout` chooses between a row for each ratio and a row for each server.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    measure: Callable[[Any, Settings], dict[str, float]]
    servers: tuple[str, ...] = ("go", "nims")
    fresh: bool = False
    start: Callable[[Kind, Path | None], Any] = Server
    rounds: int = 99
    layout: Literal["ratios", "servers"] = "ratios"

    @property
    def group(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]
