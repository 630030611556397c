"""A nimsnats process under test: started, awaited by its own log lines, killed, started again on the same ports."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ports import free_port

READY = "nimsforest is ready"
SERVER_READY = "Server is ready"
START_LIMIT = 120.0  # on a machine that does other things too


class DidNotStart(AssertionError):
    """The process ended, or said nothing useful in time; carries what it logged."""


class NodeProcess:
    """One `python -m nimsnats …` process with its data directory and fixed loopback ports.

    `arguments` come before the ports that this class chooses; `ready` is the log line that ends the start. `enter` is
    called in the new process before anything else.
    """

    address = "127.0.0.1"
    enter: Callable[[], None] | None = None

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        command: str = "",
        ready: str = READY,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.client_port = free_port()
        self.monitor_port = free_port()
        self.arguments = arguments
        self.command = command
        self.ready = ready
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self.log: list[str] = []
        self.process: Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"nats://{self.address}:{self.client_port}"

    def _command_line(self) -> list[str]:
        python = [sys.executable, "-m", "nimsnats"]
        if self.command == "server":
            ports = ["-a", "127.0.0.1", "-p", str(self.client_port), "-m", str(self.monitor_port)]
            return [*python, "server", *ports, "-js", "-sd", str(self.data_dir), *self.arguments]
        ports = ["--client-port", str(self.client_port), "--monitor-port", str(self.monitor_port)]
        where = ["--cluster-port", "-1", "--advertise", "127.0.0.1", "--data-dir", str(self.data_dir)]
        return [*python, *ports, *where, *self.arguments]

    async def start(self) -> None:
        """Start and wait for the ready line; raises DidNotStart with the log when it does not come."""
        assert self.process is None, "already running"
        self.process = await asyncio.create_subprocess_exec(
            *self._command_line(),
            stdout=PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self.environment,
            preexec_fn=self.enter,
        )
        ready = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read_log(self.process, ready))
        try:
            await asyncio.wait_for(ready, START_LIMIT)
        except Exception as reason:
            await self.kill()
            raise DidNotStart("\n".join(self.log[-40:])) from reason

    async def _read_log(self, process: Process, ready: asyncio.Future[None]) -> None:
        assert process.stdout is not None
        async for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self.log.append(line)
            if self.ready in line and not ready.done():
                ready.set_result(None)
        if not ready.done():
            ready.set_exception(DidNotStart("the process ended"))

    async def signal(self, number: signal.Signals) -> int:
        """Send a signal and wait for the process to end; returns its exit code (negative: ended by that signal)."""
        assert self.process is not None and self._reader is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        code = await self.process.wait()
        await self._reader
        self.process = None
        return code

    async def kill(self) -> None:
        """kill -9: nothing in the process gets a chance to say goodbye."""
        if self.process is not None:
            await self.signal(signal.SIGKILL)

    async def terminate(self) -> int:
        """SIGTERM, the orderly way; returns the exit code."""
        return await self.signal(signal.SIGTERM)

    async def get(self, path: str) -> Any:
        """GET a JSON document from the monitor port."""

        def fetch() -> Any:
            with urllib.request.urlopen(f"http://{self.address}:{self.monitor_port}{path}", timeout=10) as answer:
                return json.load(answer)

        return await asyncio.to_thread(fetch)

    async def __aenter__(self) -> NodeProcess:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
