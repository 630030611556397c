"""A registry as a process of its own, for clusters under test."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import Process

from tests.ports import free_port


class RegistryProcess:
    """`python -m nimsnats registry` on a loopback port; `ttl` as on the command line."""

    def __init__(self, ttl: str = "30s") -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._ttl = ttl
        self._process: Process | None = None

    async def __aenter__(self) -> RegistryProcess:
        await self.start()
        return self

    async def start(self) -> None:
        """Start with an empty memory."""
        listen = self.url.removeprefix("http://")
        command = [sys.executable, "-m", "nimsnats", "registry", "--listen", listen, "--ttl", self._ttl]
        self._process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        assert self._process.stderr is not None
        async with asyncio.timeout(20):
            async for line in self._process.stderr:
                if b"Registry listening" in line:
                    return
        raise AssertionError("the registry did not start")

    async def restart(self) -> None:
        """Killed and started again, it has forgotten everything."""
        await self.kill()
        await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
