"""A machine that gets another address: noticed once it has settled, and never given up for loopback."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator

from nimsnats.registry.address import Advertised
from nimsnats.registry.address_watch import AddressWatch
from nimsnats.runtime import Runtime
from tests.raft.cluster import run


def test_another_address_is_told_once() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        runtime = Runtime(lambda: int(loop.time() * 1e9), random.Random(1), loop)
        hints: asyncio.Queue[None] = asyncio.Queue()
        addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.2", "127.0.0.1", "10.0.0.2", "10.0.0.3"]
        told: list[str] = []

        async def changes(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
            del loop
            while True:
                yield await hints.get()

        async def find() -> Advertised:
            return Advertised(addresses.pop(0), "a test says so")

        async def moved(found: Advertised) -> None:
            told.append(found.address)

        watch = AddressWatch("10.0.0.1", moved, runtime, logging.getLogger("test"), changes=changes, find=find)
        watch.start()
        for _ in range(len(addresses)):
            hints.put_nowait(None)
        while addresses:
            await runtime.sleep(1)
        await watch.stop()
        assert told == ["10.0.0.2", "10.0.0.3"]

    run(test)
