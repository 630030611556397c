"""JetStream of a node: the catalogue, the streams of every account, and the API in front of them.

Owns start and stop, limits and statistics of the node, and the agreement between the catalogue (`meta.py`) and what
storage holds: a stream whose catalogue entry was damaged is adopted again, a deleted one is destroyed, and memory
streams end with the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nimsnats.identity import node_hash
from nimsnats.jetstream import errors
from nimsnats.jetstream.account import JetStreamAccount
from nimsnats.jetstream.advisory import Advisories
from nimsnats.jetstream.api.account import AccountApi, disabled_endpoints, system_endpoints
from nimsnats.jetstream.api.consumer import ConsumerApi
from nimsnats.jetstream.api.decode import JsonObject
from nimsnats.jetstream.api.direct import DirectApi
from nimsnats.jetstream.api.dispatch import ApiDispatcher
from nimsnats.jetstream.api.message import MessageApi
from nimsnats.jetstream.api.queue import RequestQueue
from nimsnats.jetstream.api.snapshot import SnapshotApi
from nimsnats.jetstream.api.stream import StreamApi
from nimsnats.jetstream.beginning import Beginning
from nimsnats.jetstream.blocks import BlockCache
from nimsnats.jetstream.clock import SECOND
from nimsnats.jetstream.cluster import Cluster
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.consumer.rules import ServerLimits
from nimsnats.jetstream.consumer.set import ConsumerSet
from nimsnats.jetstream.ended import Ended
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.formation import cluster_id
from nimsnats.jetstream.kinds import STREAM_EXPIRE
from nimsnats.jetstream.leaders import Leaders
from nimsnats.jetstream.mail import Mail, RaftMail
from nimsnats.jetstream.meta import META_PREFIX, Key, Meta, StreamRecord
from nimsnats.jetstream.options import JetStreamOptions
from nimsnats.jetstream.peers import PeerView
from nimsnats.jetstream.placement import NodeTags, Placement
from nimsnats.jetstream.relay import Relay
from nimsnats.jetstream.serving import ServedStream
from nimsnats.jetstream.snapshot.transfers import Transfers
from nimsnats.jetstream.stats import JetStreamStats, totals
from nimsnats.jetstream.stream import Stream
from nimsnats.raft.transport import node_of
from nimsnats.runtime import Runtime

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.server import Broker
    from nimsnats.jetstream.publish import Ingest
    from nimsnats.jetstream.relay import Place
    from nimsnats.raft.host import Host
    from nimsnats.raft.machine import Group

_GROUP_PREFIX: Final = "S-"


class JetStream:
    """See the module. `accounts` maps account names to their streams while the node is up."""

    def __init__(
        self,
        broker: Broker,
        host: Host,
        options: JetStreamOptions,
        runtime: Runtime,
        log: logging.Logger | None = None,
        *,
        clustered: bool = False,
    ) -> None:
        self.broker = broker
        self.host = host
        self.options = options
        self.runtime = runtime
        self.log = log or logging.getLogger("nimsnats.jetstream")
        self.cache = BlockCache(options.cache_bytes)
        self.accounts: dict[str, JetStreamAccount] = {}
        self.meta = Meta(runtime, self.log)
        self.clustered = clustered
        """Whether this node may become part of a cluster of several."""
        self.mail = Mail(broker.system_account, host.member, runtime, self.log) if clustered else None
        self.cluster = Cluster(self, self.mail) if self.mail is not None else None
        self.leaders = Leaders(self, self.mail)
        self.ended = Ended(self, self.mail)
        self.beginning = Beginning(self)
        self.relay = Relay(self.mail, self._way_into, runtime.random) if self.mail is not None else None
        self.tags = NodeTags(host.member, broker.options.tags)
        self.placement = Placement(
            lambda: self.meta,
            self._nodes,
            host.is_lost,
            host.member,
            self.tags,
            cluster=broker.options.cluster_name,
            unique_tag=options.unique_tag,
            strict=options.strict_replicas,
        )
        self.peers = PeerView(broker, host, self.tags, self._several)
        self._transport = RaftMail(broker.system_account, host) if clustered else None
        self._advisories = Advisories(runtime, broker.server_name, options.domain, broker.system_account)
        self._requests = RequestQueue(runtime, broker.slices, self.log, self._advisories.limit_reached)
        self.transfers = Transfers(self, self.mail, self._advisories)
        self._behind: dict[Key, str] = {}
        """Streams that could not be made what the catalogue says, and why."""
        self._dispatchers: list[ApiDispatcher] = []
        self._directs: list[DirectApi] = []
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def server_name(self) -> str:
        """The node's name, as shown in stream information."""
        return self.broker.server_name

    @property
    def consumer_limits(self) -> ServerLimits:
        """What consumers may ask for at most."""
        return ServerLimits(self.options.max_ack_pending, self.options.max_request_batch, clustered=self.clustered)

    @property
    def window_limit(self) -> int:
        """The longest `duplicate_window` allowed, in nanoseconds; 0 is any."""
        return int(self.options.duplicate_window * SECOND)

    async def start(self) -> None:
        """Open the catalogue and every stream, then answer requests. Raises what storage raises."""
        if self._transport is not None:
            self.host.transport = self._transport
        recorded = [name for name in self.host.recorded_groups() if name.startswith(META_PREFIX)]
        instance = self.host.member.rpartition("@")[2]
        await self.open_meta(recorded[-1] if recorded else cluster_id(instance, self.runtime.time_ns()), None)
        await self._rename()  # before there are accounts, which would follow each change at once
        for account in list(self.broker.accounts.values()):
            if self._entitled(account):
                self._add(account)
        await self._destroy_removed()
        for record in list(self.meta.streams.values()):
            await self._open_recorded(record)
        if self._leads_alone():
            await self._adopt_lost()
        for account in list(self.broker.accounts.values()):
            if account.name in self.accounts:
                self._serve(self.accounts[account.name])
            else:
                self._serve_disabled(account)
        self.broker.account_listeners.append(self._account_came)

    async def open_meta(self, name: str, founders: list[str] | None) -> None:
        """Open the catalogue of a cluster; `founders` as for `Host.open_group`."""
        meta = Meta(self.runtime, self.log)
        meta.on_leadership = partial(self._catalogue_led, meta)
        meta.opened(await self.host.open_group(name, meta, members=founders))
        self.meta = meta
        if self.broker.routes is not None:
            self.broker.routes.belong_to(name)
        meta.on_change = self.follow
        if self.cluster is not None:
            self.cluster.opened()
        for key in list(meta.streams) if self.accounts else ():
            self.follow(key)

    def _several(self) -> bool:
        return self.cluster is not None and self.cluster.several

    def _nodes(self) -> tuple[str, ...]:
        return self.cluster.nodes if self.cluster is not None else (self.host.member,)

    def _leads_alone(self) -> bool:
        """Whether the catalogue is this node's own. A damaged one may look like that, and is the others' to repair."""
        return self.meta.group.leading and self.meta.group.members == (self.host.member,)

    async def _rename(self) -> None:
        """A node alone may come back under another name; what it holds is still its own."""
        me = self.host.member
        if "@" not in me or self.meta.group.members != (me,) or not self.meta.group.leading:
            return
        for record in list(self.meta.streams.values()):
            if record.members and me not in record.members:
                instances = {member.rpartition("@")[2] for member in record.members}
                if me.rpartition("@")[2] in instances:
                    await self.meta.update(record.key, record.config, [me])

    # Replicas

    def holds(self, record: StreamRecord) -> bool:
        """Whether this node is to have a replica of a stream."""
        return not record.members or self.host.member in record.members

    def keeps(self, record: StreamRecord) -> bool:
        """Whether a replica is to be open here: also one that is to go, as long as its group may count on it."""
        return self.holds(record) or record.group in self.host.recorded_groups()

    def served(self, record: StreamRecord) -> ServedStream | None:
        """This node's replica of a stream."""
        account = self.accounts.get(record.account)
        served = account.streams.get(record.name) if account is not None else None
        return served if served is not None and served.group_name == record.group else None

    def _way_into(self, place: Place) -> Ingest | None:
        """The way into a stream of this node."""
        account = self.accounts.get(place[0])
        served = account.streams.get(place[1]) if account is not None else None
        return served.ingest if served is not None and served.group_name == place[2] else None

    def dispatcher(self, account: str) -> ApiDispatcher | None:
        """The API of an account, which comes into being when another node speaks of it first."""
        if account not in self.accounts and account != self.broker.system_account.name:
            self.broker.account(account)
        return next((one for one in self._dispatchers if one.account.name == account), None)

    def follow(self, key: Key) -> None:
        """The catalogue says something new about a stream, or may be believed now: make it so here."""
        account = self.accounts.get(key[0])
        if account is not None:
            self._opens(self._settle(account, key[1]))

    async def _settle(self, account: JetStreamAccount, name: str) -> None:
        key = (account.name, name)
        record = self.meta.streams.get(key)
        if record is not None and self.keeps(record) and not (self.served(record) or self.beginning.may(record)):
            self.beginning.postpone(key)
            return
        try:
            await account.settle(name)
        except Exception as error:
            if self._behind.get(key) != str(error):
                self.log.error("Stream '%s > %s' does not follow the catalogue: %s", account.name, name, error)
            self._behind[key] = str(error)
        else:
            if self._behind.pop(key, None) is not None:
                self.log.info("Stream '%s > %s' follows the catalogue again", account.name, name)

    def strays(self) -> list[str]:
        """Stored groups of streams that the catalogue does not know: damage, or news that have not come here yet."""
        known = {record.group for record in self.meta.streams.values()} | self.meta.removed
        return [name for name in self.host.recorded_groups() if name.startswith(_GROUP_PREFIX) and name not in known]

    async def emptied(self, records: Sequence[StreamRecord], unused: Callable[[StreamRecord], bool]) -> bool:
        """Stop taking messages into these streams, all of them here alone; False, and it goes on, if one is not
        `unused` then. Afterwards they are given up, or `resume`d."""
        for record in records:
            served = self.served(record)
            if served is None or not served.stream.leading:
                break
            served.ingest.close()
            # what was proposed before this is decided when this is
            await served.stream.change(STREAM_EXPIRE, {"now": 0})
            if not unused(record):
                break
        else:
            return True
        self.resume(records)
        return False

    def resume(self, records: Sequence[StreamRecord]) -> None:
        """Take messages again."""
        for record in records:
            served = self.served(record)
            if served is not None:
                served.ingest.reopen()

    async def give_up(self) -> None:
        """Forget every stream, and the catalogue: this node joins another cluster, and holds nothing."""
        for account in self.accounts.values():
            for name in list(account.streams):
                await account.drop(name)
        await self.host.remove_group(self.meta.group.name)

    async def hand_over(self) -> None:
        """Let other members lead what this node leads."""
        streams = [served.stream for account in self.accounts.values() for served in account.streams.values()]
        for stream in streams:
            stream.consumers.write_down()
        groups = [stream.group for stream in streams]
        led = [group for group in (*groups, self.meta.group) if group.leading and len(group.members) > 1]
        await asyncio.gather(*(group.transfer() for group in led), return_exceptions=True)

    async def tidy(self) -> None:
        """Remove what the catalogue has struck out, and replicas whose group has let them go; try again what the disk
        had no room for."""
        for key in list(self._behind):
            await self._settle(self.accounts[key[0]], key[1])
        recorded = set(self.host.recorded_groups())
        for group in sorted(self.meta.removed & recorded):
            await self.host.remove_group(group)
        for record in list(self.meta.streams.values()):
            if self.holds(record) or not (self.served(record) or record.group in recorded):
                continue
            # of a stream that lacks replicas what we have may be wanted again: then it need not be copied
            if self.placement.complete(record) and self.host.member not in await self.leaders.members(record):
                await self.accounts[record.account].retire(record)
        await self.ended.tidy()

    def _entitled(self, account: Account) -> bool:
        """Whether an account has JetStream: never the system account, and of the others those that may."""
        named = self.options.accounts
        return account is not self.broker.system_account and (named is None or account.name in named)

    def _serve_disabled(self, account: Account) -> None:
        """Answer the API of an account without JetStream with what it may do, and errors."""
        system = account is self.broker.system_account
        # a nats-server would send its accounts' requests to the system account if it heard of interest there
        strict = self.options.strict
        dispatcher = ApiDispatcher(account, self.runtime, self.log, self._requests, strict=strict, routed=False)
        dispatcher.register(system_endpoints(self) if system else disabled_endpoints())
        if system and self.clustered:
            dispatcher.forward = self.leaders.forward
        self._start(dispatcher)

    def _account_came(self, account: Account) -> None:
        """An account came into being while the node is up: by its first client, or by a reload."""
        if not self._entitled(account):
            self._serve_disabled(account)
            return
        late = self._add(account)
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
        task = self.runtime.tend(work, "jetstream account")
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
        assert account.dispatcher is not None
        self._start(account.dispatcher)

    def _add(self, broker_account: Account) -> JetStreamAccount:
        account = self.accounts[broker_account.name] = JetStreamAccount(self, broker_account)
        strict = self.options.strict
        dispatcher = ApiDispatcher(account.account, self.runtime, self.log, self._requests, strict=strict)
        dispatcher.audit = self._advisories.audit
        account.dispatcher = dispatcher
        if self.cluster is not None:
            dispatcher.forward, dispatcher.several = self.leaders.forward, self.cluster.has_others

        def find(name: str) -> ConsumerSet | None:
            served = account.streams.get(name)
            return served.stream.consumers if served is not None else None

        def group(name: str) -> Group:
            if not self.peers.several:
                raise errors.CLUSTER_REQUIRED()
            return account.stream(name).group

        limits = self.consumer_limits
        direct = DirectApi(account)
        self._directs.append(direct)
        dispatcher.register(AccountApi(account, dispatcher).endpoints())
        dispatcher.register(StreamApi(account).endpoints())
        dispatcher.register(SnapshotApi(account, self.transfers).endpoints())
        dispatcher.register(MessageApi(account).endpoints())
        dispatcher.register(direct.endpoints())
        dispatcher.register(ConsumerApi(find, limits, self.runtime, group, self.leaders.step_down).endpoints())
        return account

    def _start(self, dispatcher: ApiDispatcher) -> None:
        self._dispatchers.append(dispatcher)
        dispatcher.start()

    async def stop(self) -> None:
        """Answer no more requests and stop every stream. Groups stay open for the host to flush."""
        if self._account_came in self.broker.account_listeners:
            self.broker.account_listeners.remove(self._account_came)
        if self.cluster is not None:
            await self.cluster.close()
        await asyncio.gather(*self._opening, return_exceptions=True)
        self.beginning.close()
        for dispatcher in self._dispatchers:
            await dispatcher.close()
        for direct in self._directs:
            await direct.close()
        self._requests.close()
        await self.transfers.close()
        for account in self.accounts.values():
            await account.close()
        if self.mail is not None:
            await self.mail.close()

    # Catalogue and storage

    async def _destroy_removed(self) -> None:
        """Finish deletions, and undo restores, that a crash interrupted."""
        await self.host.clear_provisional()
        recorded = set(self.host.recorded_groups())
        for group in sorted(self.meta.removed & recorded):
            await self.host.remove_group(group)
        self.meta.removed.clear()

    async def _open_recorded(self, record: StreamRecord) -> None:
        account = self.accounts.get(record.account)
        if account is None:
            self.log.warning("JetStream account %s is not configured: its stream %s stays closed", *_where(record))
            return
        if record.config.get("storage") == "memory" and self._leads_alone():
            self.log.warning("Memory stream '%s > %s' ended with the last process", *_where(record))
            await self.meta.remove(record.key)
            await self.host.remove_group(record.group)
            return
        if self.ended.found(record):
            return
        if not self.keeps(record):
            return
        if not self.beginning.may(record):
            self.beginning.postpone(record.key)
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
            me = self.host.member
            record = StreamRecord(owner.name, name, group, int(created), StreamConfig(name).to_stored(), [me], me)
            served = await owner.open(record, adopt=True)
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

    def stream_led(self, served: ServedStream, leading: bool) -> None:
        """This node begins or ceases to lead a stream: tell listeners, where others could."""
        stream = served.stream
        if not self._several() or len(served.record.members) < 2:
            return
        names = stream.consumers.names()

        def replicas() -> list[JsonObject]:
            return self.peers.replicas(stream.group, everyone=True)

        if leading:
            self._advisories.led(stream.account, stream.name, names, self.server_name, replicas)
        elif self.peers.lost_quorum(stream.group):
            self._advisories.quorum_lost(stream.account, stream.name, names, replicas)

    def _catalogue_led(self, meta: Meta, leading: bool) -> None:
        """This node begins or ceases to lead the catalogue."""
        meta.led_since = self.runtime.time_ns() if leading else 0
        if leading and meta is self.meta and self._several():
            leader = node_hash(node_of(self.host.member))
            self._advisories.catalogue_led(
                leader, self.broker.options.cluster_name, lambda: self.peers.replicas(meta.group, everyone=True)
            )

    def stats(self) -> JetStreamStats:
        """Totals over all accounts."""
        return totals(self.accounts.values(), self._dispatchers)

    def api_requests(self, account: str) -> tuple[int, int]:
        """API requests of one account so far: all, and those answered with an error."""
        own = [dispatcher for dispatcher in self._dispatchers if dispatcher.account.name == account]
        return sum(dispatcher.total for dispatcher in own), sum(dispatcher.failed for dispatcher in own)


def _where(record: StreamRecord) -> tuple[str, str]:
    return record.account, record.name
