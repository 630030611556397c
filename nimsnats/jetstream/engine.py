"""JetStream of a node: the catalogue, the streams of every account, and the API in front of them.

Owns start and stop, limits and statistics of the node, and the agreement between the catalogue (`meta.py`) and what
storage holds: a stream whose catalogue entry was damaged is adopted again, a deleted one is destroyed, and memory
streams end with the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.account import JetStreamAccount
from nimsnats.jetstream.advisory import Advisories
from nimsnats.jetstream.api.account import AccountApi, disabled_endpoints, system_endpoints
from nimsnats.jetstream.api.consumer import ConsumerApi
from nimsnats.jetstream.api.direct import DirectApi
from nimsnats.jetstream.api.dispatch import ApiDispatcher
from nimsnats.jetstream.api.message import MessageApi
from nimsnats.jetstream.api.stream import StreamApi
from nimsnats.jetstream.blocks import BlockCache
from nimsnats.jetstream.clock import SECOND
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.consumer.rules import ServerLimits
from nimsnats.jetstream.consumer.set import ConsumerSet
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.meta import META_GROUP, Meta, StreamRecord
from nimsnats.jetstream.options import JetStreamOptions
from nimsnats.jetstream.stream import Stream
from nimsnats.runtime import Runtime

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.server import Broker
    from nimsnats.raft.host import Host

_GROUP_PREFIX: Final = "S-"


@dataclass(slots=True)
class JetStreamStats:
    """Totals of a node, for the monitor."""

    accounts: int
    streams: int
    consumers: int
    messages: int
    bytes: int
    memory: int
    file: int
    reserved_memory: int
    reserved_file: int
    api_total: int
    api_errors: int


class JetStream:
    """See the module. `accounts` maps account names to their streams while the node is up."""

    def __init__(
        self,
        broker: Broker,
        host: Host,
        options: JetStreamOptions,
        runtime: Runtime,
        log: logging.Logger | None = None,
    ) -> None:
        self.broker = broker
        self.host = host
        self.options = options
        self.runtime = runtime
        self.log = log or logging.getLogger("nimsnats.jetstream")
        self.cache = BlockCache(options.cache_bytes)
        self.accounts: dict[str, JetStreamAccount] = {}
        self.meta = Meta(runtime.loop, self.log)
        self._advisories = Advisories(runtime, broker.server_name, options.domain)
        self._dispatchers: list[ApiDispatcher] = []
        self._directs: list[DirectApi] = []
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def server_name(self) -> str:
        """The node's name, as shown in stream information."""
        return self.broker.server_name

    @property
    def window_limit(self) -> int:
        """The longest `duplicate_window` allowed, in nanoseconds; 0 is any."""
        return int(self.options.duplicate_window * SECOND)

    async def start(self) -> None:
        """Open the catalogue and every stream, then answer requests. Raises what storage raises."""
        self.meta.opened(await self.host.open_group(META_GROUP, self.meta))
        for account in list(self.broker.accounts.values()):
            if self._entitled(account):
                self.accounts[account.name] = JetStreamAccount(self, account)
        await self._destroy_removed()
        for record in list(self.meta.streams.values()):
            await self._open_recorded(record)
        await self._adopt_lost()
        for account in list(self.broker.accounts.values()):
            if account.name in self.accounts:
                self._serve(self.accounts[account.name])
            else:
                self._serve_disabled(account)
        self.broker.account_listeners.append(self._account_came)

    def _entitled(self, account: Account) -> bool:
        """Whether an account has JetStream: never the system account, and of the others those that may."""
        named = self.options.accounts
        return account is not self.broker.system_account and (named is None or account.name in named)

    def _serve_disabled(self, account: Account) -> None:
        """Answer the API of an account without JetStream with what it may do, and errors."""
        system = account is self.broker.system_account
        # a nats-server would send its accounts' requests to the system account if it heard of interest there
        dispatcher = ApiDispatcher(account, self.runtime, self.log, strict=self.options.strict, routed=False)
        dispatcher.register(system_endpoints(self) if system else disabled_endpoints())
        self._start(dispatcher)

    def _account_came(self, account: Account) -> None:
        """An account came into being while the node is up: by its first client, or by a reload."""
        if not self._entitled(account):
            self._serve_disabled(account)
            return
        late = self.accounts[account.name] = JetStreamAccount(self, account)
        if any(record.account == account.name for record in self.meta.streams.values()):
            self._opens(self._open_late(late))
        else:
            self._serve(late)

    async def _open_late(self, account: JetStreamAccount) -> None:
        """Open what an account left behind when it was last configured, then serve it."""
        for record in list(self.meta.streams.values()):
            if record.account == account.name:
                await self._open_recorded(record)
        self._serve(account)

    def entitle(self, names: frozenset[str]) -> None:
        """Give more accounts JetStream while the node is up (a reload)."""
        assert self.options.accounts is not None
        self.options.accounts |= names
        for name in sorted(names - self.accounts.keys()):
            account = self.broker.accounts.get(name)
            if account is None:
                self.broker.account(name)  # `_account_came` hears of it
            elif self._entitled(account):
                self._opens(self._promote(account))

    async def _promote(self, account: Account) -> None:
        """An account that has been told that it has no JetStream gets it."""
        for dispatcher in [one for one in self._dispatchers if one.account is account]:
            self._dispatchers.remove(dispatcher)
            await dispatcher.close()
        self._account_came(account)

    def _opens(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.runtime.spawn(work, "jetstream account")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def purge_account(self, name: str) -> None:
        """Delete every stream of an account, also of one that is not configured any more."""
        account = self.accounts.get(name)
        if account is not None:
            for stream in list(account.streams):
                await account.delete(stream)
        for record in [one for one in self.meta.streams.values() if one.account == name]:
            await self.meta.remove((record.account, record.name))
            await self.host.remove_group(record.group)
        self.log.info("Purged JetStream account %s", name)

    def _serve(self, account: JetStreamAccount) -> None:
        dispatcher = ApiDispatcher(account.account, self.runtime, self.log, strict=self.options.strict)
        dispatcher.audit = self._advisories.audit

        def find(name: str) -> ConsumerSet | None:
            served = account.streams.get(name)
            return served.stream.consumers if served is not None else None

        limits = ServerLimits(self.options.max_ack_pending, self.options.max_request_batch)
        direct = DirectApi(account)
        self._directs.append(direct)
        dispatcher.register(AccountApi(account, dispatcher).endpoints())
        dispatcher.register(StreamApi(account).endpoints())
        dispatcher.register(MessageApi(account).endpoints())
        dispatcher.register(direct.endpoints())
        dispatcher.register(ConsumerApi(find, limits, self.runtime).endpoints())
        self._start(dispatcher)

    def _start(self, dispatcher: ApiDispatcher) -> None:
        self._dispatchers.append(dispatcher)
        dispatcher.start()

    async def stop(self) -> None:
        """Answer no more requests and stop every stream. Groups stay open for the host to flush."""
        if self._account_came in self.broker.account_listeners:
            self.broker.account_listeners.remove(self._account_came)
        await asyncio.gather(*self._opening, return_exceptions=True)
        for dispatcher in self._dispatchers:
            await dispatcher.close()
        for direct in self._directs:
            await direct.close()
        for account in self.accounts.values():
            await account.close()

    # Catalogue and storage

    async def _destroy_removed(self) -> None:
        """Finish deletions that a crash interrupted."""
        recorded = set(self.host.recorded_groups())
        for group in sorted(self.meta.removed & recorded):
            await self.host.remove_group(group)
        self.meta.removed.clear()

    async def _open_recorded(self, record: StreamRecord) -> None:
        account = self.accounts.get(record.account)
        if account is None:
            self.log.warning("JetStream account %s is not configured: its stream %s stays closed", *_where(record))
            return
        if record.config.get("storage") == "memory":
            self.log.warning("Memory stream %s > %s ended with the last process", *_where(record))
            await self.meta.remove((record.account, record.name))
            return
        served = await account.open(record)
        store = served.stream.store
        self.log.info("Restored %d messages for stream '%s > %s'", store.messages, *_where(record))
        if store.lost:
            self.log.error("Stream '%s > %s' has lost %d messages", *_where(record), len(store.lost))

    async def _adopt_lost(self) -> None:
        """Take back streams that storage holds and the catalogue does not know, after damage to the catalogue."""
        known = {record.group for record in self.meta.streams.values()}
        for group in self.host.recorded_groups():
            if not group.startswith(_GROUP_PREFIX) or group in known:
                continue
            owner = self._owner_of(group)
            if owner is None:
                self.log.error("Stored group %s belongs to no account of this node", group)
                continue
            name, created = group.removeprefix(f"{_GROUP_PREFIX}{owner.name}-").rsplit("-", 1)
            record = StreamRecord(owner.name, name, group, int(created), StreamConfig(name).to_stored())
            served = await owner.open(record, adopt=True)
            record.config = served.stream.config.to_stored()
            await self.meta.add(record)
            self.log.error(
                "Stream '%s > %s' was missing in the damaged catalogue and is back with %d messages",
                *(*_where(record), served.stream.store.messages),
            )

    def _owner_of(self, group: str) -> JetStreamAccount | None:
        """The account in a group's name: the longest that fits, as names may hold dashes."""
        fitting = [a for a in self.accounts.values() if group.startswith(f"{_GROUP_PREFIX}{a.name}-")]
        return max(fitting, key=lambda account: len(account.name), default=None)

    # Limits

    def check_reservation(self, config: StreamConfig) -> None:
        """Refuse `max_bytes` beyond what the node may store. Raises ApiError 10028 or 10047."""
        limit = self.options.max_memory if config.storage == "memory" else self.options.max_file
        if limit < 0 or config.max_bytes < 0:
            return
        reserved = config.max_bytes
        for account in self.accounts.values():
            for stream in account:
                if stream.config.storage == config.storage and stream.name != config.name:
                    reserved += max(stream.config.max_bytes, 0)
        if reserved > limit:
            if config.storage == "memory":
                raise errors.MEMORY_RESOURCES_EXCEEDED()
            raise errors.STORAGE_RESOURCES_EXCEEDED()

    def check_room(self, stream: Stream) -> ApiError | None:
        """Why nothing may be stored now: the node's memory or file limit is reached."""
        memory = stream.config.storage == "memory"
        limit = self.options.max_memory if memory else self.options.max_file
        if limit < 0:
            return None
        used = sum(account.usage()[0 if memory else 1] for account in self.accounts.values())
        return errors.INSUFFICIENT_RESOURCES() if used >= limit else None

    # Events and statistics

    def advise_stream(self, account: Account, action: str, name: str) -> None:
        """Tell listeners that a stream was created, modified or deleted."""
        self._advisories.stream(account, action, name)

    def stats(self) -> JetStreamStats:
        """Totals over all accounts."""
        accounts = list(self.accounts.values())
        streams = [stream for account in accounts for stream in account]
        memory = sum(account.usage()[0] for account in accounts)
        size = sum(stream.store.bytes for stream in streams)
        return JetStreamStats(
            accounts=len(accounts),
            streams=len(streams),
            consumers=sum(len(stream.consumers) for stream in streams),
            messages=sum(stream.store.messages for stream in streams),
            bytes=size,
            memory=memory,
            file=size - memory,
            reserved_memory=sum(account.reserved()[0] for account in accounts),
            reserved_file=sum(account.reserved()[1] for account in accounts),
            api_total=sum(dispatcher.total for dispatcher in self._dispatchers),
            api_errors=sum(dispatcher.failed for dispatcher in self._dispatchers),
        )

    def api_requests(self, account: str) -> tuple[int, int]:
        """API requests of one account so far: all, and those answered with an error."""
        own = [dispatcher for dispatcher in self._dispatchers if dispatcher.account.name == account]
        return sum(dispatcher.total for dispatcher in own), sum(dispatcher.failed for dispatcher in own)


def _where(record: StreamRecord) -> tuple[str, str]:
    return record.account, record.name
