"""A hand-written peer: it speaks the route protocol line by line, to the Go server and to ours alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Self

from tests.broker.route_stand import CLUSTER

MARK = b"PONG\r\n"


def connect_line(name: str, **more: Any) -> bytes:
    """CONNECT as a server sends it; a field given as None is left out."""
    fields = {"verbose": False, "pedantic": False, "headers": True, "name": name, "cluster": CLUSTER, **more}
    return _line(b"CONNECT ", fields)


def info_line(name: str, **more: Any) -> bytes:
    """INFO as a server sends it."""
    fields = {
        "server_id": name, "server_name": name, "version": "2.11.0", "proto": 1, "go": "", "host": "127.0.0.1",
        "port": 1, "headers": True, "max_payload": 1048576, "cluster": CLUSTER, **more,
    }  # fmt: skip
    return _line(b"INFO ", fields)


def greeting(name: str, **more: Any) -> bytes:
    """What a server that dials says first."""
    return connect_line(name) + info_line(name, **more)


def _line(verb: bytes, fields: Mapping[str, Any]) -> bytes:
    return verb + json.dumps({key: value for key, value in fields.items() if value is not None}).encode() + b"\r\n"


class RoutePeer:
    """One connection to a cluster port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.info: dict[str, Any] = {}

    @classmethod
    async def dial(cls, port: int, hello: bytes = b"") -> Self:
        """Dial a server and read its INFO; `hello` (see `greeting`) is sent and its effect awaited."""
        peer = cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**24))
        peer.info = json.loads((await peer.reader.readline())[5:])
        if hello:
            await peer.say(hello)
        return peer

    def send(self, data: bytes) -> None:
        """Send without waiting."""
        self.writer.write(data)

    async def say(self, *pieces: bytes) -> list[bytes]:
        """Send, then a PING; what is answered before its PONG, or before the server hangs up (then `END` is last)."""
        for piece in pieces:
            self.writer.write(piece)
            await asyncio.sleep(0)
        self.writer.write(b"PING\r\n")
        return await self.until(MARK)

    async def until(self, wanted: bytes) -> list[bytes]:
        """What is said before a line that begins like that, without the interest that every Go server has."""
        said: list[bytes] = []
        try:
            while line := await self.reader.readline():
                if line.startswith(wanted):
                    return said
                if line.startswith(b"PING"):
                    self.send(b"PONG\r\n")
                elif line.startswith((b"RMSG", b"HMSG")):
                    size = int(line.split()[-1])
                    said.append(line + await self.reader.readexactly(size + 2))
                elif not line.startswith((b"RS+ $SYS ", b"INFO ")):
                    said.append(line)
        except ConnectionError:
            pass  # cut with input unread, which is an end as well
        return [*said, b"END"]

    def close(self) -> None:
        """Hang up."""
        self.writer.close()
