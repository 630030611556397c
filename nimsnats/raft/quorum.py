"""Majorities: pure arithmetic over what voters acknowledged or answered. Dissertation 3.3 and 3.4."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum


class Verdict(Enum):
    """How an election stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(count: int) -> int:
    """Smallest number of `count` voters that is more than half."""
    return count // 2 + 1


def committed(acknowledged: Iterable[int]) -> int:
    """The highest index that a majority of voters has acknowledged. One number per voter; no voters commit
    nothing."""
    ordered = sorted(acknowledged, reverse=True)
    return ordered[len(ordered) // 2] if ordered else 0


def election(voters: Collection[str], votes: Mapping[str, bool]) -> Verdict:
    """How an election among `voters` stands; `votes` of others do not count."""
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    needed = majority(len(voters))
    if granted >= needed:
        return Verdict.WON
    return Verdict.LOST if len(voters) - refused < needed else Verdict.PENDING
