"""Brings a group's members to what the catalogue says, as often as it takes, while this node leads the group.

Owns one task a group, which ends when nothing is left to do. The steps (learner, catch-up, voter, removal) are Raft's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nimsnats.raft.machine import NotLeader, TransferFailed

if TYPE_CHECKING:
    from nimsnats.raft.machine import Group
    from nimsnats.runtime import Runtime

_AGAIN: Final = 0.3
"""Seconds until a change that failed is tried again."""
_PATIENCE: Final = 5.0
"""Seconds until a change that takes long is looked at anew; it goes on from where the group stands."""


class Replicas:
    """The members of one group, as wanted. `wanted` is asked anew whenever something may have changed."""

    def __init__(
        self, group: Group, wanted: Callable[[], Sequence[str]], runtime: Runtime, log: logging.Logger
    ) -> None:
        self._group = group
        self._wanted = wanted
        self._runtime = runtime
        self._log = log
        self._task: asyncio.Task[None] | None = None
        self._target: tuple[str, ...] = ()
        self.complete = asyncio.Event()
        """Set while the group has the members that it should have."""

    def review(self) -> None:
        """Something has changed: leadership, or what is wanted."""
        wanted = tuple(sorted(self._wanted()))
        if not self._group.leading or not wanted:
            self._drop()
            return
        if self._group.members == wanted and not self._group.learners and not self._group.leaving:
            self._drop()
            self.complete.set()
            return
        self.complete.clear()
        if self._task is not None and not self._task.done():
            if wanted == self._target:
                return
            self._task.cancel()
        self._target = wanted
        self._task = self._runtime.tend(self._change(wanted), f"members of {self._group.name}")

    async def _change(self, wanted: tuple[str, ...]) -> None:
        while self._group.leading:
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._group.change_members(wanted)
            except TimeoutError:
                continue
            except (NotLeader, ValueError, TransferFailed) as error:
                self._log.debug("Members of %s stay for now: %s", self._group.name, error)
                await self._runtime.sleep(_AGAIN)
            except Exception as error:
                self._runtime.fence.caught(self._group.change_members, error)
                await self._runtime.sleep(_AGAIN)
            else:
                self.complete.set()
                return

    def _drop(self) -> None:
        self._target = ()  # what is wanted next begins a task, also while this one is still ending
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Change nothing more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
