"""One group as an observer sees it at a moment: for monitoring, never for decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nimsnats.raft.core import Role

if TYPE_CHECKING:
    from nimsnats.raft.group import HostedGroup


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """Indexes are log indexes; `leader` and `vote` are members (`node@instance`), empty for none."""

    name: str
    role: Role
    serving: bool
    term: int
    vote: str
    leader: str
    members: tuple[str, ...]
    learners: tuple[str, ...]
    committed: int
    applied: int
    last: int
    last_term: int
    snapshot: int
    """Index of the last snapshot: the log begins behind it."""
    pending_entries: int
    pending_bytes: int
    """What was applied since the last snapshot."""
    impaired: bool
    silent: bool
    """Nothing happens in the group, so that it is not ticked."""

    @property
    def quorum(self) -> int:
        """How many members have to agree."""
        return len(self.members) // 2 + 1


def status_of(group: HostedGroup) -> GroupStatus:
    """What there is to see of a group now."""
    core = group.core
    entries, size = group.since_snapshot
    return GroupStatus(
        name=group.name,
        role=core.role,
        serving=group.serving,
        term=core.term,
        vote=core.vote,
        leader=core.leader,
        members=group.members,
        learners=group.learners,
        committed=core.log.committed,
        applied=group.applied,
        last=core.log.last,
        last_term=core.log.last_term,
        snapshot=core.log.snapshot,
        pending_entries=entries,
        pending_bytes=size,
        impaired=group.impaired,
        silent=not group.alone and group.replica.quiet,
    )
