"""What a running process does on a signal."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from nimsnats import Server
from nimsnats.process import Process


async def test_hup_without_a_file_says_what_was_reloaded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nimsnats")
    server = Server(jetstream=False)
    server.settings.reload = lambda: server.settings
    ready = asyncio.Event()
    start = server.start

    async def started() -> None:
        await start()
        ready.set()

    server.start = started  # type: ignore[method-assign]
    running = asyncio.create_task(Process(server).run())
    await ready.wait()
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGHUP)
    while "Reloaded" not in caplog.text:  # noqa: ASYNC110 a signal is no event of ours
        await asyncio.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert "Reloaded server configuration" in caplog.messages
