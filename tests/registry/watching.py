"""A watch as a test reads it: events one by one, with a limit on waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from nimsnats.registry import NodeInfo, PeerEvent, Registry


class Watched:
    """The events of one `watch_peers`."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[PeerEvent] = asyncio.Queue()

    async def next(self) -> tuple[str, str]:
        """The next event as (type, name)."""
        event = await self.event()
        return event.type, event.node.name

    async def event(self) -> PeerEvent:
        async with asyncio.timeout(10):
            return await self.queue.get()

    def nothing(self) -> bool:
        return self.queue.empty()


@asynccontextmanager
async def watching(registry: Registry, known: Iterable[NodeInfo] = ()) -> AsyncIterator[Watched]:
    watched = Watched()

    async def follow() -> None:
        async for event in registry.watch_peers(known):
            watched.queue.put_nowait(event)

    task = asyncio.create_task(follow())
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    """Give the loop turns until a condition holds that nothing announces."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
