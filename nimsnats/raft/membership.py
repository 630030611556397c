"""Who belongs to a group, and the single steps by which that changes. Dissertation 4.1 (single-server
changes), 4.2.1 (learners, there "non-voting members").

Owns the membership value and its encoding. A change of more than one voter at a time is impossible here:
majorities of two neighbouring memberships always overlap.

Groups of two are special: either member may hold the right to go on alone (`Core.seize`), which overlaps with no
majority that the other could form without it. So nothing may be committed that the other does not have first, and the
first step away from two voters is one that both must have: a learner, before it becomes the third voter; a note of who
is leaving, before one is left. Whoever has such a membership in its log does not go alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from json import dumps
from typing import Any, cast

from nimsnats.protocol.json import loads


@dataclass(frozen=True, slots=True)
class Membership:
    """Names of voters and learners; disjoint.

    `leaving` are voters that know that they are about to be removed. `number` counts the changes of voters and learners
    since the group began: unlike the log index of a change, it is the same for ever and on every member.
    """

    voters: frozenset[str] = frozenset()
    learners: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    number: int = 0

    def __post_init__(self) -> None:
        assert not self.voters & self.learners and self.leaving <= self.voters and self.number >= 0

    @property
    def everyone(self) -> frozenset[str]:
        """Voters and learners."""
        return self.voters | self.learners

    def with_learner(self, name: str) -> Membership:
        """Add a learner, or make a voter one."""
        return Membership(self.voters - {name}, self.learners | {name})

    def with_voter(self, name: str) -> Membership:
        """Add a voter, or promote a learner."""
        return Membership(self.voters | {name}, self.learners - {name})

    def without(self, name: str) -> Membership:
        """Remove a member."""
        return Membership(self.voters - {name}, self.learners - {name})

    def with_leaving(self, names: frozenset[str]) -> Membership:
        """Note who is about to be removed."""
        return replace(self, leaving=names)

    def after(self, before: Membership) -> Membership:
        """This membership, numbered as the one that follows `before`."""
        same = (self.voters, self.learners) == (before.voters, before.learners)
        return replace(self, number=before.number if same else before.number + 1)

    def is_step_to(self, after: Membership) -> bool:
        """Whether `after` differs by at most one voter, leaves at least one, and, of two, surprises neither."""
        gone, new = self.voters - after.voters, after.voters - self.voters
        if len(gone) + len(new) > 1 or not after.voters:
            return False
        return len(self.voters) != 2 or (gone <= self.leaving and new <= self.learners)

    def encode(self) -> bytes:
        """Stable bytes, for entries and snapshots."""
        return dumps([sorted(self.voters), sorted(self.learners), sorted(self.leaving), self.number]).encode()

    @classmethod
    def decode(cls, data: bytes) -> Membership:
        """The inverse of `encode`; empty bytes are the empty membership. Raises ValueError."""
        if not data:
            return cls()
        fields: Any = loads(data)
        if type(fields) is not list or len(cast("list[Any]", fields)) not in (2, 4):
            raise ValueError("a membership is a list of two or four parts")
        voters, learners, *more = cast("list[Any]", fields)
        leaving, number = more if more else (list[str](), 0)  # what is recorded may be older than these two
        if type(number) is not int:
            raise ValueError("the number of a membership is an integer")
        for names in (voters, learners, leaving):
            if type(names) is not list or any(type(name) is not str for name in cast("list[Any]", names)):
                raise ValueError("the members of a membership are lists of names")
        return cls(frozenset(voters), frozenset(learners), frozenset(leaving), number)

    def __str__(self) -> str:
        learners = f" learners({' '.join(sorted(self.learners))})" if self.learners else ""
        leaving = f" leaving({' '.join(sorted(self.leaving))})" if self.leaving else ""
        return f"voters({' '.join(sorted(self.voters))}){learners}{leaving}"
