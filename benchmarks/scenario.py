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


QUICK: Final = Settings(warm=0.25, duration=1.0, rounds=3, scale=0.5)


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
    one takes long.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    measure: Callable[[Any, Settings], dict[str, float]]
    servers: tuple[str, ...] = ("go", "nims")
    fresh: bool = False
    start: Callable[[Kind, Path | None], Any] = Server
    rounds: int = 99

    @property
    def group(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]
