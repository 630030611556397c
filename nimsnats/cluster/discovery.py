"""The loop that asks the registry who is there: one query at start, then a watch for as long as the node lives.

Owns: the watching task. It tells the manager what it hears and decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from nimsnats.registry import NodeInfo, Registry, RegistryError
from nimsnats.runtime import Runtime

_RESTART = 5.0


class Discovery:
    """Feeds `found` and `lost` from one registry. `known` tells what they have made of it so far: a watch begins with
    the difference to that, so nothing that happens between the query and the watch, or between two watches, is missed.
    """

    def __init__(
        self,
        registry: Registry,
        runtime: Runtime,
        found: Callable[[NodeInfo], None],
        lost: Callable[[NodeInfo], None],
        known: Callable[[], list[NodeInfo]],
        log: logging.Logger,
    ) -> None:
        self._registry = registry
        self._runtime = runtime
        self._found = found
        self._lost = lost
        self._known = known
        self._log = log
        self._task: asyncio.Task[None] | None = None

    async def query(self) -> list[NodeInfo] | None:
        """The peers registered now, or None if the registry cannot say (it has reported why)."""
        try:
            return await self._registry.get_peers()
        except RegistryError:
            return None

    def watch(self) -> None:
        """Begin to follow changes, until `stop`."""
        assert self._task is None
        self._task = self._runtime.spawn(self._watch(), "cluster-discovery")

    async def stop(self) -> None:
        """Stop following. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                async with aclosing(self._registry.watch_peers(self._known())) as events:
                    async for event in events:
                        if event.type == "added":
                            self._found(event.node)
                        else:
                            self._lost(event.node)
            except Exception as error:
                # A fault of ours in judging what the registry says must not leave the node deaf for good.
                self._runtime.fence.caught(self._watch, error)
                self._log.error("Watching the registry failed; beginning again")
            await self._runtime.sleep(_RESTART)
