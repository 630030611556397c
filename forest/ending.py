"""How the owner of a task ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN = 0.1


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel `tasks` and return when they have ended, whatever they ended with.

    Asking once is not enough: up to Python 3.11 `asyncio.wait_for`, on which nats-py waits for every answer, swallows
    a cancellation that arrives in the same turn as the answer, and the task goes on as if nothing had been said.
    """
    everyone = list(tasks)
    pending = {task for task in everyone if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN)
    await asyncio.gather(*everyone, return_exceptions=True)
