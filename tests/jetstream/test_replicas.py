"""The members of a group are brought to what is wanted, whatever comes in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, cast

from nimsnats.jetstream.replicas import Replicas
from nimsnats.raft.machine import NotLeader
from nimsnats.runtime import Runtime


class Reluctant:
    """A group whose changes of members fail as often as is said, and wait until they are let go on."""

    name = "S"
    leading = True
    learners = leaving = ()

    def __init__(self, failures: int) -> None:
        self.members: tuple[str, ...] = ("a",)
        self.failures = failures
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def change_members(self, members: Sequence[str]) -> None:
        self.asked.set()
        await self.go_on.wait()
        if self.failures:
            self.failures -= 1
            raise NotLeader("")
        self.members = tuple(members)


def _replicas(group: Reluctant, wanted: Sequence[str]) -> Replicas:
    runtime = Runtime.real()
    return Replicas(cast("Any", group), lambda: wanted, runtime, logging.getLogger("tests.jetstream"))


async def test_a_change_that_failed_is_tried_again_as_long_as_this_node_leads() -> None:
    group = Reluctant(failures=1)
    replicas = _replicas(group, ["a", "b"])
    group.go_on.set()
    replicas.review()
    await asyncio.wait_for(replicas.complete.wait(), 10)
    assert group.members == ("a", "b")
    await replicas.close()


async def test_a_change_that_was_called_off_and_is_wanted_again_at_once_happens() -> None:
    group = Reluctant(failures=0)
    replicas = _replicas(group, ["a", "b"])
    replicas.review()
    await group.asked.wait()
    group.leading = False
    replicas.review()
    group.leading = True
    replicas.review()
    group.go_on.set()
    await asyncio.wait_for(replicas.complete.wait(), 10)
    assert group.members == ("a", "b")
    await replicas.close()
