"""Who belongs to a group, and the single steps by which that changes. Dissertation 4.1 (single-server
changes), 4.2.1 (learners, there "non-voting members").

Owns the membership value and its encoding. A change of more than one voter at a time is impossible here:
majorities of two neighbouring memberships always overlap.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Membership:
    """Names of voters and learners; disjoint."""

    voters: frozenset[str] = frozenset()
    learners: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert not self.voters & self.learners

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

    def is_step_to(self, after: Membership) -> bool:
        """Whether `after` differs by at most one voter and leaves at least one."""
        return len(self.voters ^ after.voters) <= 1 and bool(after.voters)

    def encode(self) -> bytes:
        """Stable bytes, for entries and snapshots."""
        return json.dumps([sorted(self.voters), sorted(self.learners)]).encode()

    @classmethod
    def decode(cls, data: bytes) -> Membership:
        """The inverse of `encode`; empty bytes are the empty membership. Raises ValueError."""
        if not data:
            return cls()
        fields: Any = json.loads(data)
        voters, learners = fields
        return cls(frozenset(voters), frozenset(learners))

    def __str__(self) -> str:
        learners = f" learners({' '.join(sorted(self.learners))})" if self.learners else ""
        return f"voters({' '.join(sorted(self.voters))}){learners}"
