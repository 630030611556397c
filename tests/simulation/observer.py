"""Watches the inside of all nodes for what Raft promises, while they run.

Owns the instrumentation: small wrappers around production methods that tell it who is elected, what is committed and
what is applied. It sees what no member can: all members and all disks at once. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch
from zlib import crc32

from nimsnats.raft.core import Core, Role
from nimsnats.raft.group import HostedGroup
from nimsnats.raft.leader import Leadership
from nimsnats.raft.log import Unavailable
from nimsnats.raft.machine import Entry
from nimsnats.raft.transport import node_of
from tests.simulation.world import Violation, World


class Observer:
    """Figure 3.2 of the dissertation, from outside. What it sees ends the history at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.applied = 0
        self.elections = 0
        self._cores: dict[int, tuple[Core, HostedGroup]] = {}
        self._elected: dict[tuple[str, int], str] = {}
        self._chosen: dict[tuple[str, int], tuple[int, int, int]] = {}

    def knows(self, core: Core, group: HostedGroup) -> None:
        """A group has a new core."""
        self._cores[id(core)] = core, group

    def wins(self, core: Core) -> None:
        """A member has won an election: the only one in its term (3.4)."""
        _, group = self._cores[id(core)]
        self.elections += 1
        self.world.trace(group.host.node_name, "wins", f"{group.name} term {core.term}")
        other = self._elected.setdefault((group.name, core.term), core.name)
        if other != core.name:
            self._violated(f"{core.name} and {other} were both elected in {group.name} in term {core.term}")

    def commits(self, core: Core, before: int) -> None:
        """A leader has committed more by counting: it must be of its own term (3.6.2), and on the disks of most
        voters, which are not the learners (4.2.1)."""
        log, index = core.log, core.log.committed
        found = self._cores.get(id(core))
        if index <= before or found is None or not found[1].durable:
            return
        group = found[1]
        try:
            term = log.term(index)
        except Unavailable:
            return
        if term != core.term:
            self._violated(f"{core.name} commits {group.name} {index} of term {term} by counting in term {core.term}")
        voters = core.membership.voters
        having = [voter for voter in sorted(voters) if self._has(voter, group.name, index, term)]
        if 2 * len(having) <= len(voters):
            self._violated(f"{core.name} commits {group.name} {index}, which only {having} of {sorted(voters)} have")

    def _has(self, member: str, group: str, index: int, term: int) -> bool:
        """Whether a member's disk holds an entry. A damaged one was there when it was acknowledged, and so was one on a
        disk that has been replaced since."""
        machine, instance = self.world.machine(node_of(member)), member.rpartition("@")[2]
        disk = next((each for each in (machine.disk, *machine.worn) if each.identity.instance == instance), None)
        for kept in disk.groups.values() if disk is not None else ():
            if kept.name == group:
                row = kept.rows.get(index)
                return index <= kept.snapshot[0] or (row is not None and (row.term == term or row.data is None))
        return False

    def applies(self, group: HostedGroup, entry: Entry) -> None:
        """A member applies an entry: the same one as every other member at that index (3.6.3)."""
        self.applied += 1
        found = (entry.term, entry.kind, crc32(entry.data))
        chosen = self._chosen.setdefault((group.name, entry.index), found)
        if chosen != found:
            self._violated(
                f"{group.host.member} applies another entry than was chosen: {group.name} {entry.index}: "
                f"term {entry.term} kind {entry.kind} {entry.data[:60]!r}, chosen was term {chosen[0]} kind {chosen[1]}"
            )

    def _violated(self, text: str) -> None:
        self.world.trace("!!", text)
        self.world.loop.broken.append({"exception": Violation(text)})


@contextmanager
def watching(observer: Observer) -> Iterator[None]:
    """While this is entered, every node is watched."""
    apply, new_core, won, advance = HostedGroup._apply, HostedGroup._new_core, Core._won, Leadership.advance

    def applying(group: HostedGroup, entry: Entry) -> Any:
        observer.applies(group, entry)
        return apply(group, entry)

    def making(group: HostedGroup) -> Core:
        core = new_core(group)
        observer.knows(core, group)
        return core

    def winning(core: Core) -> None:
        won(core)
        if core.role is Role.LEADER:
            observer.wins(core)

    def advancing(leading: Leadership) -> None:
        before = leading._core.log.committed
        advance(leading)
        observer.commits(leading._core, before)

    with ExitStack() as stack:
        for owner, name, watched in (
            (HostedGroup, "_apply", applying),
            (HostedGroup, "_new_core", making),
            (Core, "_won", winning),
            (Leadership, "advance", advancing),
        ):
            stack.enter_context(patch.object(owner, name, watched))
        yield
