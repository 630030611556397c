"""How changes reach the HTTP client: a stream of events where the registry has one, long polling, or plain polling.

Owns: one watcher's walk down that ladder and back up, and its waiting times. Every rung rests on complete listings: a
stream begins with one, so events that a registry forgets, repeats or sends in another dialect cost a listing and never
correctness. Trouble never ends a watch.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Final, Literal, Protocol, cast

import aiohttp

from nimsnats.protocol.json import loads
from nimsnats.registry.backoff import Backoff
from nimsnats.registry.errors import (
    RegistryAnswerError,
    RegistryError,
    RegistryTimeoutError,
    WatchUnsupportedError,
)
from nimsnats.registry.node import NodeInfo
from nimsnats.registry.peers import PeerSet
from nimsnats.registry.registry import PeerEvent
from nimsnats.registry.sse import EventReader, Message
from nimsnats.registry.transport import Answer
from nimsnats.runtime import Runtime

Mode = Literal["sse", "long-poll", "poll"]

STREAM_QUIET: Final = 35.0
"""Seconds without a byte after which a stream is taken for dead; our server says something every 10."""
STREAM_LIFE: Final = 300.0
"""Seconds after which a stream is replaced: bounds what a registry can hide by sending only keep-alives."""
LONG_POLL: Final = 30.0
"""Seconds a long poll asks the registry to wait."""
_HINT_PAUSE: Final = 0.02
"""Seconds before a hint is followed, so that a flood of them does not become one of listings."""
_AT_ONCE: Final = 1.0
_SETTLED: Final = 10.0

Changes = AsyncGenerator[list[PeerEvent]]


class Source(Protocol):
    """What a watch needs of its registry client."""

    runtime: Runtime

    @property
    def name(self) -> str: ...

    async def fetch(self, index: int | None, wait: float | None) -> tuple[list[NodeInfo], int | None]:
        """A listing; with `wait` one that the registry may hold back until something differs from `index`.

        Raises `RegistryError`, `WatchUnsupportedError` if it is only `wait` that the registry does not take.
        """
        ...

    def stream(self, quiet: float) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Open an event stream. Raises `RegistryError`, as `fetch` does, also while the stream is read."""
        ...

    @property
    def streams_are_hints(self) -> bool:
        """Whether what comes on a stream only tells that there is something to look up: it proves nothing itself."""
        ...

    def entries(self, value: object) -> list[NodeInfo]:
        """The valid entries of a listing's JSON. Raises `RegistryAnswerError`."""
        ...


class Watch:
    """One watcher. `modes` are the rungs that it may use, best first; `poll_interval` in seconds; `peers` what its
    consumer knows already.
    """

    def __init__(
        self,
        source: Source,
        modes: Sequence[Mode],
        poll_interval: float,
        report: Callable[[Mode], None],
        peers: PeerSet,
    ) -> None:
        assert modes
        self._source = source
        self._modes = modes
        self._poll_interval = poll_interval
        self._report = report
        self._peers = peers
        self._listed: int | None = None
        """Revision of the latest listing that came while a stream was open."""

    async def events(self) -> AsyncGenerator[PeerEvent]:
        """Peers as they are, then as they come and go, for ever."""
        runtime = self._source.runtime
        backoff = Backoff(runtime.random, min(0.5, self._poll_interval), self._poll_interval)
        rung = 0
        while True:
            mode = self._modes[rung]
            begun = runtime.monotonic()
            worked = False
            try:
                async with aclosing(self._follow(mode)) as changes:
                    async for events in changes:
                        worked = True
                        self._report(mode)
                        for event in events:
                            yield event
                continue
            except WatchUnsupportedError:
                worked = False
            except RegistryError:
                pass  # reported where it happened
            if not worked and rung + 1 < len(self._modes):
                rung += 1
                continue
            rung = 0  # whoever answers next may speak a better dialect
            if runtime.monotonic() - begun > _SETTLED:
                backoff.reset()
            await runtime.sleep(backoff.delay())

    def _follow(self, mode: Mode) -> Changes:
        if mode == "sse":
            return self._stream()
        return self._long_poll() if mode == "long-poll" else self._poll()

    async def _poll(self) -> Changes:
        while True:
            yield await self._listing()
            await self._source.runtime.sleep(self._poll_interval)

    async def _long_poll(self) -> Changes:
        """A registry that answers at once although nothing has changed does not hold requests back."""
        source = self._source
        nodes, index = await source.fetch(None, None)
        yield self._peers.listed(nodes, source.name)
        hasty = 0
        held = False
        while True:
            asked = source.runtime.monotonic()
            try:
                nodes, index = await source.fetch(index, LONG_POLL)
            except RegistryError as error:
                if held:
                    raise
                raise WatchUnsupportedError(f"fails at long polls: {error}") from error
            held = True
            events = self._peers.listed(nodes, source.name)
            yield events
            if source.runtime.monotonic() - asked < _AT_ONCE:
                hasty = 0 if events else hasty + 1
                if hasty > 2:
                    raise WatchUnsupportedError("answers long polls at once")
                await source.runtime.sleep(0.05 * (1 + hasty))

    async def _stream(self) -> Changes:
        source = self._source
        reader = EventReader()
        heard = False
        try:
            async with source.stream(STREAM_QUIET) as response:
                born = source.runtime.monotonic()
                yield await self._listing()
                async for chunk in response.content.iter_any():
                    heard = True
                    messages = list(reader.feed(chunk))
                    if source.streams_are_hints:
                        messages = messages[-1:]  # however many there are, one look is enough
                    for message in messages:
                        if events := await self._understand(message):
                            yield events
                    if source.runtime.monotonic() - born > STREAM_LIFE:
                        return
        except RegistryTimeoutError as error:
            if heard:
                raise
            raise WatchUnsupportedError("something on the way holds the event stream back") from error
        raise RegistryAnswerError("ended the event stream")

    async def _understand(self, message: Message) -> list[PeerEvent]:
        """One message of a stream. What is not our dialect is a hint that something changed: look it up."""
        at = parse_index(message.id)
        if self._listed is not None and at is not None and at <= self._listed:
            return []  # older than the listing that we already have
        source = self._source
        if source.streams_are_hints:
            await source.runtime.sleep(_HINT_PAUSE)
            return await self._listing()
        try:
            value: object = loads(message.data)
            if isinstance(value, list):
                return self._peers.listed(source.entries(cast("list[object]", value)), source.name)
            if message.event == "added":
                return list(self._peers.added(NodeInfo.from_json(value), source.name))
            if message.event == "removed":
                return list(self._peers.removed(NodeInfo.from_json(value).name))
        except (ValueError, RegistryError):
            pass  # asked again below
        return await self._listing()

    async def _listing(self) -> list[PeerEvent]:
        nodes, self._listed = await self._source.fetch(None, None)
        return self._peers.listed(nodes, self._source.name)


def index_of(answer: Answer) -> int | None:
    """The revision that a listing shows, if the registry counts them."""
    return parse_index(answer.headers.get("X-Registry-Index", ""))


def parse_index(text: str) -> int | None:
    """A revision as a header, query or event id carries it; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
