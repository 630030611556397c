"""What a running process does on a signal."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from pathlib import Path

import nats
import pytest

from nimsnats import Server, log
from nimsnats.broker.options import User
from nimsnats.process import Process


async def test_hup_and_the_system_account_reload(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nimsnats")
    server = Server(jetstream=False)
    server.settings.broker.users = [User("sys", "s", "$SYS")]
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
    client = await nats.connect(server.url, user="sys", password="s")
    ask = f"$SYS.REQ.SERVER.{server.broker.server_id}.RELOAD"
    assert list(json.loads((await client.request(ask)).data)) == ["server"]
    server.settings.reload = None
    refused = json.loads((await client.request(ask)).data)
    assert refused["error"] == {"code": 500, "description": "config file not specified"}
    await client.close()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert caplog.messages.count("Reloaded server configuration") == 2


async def test_a_node_that_is_told_to_stop_while_it_starts_does_so_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nimsnats")
    waiting = asyncio.Event()

    async def wait_for_ever(_http: object) -> None:
        waiting.set()
        await asyncio.Event().wait()

    server = Server(store_dir=tmp_path, monitor_port=-1)
    server.on_http.append(wait_for_ever)
    running = asyncio.create_task(Process(server).run())
    await waiting.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert caplog.messages[-2:] == ["Told to stop while starting", "Server Exiting.."]
    async with Server(store_dir=tmp_path):
        pass  # the directory is free again


async def test_usr1_goes_on_in_a_new_file(tmp_path: Path) -> None:
    """What logrotate does: move the file away, send the signal, read the old one in peace."""
    path = tmp_path / "node.log"
    output = log.start_logging(log.LogSettings(file=str(path), format="json"))
    server = Server(jetstream=False)
    running = asyncio.create_task(Process(server).run())
    try:
        await _written(path, "Server is ready")
        path.rename(tmp_path / "node.log.1")
        os.kill(os.getpid(), signal.SIGUSR1)
        await _written(path, "File log re-opened")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 0
        logging.getLogger().removeHandler(output)
        logging.getLogger("nimsnats").setLevel(logging.NOTSET)
        output.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["message"] for line in lines] == ["File log re-opened", "Initiating Shutdown...", "Server Exiting.."]
    assert all(json.loads(line) for line in (tmp_path / "node.log.1").read_text().splitlines())


async def _written(path: Path, text: str) -> None:
    while not path.exists() or text not in path.read_text():  # noqa: ASYNC110, ASYNC240 - a file is no event
        await asyncio.sleep(0.001)
