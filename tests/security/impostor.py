"""A peer that has no business in the cluster: it listens where it says, plays its part, and writes down every byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from nimsnats.protocol.route_info import AUTH
from tests.conformance.route_peer import info_line

SECRET = "a-secret-that-nobody-may-see"
GUARDED: dict[str, Any] = {"user": "nimsnats", "password": SECRET, "redial_refused": 0.02}


def verbs(heard: bytes) -> set[bytes]:
    """How the lines of the protocol in `heard` begin: what is inside a line, an id or a nonce, may hold any word."""
    return {line.split()[0] for line in heard.split(b"\n") if line.strip()}


class Impostor:
    """What is dialled. `heard` is all that any connection has said to it, `calls` how many there were."""

    def __init__(self) -> None:
        self.port = 0
        self.heard = b""
        self.calls = 0
        self.ended = asyncio.Event()
        """Set whenever a caller has hung up."""

    @property
    def address(self) -> str:
        """Where it listens, as a registry would say."""
        return f"127.0.0.1:{self.port}"

    @property
    def verbs(self) -> set[bytes]:
        """The verbs that it was told."""
        return verbs(self.heard)

    def said(self, verb: bytes) -> dict[str, Any]:
        """The JSON of the last line with that verb."""
        line = [line for line in self.heard.split(b"\r\n") if line.startswith(verb + b" ")][-1]
        return json.loads(line.removeprefix(verb))


class Call:
    """One connection to an impostor."""

    def __init__(self, impostor: Impostor, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._impostor = impostor
        self._reader = reader
        self.writer = writer

    def send(self, *lines: bytes) -> None:
        """Say something."""
        for line in lines:
            self.writer.write(line)

    async def line(self) -> bytes:
        """The next line that the caller says; b"" at the end."""
        line = await self._reader.readline()
        self._impostor.heard += line
        return line

    async def rest(self) -> None:
        """Listen until the caller hangs up."""
        while await self.line():
            pass


Part = Callable[[Call], Awaitable[None]]


@asynccontextmanager
async def impostor(part: Part) -> AsyncIterator[Impostor]:
    """An impostor that plays `part` for everyone who calls."""
    playing: set[asyncio.Task[None]] = set()
    one = Impostor()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one.calls += 1
        call = Call(one, reader, writer)
        try:
            await part(call)
            await call.rest()
        except ConnectionError:
            pass  # it was cut off, which is how this should end
        finally:
            writer.close()
            one.ended.set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(play(reader, writer))
        playing.add(task)
        task.add_done_callback(playing.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()
        for task in list(playing):
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)


def says(*lines: bytes) -> Part:
    """The part of one who says that, whatever it hears."""

    async def part(call: Call) -> None:
        call.send(*lines)

    return part


def challenge(name: str, nonce: str, **more: Any) -> bytes:
    """The first INFO of a node with a secret, or of one that pretends to be."""
    return info_line(name, auth_required=True, **{AUTH: {"nonce": nonce, "instance": "i"}}, **more)


def claim(name: str, proof: str, **more: Any) -> bytes:
    """The second INFO: with what is given out as its proof."""
    return info_line(name, nimsnats={"instance": "i"}, **{AUTH: {"proof": proof}}, **more)
