"""JetStream of one account: its streams, and how they come, change and go.

Owns the name and subject space of the account's streams, the limits across them, and the order of creation, update and
deletion (one at a time). Answers to clients are `api/`'s business, storage of the catalogue is `meta.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nimsnats.jetstream import errors
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.config_rules import check_create, check_update, checked
from nimsnats.jetstream.consumer.listening import Listening
from nimsnats.jetstream.consumer.rules import ServerLimits, traits_of
from nimsnats.jetstream.consumer.set import ConsumerSet
from nimsnats.jetstream.kinds import STREAM_CONFIG
from nimsnats.jetstream.meta import StreamRecord
from nimsnats.jetstream.serving import ServedStream
from nimsnats.jetstream.stream import Environment, Stream
from nimsnats.protocol.overlap import Overlap

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.jetstream.engine import JetStream


class JetStreamAccount:
    """One account's streams."""

    def __init__(self, engine: JetStream, account: Account) -> None:
        self.engine = engine
        self.account = account
        self.streams: dict[str, ServedStream] = {}
        self._changing = asyncio.Lock()
        self._listening = Listening(account)

    @property
    def name(self) -> str:
        """The account's name."""
        return self.account.name

    def __iter__(self) -> Iterator[Stream]:
        for name in sorted(self.streams):
            yield self.streams[name].stream

    def stream(self, name: str) -> Stream:
        """A stream by name. Raises ApiError 10059."""
        return self.served(name).stream

    def served(self, name: str) -> ServedStream:
        """A stream in service by name. Raises ApiError 10059."""
        found = self.streams.get(name)
        if found is None:
            raise errors.STREAM_NOT_FOUND()
        return found

    # Changes

    async def create(self, asked: StreamConfig, *, pedantic: bool) -> Stream:
        """Create a stream, or find the one that has exactly this configuration already. Raises ApiError."""
        config = checked(asked, pedantic=pedantic, window_limit=self.engine.window_limit)
        check_create(config)
        async with self._changing:
            existing = self.streams.get(config.name)
            if existing is not None:
                if existing.stream.config != config:
                    raise errors.STREAM_NAME_EXIST()
                return existing.stream
            self._check_against_others(config)
            created = self.engine.runtime.time_ns()
            group = f"S-{self.name}-{config.name}-{created}"
            record = StreamRecord(self.name, config.name, group, created, config.to_stored())
            await self.engine.meta.add(record)
            served = await self.open(record)
            self.engine.advise_stream(self.account, "create", config.name)
            return served.stream

    async def update(self, asked: StreamConfig, *, pedantic: bool) -> Stream:
        """Change a stream's configuration. Raises ApiError."""
        config = checked(asked, pedantic=pedantic, window_limit=self.engine.window_limit)
        async with self._changing:
            stream = self.stream(config.name)
            if config.num_replicas > 1:
                raise errors.STREAM_REPLICAS_NOT_SUPPORTED()
            config = check_update(stream.config, config)
            self._check_against_others(config)
            self._check_consumers(stream, config)
            if config != stream.config:
                await self.engine.meta.update((self.name, config.name), config.to_stored())
                await stream.change(STREAM_CONFIG, {"config": config.to_stored()})
            self.engine.advise_stream(self.account, "modify", config.name)
            return stream

    async def delete(self, name: str) -> None:
        """Remove a stream and everything in it. Raises ApiError 10059."""
        async with self._changing:
            served = self.served(name)
            await self.engine.meta.remove((self.name, name))
            del self.streams[name]
            await served.close(deleted=True)
            await self.engine.host.remove_group(served.group_name)
            self.engine.advise_stream(self.account, "delete", name)

    def _check_against_others(self, config: StreamConfig) -> None:
        if config.num_replicas > 1:
            raise errors.STREAM_REPLICAS_NOT_SUPPORTED()
        mine = Overlap(config.subject_bytes)
        for other in self:
            if other.name == config.name:
                continue
            if any(map(mine.collides, other.config.subject_bytes)):
                raise errors.STREAM_SUBJECT_OVERLAP()
        self.engine.check_reservation(config)

    @staticmethod
    def _check_consumers(stream: Stream, config: StreamConfig) -> None:
        """Limits for consumers may not shrink below what existing ones have."""
        pending = config.consumer_limits.get("max_ack_pending", 0)
        threshold = config.consumer_limits.get("inactive_threshold", 0)
        violating: list[str] = []
        for name in stream.consumers.names():
            consumer = stream.consumers.get(name)
            if consumer is None:
                continue
            if 0 < pending < consumer.config.max_ack_pending or 0 < threshold < consumer.config.inactive_threshold:
                violating.append(name)
        if violating:
            text = f"change to limits violates consumers: {', '.join(sorted(violating))}"
            raise errors.STREAM_UPDATE(err=text)

    # Opening

    async def open(self, record: StreamRecord, *, adopt: bool = False) -> ServedStream:
        """Open a stream of the catalogue: recover what its group holds, then take messages.

        The catalogue's configuration counts, unless the stream is to be adopted with the one that it holds itself.
        """
        engine = self.engine
        config = StreamConfig.from_stored(record.config)
        stream = Stream(self.account, config, record.created, self._environment())
        served = ServedStream(stream, record.group, domain=engine.options.domain)
        served.ingest.full = lambda: engine.check_room(stream)
        group = await engine.host.open_group(
            record.group, stream, storage="file" if config.storage == "file" else "memory"
        )
        stream.opened(group)
        if not stream.configured:
            await stream.change(STREAM_CONFIG, {"config": record.config, "created": record.created})
        elif stream.config != config and not adopt:
            await stream.change(STREAM_CONFIG, {"config": record.config})
        self.streams[stream.name] = served
        return served

    def _environment(self) -> Environment:
        engine = self.engine
        limits = ServerLimits(engine.options.max_ack_pending, engine.options.max_request_batch)

        def consumers(stream: Stream) -> ConsumerSet:
            return ConsumerSet(
                stream,
                self.account,
                engine.runtime,
                lambda: traits_of(stream.config),
                limits,
                engine.log,
                engine.options.domain,
                self._listening,
            )

        return Environment(engine.runtime, engine.cache, engine.log, consumers)

    async def close(self) -> None:
        """Stop to serve every stream."""
        for served in self.streams.values():
            await served.close()

    def usage(self) -> tuple[int, int]:
        """Bytes stored in (memory, file) streams."""
        memory = sum(stream.store.bytes for stream in self if stream.config.storage == "memory")
        return memory, sum(stream.store.bytes for stream in self) - memory

    def reserved(self) -> tuple[int, int]:
        """Sums of `max_bytes` of (memory, file) streams."""
        memory = sum(max(s.config.max_bytes, 0) for s in self if s.config.storage == "memory")
        return memory, sum(max(s.config.max_bytes, 0) for s in self) - memory
