"""The registry server without its HTTP: the catalog on a clock, with a database and with callers that wait.

Owns: the expiry timer, the database's lifetime and the waiters. The HTTP API (`api`) and the registry clients of the
same process (`local`, `memory`) work on it, so that all of them see one order of events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from nimsnats.registry.catalog import Catalog, Change
from nimsnats.registry.errors import RegistryFullError
from nimsnats.registry.node import NodeInfo
from nimsnats.registry.store import RegistryStore
from nimsnats.runtime import Runtime


class Directory:
    """Every service that one registry server knows.

    `ttl` (seconds) is how long a node stays listed after its latest heartbeat. With `path`, registrations survive a
    restart in that SQLite file. `open` before use, `close` at the end.
    """

    def __init__(
        self, runtime: Runtime, *, ttl: float = 30.0, path: Path | None = None, log: logging.Logger | None = None
    ) -> None:
        self.runtime = runtime
        self.ttl = ttl
        self.closed = False
        self._log = log or logging.getLogger(__name__)
        self._catalog = Catalog(runtime.time_ns() // 1_000_000, ttl)
        self._store = RegistryStore(path, runtime, self._log) if path is not None else None
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: dict[str, dict[Callable[[], None], None]] = {}

    @property
    def persistent(self) -> bool:
        """Whether everything registered is on disk right now."""
        return self._store is not None and not self._store.error

    @property
    def trouble(self) -> str:
        """Why the disk does not hold everything that it should; empty when it does, or there is none."""
        return self._store.error if self._store is not None else ""

    @property
    def granted(self) -> float:
        """The TTL that nodes are told, in seconds; 0, which is no promise, while the disk refuses: a restart could
        bring back whom this registry has told others to be gone, so it must be nobody's witness."""
        return 0.0 if self.trouble else self.ttl

    async def open(self) -> None:
        """Load what an earlier run has left. Raises `RegistryStoreError`."""
        if self._store is None:
            return
        for service, info, owner in await self._store.open():
            self._catalog.restore(service, info, self.runtime.monotonic(), owner)
        self._arm()

    def release(self) -> None:
        """End every wait, now and from now on; nodes can still register and deregister."""
        self.closed = True
        for service in list(self._waiters):
            self._wake(service)

    async def close(self) -> None:
        """Release every waiter, stop expiry, write what is pending. Nodes are not deregistered. Idempotent."""
        self.release()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._store is not None:
            store, self._store = self._store, None
            await store.close()

    async def register(
        self, service: str, info: NodeInfo, ttl: float | None = None, *, owner: str = "", source: str = ""
    ) -> NodeInfo:
        """Insert or replace a node, return it as listed; it is on disk when this returns.

        `ttl` overrides the directory's for this registration (tests announce peers that never expire). `owner` is the
        key without which nobody changes the entry from now on; `source` names a stranger's address, whose entries are
        counted. Raises `RegistryFullError`, and `NameTakenError` if the name is another owner's.
        """
        self._sweep(service)
        at = datetime.fromtimestamp(self.runtime.time_ns() / 1e9, UTC)
        before, mark, belonged = self._catalog.index(service), digest(owner), self._catalog.owner(service, info.name)
        try:
            listed = self._catalog.register(service, info, self.runtime.monotonic(), at, ttl, owner=mark, source=source)
        except RegistryFullError:
            self._sweep_all()  # what has expired makes room first
            listed = self._catalog.register(service, info, self.runtime.monotonic(), at, ttl, owner=mark, source=source)
        self._arm()
        belongs = self._catalog.owner(service, info.name)
        if self._catalog.index(service) != before:
            self._wake(service)
        if self._store is not None and (self._catalog.index(service) != before or belongs != belonged):
            await asyncio.shield(self._store.put(service, listed, belongs))
        return listed

    def heartbeat(self, service: str, name: str, instance: str = "", owner: str = "") -> NodeInfo:
        """Grant another TTL. Raises `UnknownNodeError` or `NameTakenError`."""
        self._sweep(service)
        return self._catalog.heartbeat(service, name, instance, self.runtime.monotonic(), digest(owner))

    async def deregister(self, service: str, name: str, instance: str = "", owner: str = "") -> bool:
        """Take a node away; False if it was not there. Raises `NameTakenError` if it is there as another `instance`,
        or belongs to another `owner`."""
        self._sweep(service)
        if not self._catalog.remove(service, name, self.runtime.monotonic(), instance, digest(owner)):
            return False
        self._wake(service)
        if self._store is not None:
            await asyncio.shield(self._store.delete(service, name))
        return True

    async def listing(self, service: str) -> tuple[list[NodeInfo], int]:
        """The living nodes and the revision, once all of it is on disk: whom this answer omits, no restart brings back.

        A node whose entry was taken away while it lives may not know that yet. Another goes on without it because of
        this answer; should a restart undo the removal, nothing would tell the first.
        """
        found = self.nodes(service)
        if self._store is not None:
            await self._store.written()
        return found

    def nodes(self, service: str) -> tuple[list[NodeInfo], int]:
        """The living nodes of a service, the longest registered first, and the revision of this answer."""
        self._sweep(service)
        return self._catalog.nodes(service, self.runtime.monotonic())

    def services(self) -> dict[str, int]:
        """Names of the services that have nodes, with how many."""
        self._sweep_all()
        return self._catalog.services()

    def index(self, service: str) -> int:
        """The revision of a service's latest change."""
        return self._catalog.index(service)

    def changes(self, service: str, since: int) -> list[Change] | None:
        """What happened after revision `since`, or None if only a full listing can tell."""
        return self._catalog.changes(service, since)

    async def changed(self, service: str, since: int, timeout: float | None = None) -> bool:
        """Wait until the service is at another revision than `since`; False after `timeout` seconds or a `release`."""
        woken = asyncio.Event()
        waiters = self._waiters.setdefault(service, {})
        waiters[woken.set] = None
        timer = None if timeout is None else self.runtime.call_later(timeout, woken.set)
        try:
            if not self.closed and self._catalog.index(service) == since:
                await woken.wait()
        finally:
            waiters.pop(woken.set, None)
            if not waiters and self._waiters.get(service) is waiters:
                del self._waiters[service]
            if timer is not None:
                timer.cancel()
        return not self.closed and self._catalog.index(service) != since

    def poke(self, service: str) -> None:
        """Make everyone who waits for this service look again, changed or not."""
        self._wake(service)

    def _wake(self, service: str) -> None:
        for wake in self._waiters.pop(service, ()):
            wake()

    def _sweep(self, service: str) -> None:
        """Let the nodes of one service expire that are due, whoever noticed it first."""
        gone = self._catalog.expire(service, self.runtime.monotonic())
        for info in gone:
            self._log.info("Node %s of service %s expired: no heartbeat for %gs", info.name, service, self.ttl)
            if self._store is not None:
                self._store.delete(service, info.name)
        if gone:
            self._wake(service)

    def _arm(self) -> None:
        """Have a timer run at the next deadline known now. Heartbeats move deadlines; the timer just looks again."""
        if self._timer is None and not self.closed and (deadline := self._catalog.next_deadline()) is not None:
            delay = max(0.0, deadline - self.runtime.monotonic())
            if delay != float("inf"):
                self._timer = self.runtime.call_later(delay, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._sweep_all()
        self._arm()

    def _sweep_all(self) -> None:
        for service in self._catalog.names():
            try:
                self._sweep(service)
            except Exception as error:
                self.runtime.fence.caught(self._sweep, error)


def digest(owner: str) -> str:
    """What is kept of an owner's key: enough to know it again."""
    return sha256(owner.encode("utf-8", "surrogateescape")).hexdigest() if owner else ""
