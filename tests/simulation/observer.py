"""Watches the inside of all nodes for what Raft promises, while they run.

Owns the instrumentation: small wrappers around production methods that tell it who leads and what is applied. It
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from zlib import crc32

from nimsnats.raft.group import HostedGroup
from nimsnats.raft.machine import Entry
from tests.simulation.world import Violation, World


class Observer:
    """Figure 3.2 of the dissertation, as far as it shows outside a group. What it sees ends the history at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.applied = 0
        self.elections = 0
        self._leaders: dict[tuple[str, int], str] = {}
        self._chosen: dict[tuple[str, int], tuple[int, int, int]] = {}

    def leads(self, group: HostedGroup) -> None:
        """A member serves as leader of a term."""
        member = group.host.member
        self.elections += 1
        self.world.trace(group.host.node_name, "leads", f"{group.name} term {group.core.term}")
        other = self._leaders.setdefault((group.name, group.core.term), member)
        if other != member:
            self._violated(f"{member} and {other} both lead {group.name} in term {group.core.term}")

    def applies(self, group: HostedGroup, entry: Entry) -> None:
        """A member applies an entry."""
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
    apply, lead_on = HostedGroup._apply, HostedGroup.lead_on

    def applying(group: HostedGroup, entry: Entry) -> Any:
        observer.applies(group, entry)
        return apply(group, entry)

    def leading(group: HostedGroup) -> Any:
        if not group.serving or group.serving_term != group.core.term:
            observer.leads(group)
        return lead_on(group)

    with patch.object(HostedGroup, "_apply", applying), patch.object(HostedGroup, "lead_on", leading):
        yield
