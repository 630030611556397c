"""A way between two processes that a test can cut."""

from __future__ import annotations

import asyncio

from tests.ports import free_port


class Cut:
    """Listens on `port` and passes everything on to `target`, another port of this machine; until it is cut.

    A cut ends the connections there are, and whoever connects meanwhile is hung up on.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._is_cut = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Cut:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.cut()
        self._server.close()

    def cut(self) -> None:
        """From now on nothing gets through."""
        self._is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def heal(self) -> None:
        """New connections get through."""
        self._is_cut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        onward: asyncio.StreamWriter | None = None
        try:
            if not self._is_cut:
                answers, onward = await asyncio.open_connection("127.0.0.1", self._target)
                self._writers.add(onward)
                if self._is_cut:
                    return
                await asyncio.gather(_carry(reader, onward), _carry(answers, writer))
        except OSError:
            pass  # one side is gone: so is the other, in a moment
        finally:
            for each in (writer, onward):
                if each is not None:
                    self._writers.discard(each)
                    each.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
