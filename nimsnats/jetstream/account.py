"""JetStream of one account: its streams, and how they come, change and go.

Owns the name and subject space of the account's streams, the limits across them, the order of creation, update and
deletion (one at a time, on the node that leads the catalogue), and the agreement between the catalogue and the replicas
on this node. Answers to clients are `api/`'s business, storage of the catalogue is `meta.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.config_rules import check_create, check_update, checked
from nimsnats.jetstream.consumer.listening import Listening
from nimsnats.jetstream.consumer.rules import traits_of
from nimsnats.jetstream.consumer.set import ConsumerSet
from nimsnats.jetstream.meta import StreamRecord
from nimsnats.jetstream.peers import named
from nimsnats.jetstream.routed import publishers_group
from nimsnats.jetstream.serving import ServedStream
from nimsnats.jetstream.stream import Environment, Stream

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.jetstream.api.dispatch import ApiDispatcher
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.raft.machine import Group

_WHOLE: Final = 3
"""Members from which on a group is born whole (see `StreamRecord`)."""


class JetStreamAccount:
    """One account's streams. `streams` are those with a replica on this node."""

    def __init__(self, engine: JetStream, account: Account) -> None:
        self.engine = engine
        self.account = account
        self.streams: dict[str, ServedStream] = {}
        self.dispatcher: ApiDispatcher | None = None
        """Set before the first stream is opened."""
        self._changing = asyncio.Lock()
        self._settling: dict[str, asyncio.Lock] = {}
        self._listening = Listening(account, shared=engine.clustered)

    @property
    def name(self) -> str:
        """The account's name."""
        return self.account.name

    def __iter__(self) -> Iterator[Stream]:
        for name in sorted(self.streams):
            yield self.streams[name].stream

    def records(self) -> list[StreamRecord]:
        """The account's lines in the catalogue, by name."""
        found = self.engine.meta.census.account(self.name).records
        return [found[name] for name in sorted(found)]

    def record(self, name: str) -> StreamRecord:
        """A stream's line in the catalogue. Raises ApiError 10059."""
        found = self.engine.meta.streams.get((self.name, name))
        if found is None:
            raise errors.STREAM_NOT_FOUND()
        return found

    def stream(self, name: str) -> Stream:
        """A stream by name. Raises ApiError 10059."""
        return self.served(name).stream

    def served(self, name: str) -> ServedStream:
        """A stream in service by name. Raises ApiError 10059."""
        found = self.streams.get(name)
        if found is None:
            raise errors.STREAM_NOT_FOUND()
        return found

    # Changes, on the node that leads the catalogue

    async def create(self, asked: StreamConfig, *, pedantic: bool) -> StreamRecord:
        """Enter a stream, or find the one that has exactly this configuration already. Raises ApiError.

        It is in service here when this returns, if this node is its founder.
        """
        config = checked(asked, pedantic=pedantic, window_limit=self.engine.window_limit)
        check_create(config)
        async with self._changing:
            existing = self.engine.meta.streams.get((self.name, config.name))
            if existing is not None:
                if StreamConfig.from_stored(existing.config) != config:
                    raise errors.STREAM_NAME_EXIST()
                return existing
            self._check_against_others(config)
            created = self.engine.runtime.time_ns()
            group = f"S-{self.name}-{config.name}-{created}"
            members = self.engine.placement.place(config)
            first = self.engine.placement.first(members, self.engine.leaders.leader)
            record = StreamRecord(self.name, config.name, group, created, config.to_stored(), list(members), first)
            if len(members) >= _WHOLE and config.storage == "file":
                record.founders = list(members)
            await self.engine.meta.add(record)
            await self.settle(config.name)
            served = self.streams.get(config.name)
            if served is not None and served.failure is not None:
                raise served.failure
            self.engine.advise_stream(self.account, "create", config.name)
            return record

    def plan_restore(self, asked: StreamConfig) -> tuple[StreamConfig, list[str]]:
        """What a stream that is to be restored would be, and its members, founder first. Raises ApiError."""
        config = checked(asked, pedantic=False, window_limit=self.engine.window_limit)
        if (self.name, config.name) in self.engine.meta.streams:
            raise errors.STREAM_NAME_EXIST_RESTORE_FAILED()
        if config.num_replicas > 1 and not self.engine.clustered:
            raise errors.STREAM_REPLICAS_NOT_SUPPORTED()
        return config, self.engine.placement.place(config)

    async def establish(self, record: StreamRecord) -> None:
        """Enter a restored stream, whose group is there in full on its founder. Raises ApiError."""
        config = StreamConfig.from_stored(record.config)
        async with self._changing:
            if record.key in self.engine.meta.streams:
                raise errors.STREAM_NAME_EXIST_RESTORE_FAILED()
            self._check_against_others(config)
            await self.engine.meta.add(record)
            self.engine.advise_stream(self.account, "create", config.name)

    async def update(self, asked: StreamConfig, *, pedantic: bool) -> StreamRecord:
        """Change a stream's configuration. Raises ApiError."""
        config = checked(asked, pedantic=pedantic, window_limit=self.engine.window_limit)
        async with self._changing:
            record = self.record(config.name)
            before = StreamConfig.from_stored(record.config)
            if config.num_replicas > 1 and not self.engine.clustered:
                raise errors.STREAM_REPLICAS_NOT_SUPPORTED()
            config = check_update(before, config)
            moves = bool(config.placement) and config.placement != before.placement
            if moves and config.num_replicas != before.num_replicas:
                raise errors.STREAM_MOVE_AND_SCALE()
            self._check_against_others(config)
            await self.engine.leaders.ask(record, "check", config.to_stored())
            members = self.engine.placement.replace(
                record,
                config,
                asked=config.placement != before.placement or config.num_replicas != before.num_replicas,
                keep=self.engine.leaders.leader(record),
            )
            if config != before or members != record.members:
                await self.engine.meta.update(record.key, config.to_stored(), members)
                await self.engine.leaders.ask(record, "settled", config.to_stored())
            self.engine.advise_stream(self.account, "modify", config.name)
            return record

    async def evict(self, name: str, peer: str) -> None:
        """Have another node take over the replica on `peer` (a server's name or peer id). Raises ApiError 10040,
        10075."""
        async with self._changing:
            record = self.record(name)
            member = next((member for member in record.members if named(member, peer)), None)
            if member is None:
                raise errors.CLUSTER_PEER_NOT_MEMBER()
            config = StreamConfig.from_stored(record.config)
            members = self.engine.placement.replace(record, config, without=member)
            if self.engine.leaders.offline(record) or member in members or len(members) < len(record.members):
                raise errors.PEER_REMAP()
            await self.engine.meta.update(record.key, record.config, members)

    async def delete(self, name: str) -> None:
        """Remove a stream and everything in it. Raises ApiError 10059."""
        async with self._changing:
            record = self.record(name)
            await self.engine.meta.remove(record.key)
            await self.settle(name)
            self.engine.advise_stream(self.account, "delete", name)

    def _check_against_others(self, config: StreamConfig) -> None:
        if config.num_replicas > 1 and not self.engine.clustered:
            raise errors.STREAM_REPLICAS_NOT_SUPPORTED()
        if self.engine.meta.census.account(self.name).taken(config.subject_bytes, but=config.name):
            raise errors.STREAM_SUBJECT_OVERLAP()
        self.engine.check_reservation(config)

    def check_consumers(self, stream: Stream, stored: dict[str, Any]) -> None:
        """Limits for consumers may not shrink below what existing ones have. Raises ApiError."""
        config = StreamConfig.from_stored(stored)
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

    # Replicas on this node

    async def settle(self, name: str) -> None:
        """Make this node's replica of a stream what the catalogue says: there, gone, or with other members."""
        lock = self._settling.setdefault(name, asyncio.Lock())
        async with lock:
            record = self.engine.meta.streams.get((self.name, name))
            served = self.streams.get(name)
            if served is not None and (record is None or record.group != served.group_name):
                await self.drop(name)
                served = None
            if record is not None and served is not None:
                served.follow(record)
            elif record is not None and self.engine.keeps(record) and not self.engine.ended.found(record):
                store = (await self.open(record)).stream.store
                if store.messages:  # it was ours before: the rest comes from the others
                    self.engine.log.info("Restored %d messages for stream '%s > %s'", store.messages, self.name, name)
        if record is None:
            self._settling.pop(name, None)

    async def take_over(self, record: StreamRecord, stream: Stream, group: Group, enter: Callable[[], Any]) -> None:
        """Serve a stream whose group has been filled here, once `enter` has put it into the catalogue."""
        async with self._settling.setdefault(record.name, asyncio.Lock()):
            await enter()
            served = self._served(stream, record)
            served.opened(group)
            self.streams[stream.name] = served
            await served.settled.wait()

    async def drop(self, name: str) -> None:
        """The stream is deleted: so is its replica here."""
        served = self.streams.pop(name)
        await served.close(deleted=True)
        await self.engine.host.remove_group(served.group_name)
        self.engine.runtime.tend(served.stream.free(), f"free stream {name}")

    async def retire(self, record: StreamRecord) -> None:
        """The stream lives on, but its group has no member here any more."""
        async with self._settling.setdefault(record.name, asyncio.Lock()):
            if self.engine.meta.streams.get(record.key) is not record or self.engine.holds(record):
                return
            served = self.streams.pop(record.name, None)
            if served is not None:
                await served.close()
            await self.engine.host.remove_group(record.group)

    async def open(self, record: StreamRecord, *, adopt: bool = False) -> ServedStream:
        """Open a stream of the catalogue: recover what its group holds, then take messages.

        The catalogue's configuration counts, unless the stream is to be adopted with the one that it holds itself.
        """
        engine = self.engine
        config = StreamConfig.from_stored(record.config)
        new = record.group not in engine.host.recorded_groups()
        stream = self.new_stream(config, record.created)
        served = self._served(stream, record)
        group = await engine.host.open_group(
            record.group,
            stream,
            storage="file" if config.storage == "file" else "memory",
            members=engine.beginning.founders(record),
        )
        if config.storage == "memory":
            await engine.ended.begun(record)
        served.opened(group, adopt=adopt)
        self.streams[stream.name] = served
        if new and record.founders and record.founder == engine.host.member:
            group.campaign()
        if group.leading:
            await served.settled.wait()
            if served.failure is not None:
                raise served.failure
        return served

    def new_stream(self, config: StreamConfig, created: int) -> Stream:
        """A stream's state machine, for whoever opens its group."""
        return Stream(self.account, config, created, self._environment())

    def _served(self, stream: Stream, record: StreamRecord) -> ServedStream:
        engine = self.engine
        shared = self.dispatcher if engine.clustered else None
        brake = engine.broker.new_brake(self.account, publishers_group(stream.name))
        served = ServedStream(stream, record, brake, domain=engine.options.domain, shared=shared, relay=engine.relay)
        served.ingest.full = lambda: engine.check_room(stream)
        served.on_led = lambda leading: engine.stream_led(served, leading)
        return served

    def _environment(self) -> Environment:
        engine = self.engine
        limits = engine.consumer_limits

        def consumers(stream: Stream) -> ConsumerSet:
            found = ConsumerSet(
                stream,
                self.account,
                engine.runtime,
                lambda: traits_of(stream.config),
                limits,
                engine.log,
                engine.options.domain,
                self._listening,
            )
            if engine.clustered:
                found.cluster = lambda: (
                    engine.peers.cluster(stream.group, stream.led_since) if engine.peers.several else None
                )
            return found

        return Environment(engine.runtime, engine.cache, engine.log, consumers)

    async def close(self) -> None:
        """Stop to serve every stream."""
        for served in list(self.streams.values()):
            await served.close()

    def usage(self) -> tuple[int, int]:
        """Bytes stored in (memory, file) streams."""
        memory = total = 0
        for served in self.streams.values():
            stream = served.stream
            size = stream.store.bytes
            total += size
            if stream.config.storage == "memory":
                memory += size
        return memory, total - memory

    def consumers(self) -> int:
        """Consumers of the streams here."""
        return sum([len(served.stream.consumers) for served in self.streams.values()])

    def reserved(self) -> tuple[int, int]:
        """Sums of `max_bytes` of (memory, file) streams."""
        memory = sum(max(s.config.max_bytes, 0) for s in self if s.config.storage == "memory")
        return memory, sum(max(s.config.max_bytes, 0) for s in self) - memory
