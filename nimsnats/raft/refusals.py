"""Entries of a group's log that could not be applied, as every member of the group remembers them.

Owns the record: how many there were, and the newest of them with index, kind and reason. It is part of the replicated
state: members fill it alike while they apply, and it travels in snapshots. What is not the same on every member does
not belong here: an error of this node alone (no memory, a disk that fails) says nothing about the entry.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final, cast

from nimsnats.raft.machine import BadEntry, Entry, StateMachine
from nimsnats.storage.errors import StorageError

OF_THIS_NODE: Final = (MemoryError, RecursionError, OSError, StorageError)
"""Errors that other members need not have at the same entry. How deep a recursion may go depends on who called; what
is read out of an entry is bounded in depth, so that none comes from there."""
KEPT: Final = 16
"""Refusals that are remembered one by one."""
_LONGEST: Final = 200


@dataclass(frozen=True, slots=True)
class Refusal:
    """One entry that was refused."""

    index: int
    kind: int
    reason: str


class Refusals:
    """Of one group: `count` in all, the `newest` of them, oldest first."""

    __slots__ = ("count", "newest")

    def __init__(self) -> None:
        self.count = 0
        self.newest: deque[Refusal] = deque(maxlen=KEPT)

    def note(self, index: int, kind: int, reason: str) -> Refusal:
        """Remember one."""
        refusal = Refusal(index, kind, reason[:_LONGEST])
        self.count += 1
        self.newest.append(refusal)
        return refusal

    def stored(self) -> list[Any]:
        """A msgpack-able form; empty when there are none."""
        return [self.count, [[each.index, each.kind, each.reason] for each in self.newest]] if self.count else []

    def restore(self, stored: Any) -> None:
        """Become what `stored` returned, or nothing where a snapshot of an earlier version has none."""
        self.count = 0
        self.newest.clear()
        if stored:
            count, newest = cast("tuple[int, list[tuple[int, int, str]]]", stored)
            self.count = count
            self.newest.extend(Refusal(*each) for each in newest)


def refused(machine: StateMachine, entry: Entry, error: Exception) -> Refusal:
    """Record that applying an entry has raised this, which is no error `OF_THIS_NODE`. Of an error that nobody has
    foreseen only the name is recorded: the words may differ between versions of Python."""
    reason = str(error) if isinstance(error, BadEntry) else f"{type(error).__name__} while it was applied"
    return machine.refusals.note(entry.index, entry.kind, reason)
