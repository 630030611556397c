"""Who is to be in the meta group: the memory of the member that leads it.

Owns the reasons: who asks for a place, who prepares to leave or leaves, who was away for too long, and which member's
name is borne by another one now (its disk was lost). It is forgotten with the lead: who wants something asks again, and
the rest is seen again. How the group gets there is Raft's (`replicas.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from nimsnats.raft.quorum import majority
from nimsnats.raft.transport import node_of

if TYPE_CHECKING:
    from nimsnats.raft.machine import Group
    from nimsnats.runtime import Runtime

ABSENT: Final = 5.0
"""Seconds that a member must be lost to registry and routes before the others remove it."""
_HALT: Final = 10.0
"""Seconds that a stop takes at most; by then a member that stops is missed, or has come back."""
_EARNEST: Final = 3.0
"""Seconds for which a request for a place holds: whoever waits for one repeats it."""


class Roster:
    """`group` is the meta group, `is_lost` tells whether a member is silent, `gone` whether a node, by name, is neither
    registered nor connected."""

    def __init__(self, me: str, runtime: Runtime, is_lost: Callable[[str], bool], gone: Callable[[str], bool]) -> None:
        self._me = me
        self._runtime = runtime
        self._is_lost = is_lost
        self._gone = gone
        self._coming: dict[str, float] = {}
        self._evading: set[str] = set()
        self._leaving: set[str] = set()
        self._swept: set[str] = set()
        """Silent members that evade or leave with others; if they are heard of again they stay."""
        self._halting: dict[str, float] = {}
        """Members that stop and stay members, and when they said so."""
        self._said: dict[str, float] = {}
        """Members that want to evade or leave, and when they said so last."""
        self._absent: dict[str, float] = {}

    def forget(self) -> None:
        """This member leads no more, or another cluster."""
        self._coming.clear()
        self._evading.clear()
        self._leaving.clear()
        self._swept.clear()
        self._halting.clear()
        self._said.clear()
        self._absent.clear()

    @property
    def restless(self) -> bool:
        """Whether members are on their way in or out."""
        return bool(self._leaving or self._evading or self._coming)

    def staying(self, members: Collection[str]) -> tuple[str, ...]:
        """Those of the members that can hold replicas: all but those about to leave."""
        return tuple(member for member in members if member not in self._leaving | self._evading)

    def wanted(self, group: Group) -> list[str]:
        """The members that the group should have."""
        now = self._runtime.monotonic()
        self._coming = {member: at for member, at in self._coming.items() if now - at < _EARNEST}
        learners = {member for member in group.learners if member in self._coming or not self._is_lost(member)}
        present = {*group.members, *learners, *self._coming}
        return sorted(present - self._leaving) or [self._me]

    # What is heard

    def comes(self, member: str, group: Group) -> None:
        """A node asks for a place. Of two members with one node's name only the newcomer is alive."""
        self._coming[member] = self._runtime.monotonic()
        self._halting.pop(member, None)
        self._leaving.discard(member)
        self._evading.discard(member)
        self._absent.pop(member, None)
        self.speaks(member, group)

    def speaks(self, member: str, group: Group) -> None:
        """This member is the one that its node is now."""
        everyone = (*group.members, *group.learners, *self._coming)
        former = {other for other in everyone if other != member and node_of(other) == node_of(member)}
        self._leaving |= former
        for other in former:
            self._coming.pop(other, None)

    def removes(self, members: Collection[str]) -> None:
        """An operator wants these to leave."""
        self._leaving.update(members)

    def halts(self, member: str, group: Group) -> bool:
        """A member is about to stop. Whether the rest can go on without it, and lose another one: then it stays a
        member, and what it holds need not move; else it had better leave."""
        here = [other for other in group.members if other != member and not self._is_away(other)]
        if len(here) - 1 < majority(len(group.members)):
            return False
        self._halting[member] = self._runtime.monotonic()
        return True

    def _is_away(self, member: str) -> bool:
        said = self._halting.get(member)
        return self._is_lost(member) or (said is not None and self._runtime.monotonic() - said < _HALT)

    def evades(self, member: str, group: Group) -> bool:
        """A member prepares to leave; whether that is news."""
        return self._goes(member, group, self._evading)

    def leaves(self, member: str, group: Group) -> bool:
        """A member leaves; whether that is news."""
        return self._goes(member, group, self._leaving)

    def _goes(self, member: str, group: Group, chosen: set[str]) -> bool:
        self._coming.pop(member, None)
        self._said[member] = self._runtime.monotonic()
        if member not in group.members or member in chosen:
            return False
        # those who are away cannot agree to anything: they leave first, or the rest has no majority
        silent = {other for other in group.members if self._is_away(other)} - chosen
        self._swept |= silent
        self._swept.discard(member)
        chosen |= {member, *silent}
        return True

    def review(self, group: Group) -> list[str]:
        """Look for members that registry and routes have lost; returns those that leave because of it since now."""
        now = self._runtime.monotonic()
        back = {member for member in self._swept if not self._is_away(member)}
        # whoever is here so long after it wanted to go could not leave in time, has stopped all the same, and is back
        back |= {member for member, at in self._said.items() if now - at > _HALT and not self._is_lost(member)}
        self._said = {member: at for member, at in self._said.items() if member in group.members and member not in back}
        self._swept -= back
        self._evading -= back
        self._leaving -= back
        self._leaving.intersection_update({*group.members, *group.learners})
        self._evading.intersection_update(group.members)
        self._coming = {member: at for member, at in self._coming.items() if member not in group.members}
        lost: list[str] = []
        for member in group.members:
            if member == self._me or not self._gone(node_of(member)):
                self._absent.pop(member, None)
            elif now - self._absent.setdefault(member, now) > ABSENT and member not in self._leaving:
                self._leaving.add(member)
                lost.append(member)
        return lost
