"""Snapshots and restores under way on this node, and the way of a restore through the cluster.

Owns the tasks, their log lines and advisories. A snapshot is made where the stream is led. A restore is planned by the
node that leads the catalogue, received by the member that is to found the stream (its disk is where the archive goes),
and entered by the catalogue's leader at the end; the other replicas catch up as with any stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import JsonObject
from nimsnats.jetstream.body import Nonsense, fields, stored_config, stream_record, texts
from nimsnats.jetstream.clock import SECOND, format_time
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.info import stream_info
from nimsnats.jetstream.mail import Mail, Unreachable
from nimsnats.jetstream.meta import StreamRecord
from nimsnats.jetstream.snapshot.inflow import Inflow
from nimsnats.jetstream.snapshot.loader import Loader
from nimsnats.jetstream.snapshot.outflow import Broken, Flow, Outflow
from nimsnats.jetstream.snapshot.view import SnapshotView, Unreadable
from nimsnats.raft.transport import node_of
from nimsnats.storage import StorageError

if TYPE_CHECKING:
    from nimsnats.jetstream.account import JetStreamAccount
    from nimsnats.jetstream.advisory import Advisories
    from nimsnats.jetstream.engine import JetStream

MAX_UPLOADS: Final = 64
"""Restores that a node receives at a time: each holds a group and up to 32 MiB of chunks."""
_PATIENCE: Final = 5.0
"""Seconds that another node may take to answer."""
_DOUBT: Final = 10.0
"""Seconds to see whether an entry whose fate is unknown was committed after all."""
_AGAIN: Final = 0.05


class Transfers:
    """See the module. `mail` is None on a server that never has peers."""

    def __init__(self, engine: JetStream, mail: Mail | None, advisories: Advisories) -> None:
        self._engine = engine
        self._advisories = advisories
        self._mail = mail
        self._tasks: set[asyncio.Task[None]] = set()
        self._uploads = 0
        if mail is not None:
            mail.listen("restore", self._on_restore)
            mail.listen("establish", self._on_establish)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._engine.runtime.tend(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Snapshots

    def send(
        self, account: JetStreamAccount, name: str, view: SnapshotView, to: bytes, flow: Flow, who: JsonObject
    ) -> None:
        """Send a snapshot in the background, and let the view go when that has ended."""
        self._spawn(self._send(account, name, view, to, flow, who), f"snapshot {name}")

    async def _send(
        self, account: JetStreamAccount, name: str, view: SnapshotView, to: bytes, flow: Flow, who: JsonObject
    ) -> None:
        engine, start = self._engine, self._engine.runtime.time_ns()
        where = (account.name, name)
        engine.log.info("Starting snapshot for stream '%s > %s'", *where)
        self._advisories.transfer(account.account, "snapshot_create", name, {"state": view.state, "client": who})
        outflow = Outflow(account.account, engine.runtime, name, view, to, flow)
        failure = ""
        try:
            await outflow.run()
        except (Broken, Unreadable, StorageError) as error:
            failure = str(error)
        except Exception:
            engine.log.exception("Snapshot of stream '%s > %s' failed", *where)
            failure = "internal error"
        finally:
            view.close()
        end = engine.runtime.time_ns()
        seconds = (end - start) / SECOND
        if failure:
            engine.log.warning("Snapshot for stream '%s > %s' failed after %.3fs: %s", *where, seconds, failure)
        else:
            engine.log.info(
                "Completed snapshot of %d bytes for stream '%s > %s' in %.3fs", outflow.sent, *where, seconds
            )
        fields: JsonObject = {"start": format_time(start), "end": format_time(end), "client": who}
        self._advisories.transfer(
            account.account, "snapshot_complete", name, {**fields, "error": failure} if failure else fields
        )

    # Restores

    async def receive(self, account: JetStreamAccount, asked: StreamConfig, who: JsonObject) -> str:
        """Prepare a restore, on the node that leads the catalogue; the subject for the chunks. Raises ApiError."""
        config, members = account.plan_restore(asked)
        founder = members[0]
        if founder == self._engine.host.member:
            return self._begin(account, config, members, who)
        assert self._mail is not None
        try:
            plan = [account.name, config.to_stored(), members, who]
            return await self._mail.ask(founder, "restore", plan, _PATIENCE)
        except Unreachable as error:
            raise errors.CLUSTER_NOT_AVAIL() from error

    def _on_restore(self, sender: str, plan: Any) -> str:
        del sender
        account, stored, members, who = fields(plan, str, dict, list, dict)
        config = StreamConfig.from_stored(stored_config(stored))
        if not texts(members):
            raise Nonsense("a stream without members")
        self._engine.dispatcher(account)  # the account may not have been spoken of here
        found = self._engine.accounts.get(account)
        if found is None:
            raise errors.NOT_ENABLED_FOR_ACCOUNT()
        return self._begin(found, config, members, who)

    def _begin(self, account: JetStreamAccount, config: StreamConfig, members: list[str], who: JsonObject) -> str:
        engine = self._engine
        if self._uploads >= MAX_UPLOADS:
            raise errors.STREAM_RESTORE(err=f"this server takes {MAX_UPLOADS} uploads at a time")
        created = engine.runtime.time_ns()
        group = f"S-{account.name}-{config.name}-{created}"
        loader = Loader(engine.host, account.new_stream(config, created), group, engine.consumer_limits)
        record = StreamRecord(account.name, config.name, group, created, config.to_stored(), members, members[0])
        inflow = Inflow(
            account.account,
            loader,
            max_payload=engine.broker.options.max_payload,
            room=partial(self._check_size, config),
            enter=partial(self._enter, account, record),
        )
        self._uploads += 1
        self._spawn(self._receive(account, inflow, config.name, who), f"restore {config.name}")
        return inflow.subject

    def _check_size(self, config: StreamConfig, size: int) -> None:
        """Refuse so many bytes beyond what the node may store. Raises ApiError 10028 or 10047."""
        memory, options = config.storage == "memory", self._engine.options
        limit = options.max_memory if memory else options.max_file
        used = sum(account.usage()[0 if memory else 1] for account in self._engine.accounts.values())
        if 0 <= limit < used + size:
            raise errors.MEMORY_RESOURCES_EXCEEDED() if memory else errors.STORAGE_RESOURCES_EXCEEDED()

    async def _receive(self, account: JetStreamAccount, inflow: Inflow, name: str, who: JsonObject) -> None:
        engine, start = self._engine, self._engine.runtime.time_ns()
        where = (account.name, name)
        engine.log.info("Starting restore for stream '%s > %s'", *where)
        self._advisories.transfer(account.account, "restore_create", name, {"client": who})
        try:
            await inflow.run()
        except StorageError as error:  # the node stops, or its disk has failed: both are told where they are found
            inflow.failure = inflow.failure or str(error)
        finally:
            self._uploads -= 1
            end = engine.runtime.time_ns()
            if inflow.failure:
                engine.log.warning("Restore of stream '%s > %s' failed: %s", *where, inflow.failure)
            else:
                size, seconds = inflow.received, (end - start) / SECOND
                engine.log.info("Completed restore of %d bytes for stream '%s > %s' in %.3fs", size, *where, seconds)
            times = {"start": format_time(start), "end": format_time(end)}
            fields: JsonObject = {**times, "bytes": inflow.received, "client": who}
            self._advisories.transfer(account.account, "restore_complete", name, fields)

    async def _enter(self, account: JetStreamAccount, record: StreamRecord, loader: Loader) -> JsonObject:
        """Make a loaded stream known and serve it; its information. Raises ApiError."""
        enter: Callable[[], Awaitable[None]] = partial(self._establish, account, record, loader)
        await account.take_over(record, loader.stream, loader.group, enter)
        try:
            return await self._engine.leaders.info(record, wait=True)
        except errors.ApiError:  # it is there, whoever leads it now
            return stream_info(loader.stream)

    async def _establish(self, account: JetStreamAccount, record: StreamRecord, loader: Loader) -> None:
        meta = self._engine.meta
        loader.entered = True
        try:
            if self._mail is None or meta.group.leading:
                await account.establish(record)
            else:
                await self._mail.ask(meta.group.leader, "establish", record.fields(), _PATIENCE)
                await self._entered(record)  # requests that come here now would be passed back to the leader
        except (Unreachable, errors.ApiError) as error:
            if isinstance(error, errors.ApiError) and error.err_code not in _IN_DOUBT:
                loader.entered = False
                raise
            if not await self._entered(record):
                loader.entered = False
                raise errors.CLUSTER_NOT_AVAIL() from error

    async def _entered(self, record: StreamRecord) -> bool:
        """Wait until the catalogue has taken up an entry, as this node hears of it; False when that does not happen."""
        runtime = self._engine.runtime
        deadline = runtime.monotonic() + _DOUBT
        while runtime.monotonic() < deadline:
            found = self._engine.meta.streams.get(record.key)
            if found is not None:
                return found.group == record.group
            await runtime.sleep(_AGAIN)
        return False

    async def _on_establish(self, sender: str, body: Any) -> bool:
        record = stream_record(body)
        account = self._engine.accounts.get(record.account)
        if account is None or not self._engine.meta.group.leading:
            raise errors.CLUSTER_NOT_LEADER()
        if node_of(sender) != node_of(record.founder):
            raise errors.BAD_REQUEST()
        await account.establish(record)
        return True


_IN_DOUBT: Final = (errors.STREAM_STORE_FAILED(err="").err_code, errors.CLUSTER_NOT_AVAIL().err_code)
"""Answers after which the entry may still be committed: it was proposed, and leadership was lost."""
