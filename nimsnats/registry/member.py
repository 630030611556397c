"""What every registry client does, whatever carries its requests: heartbeats, registering again, lease, status, log.

Owns: the heartbeat loop and the judgement of answers. Subclasses say how the four requests travel (`_send_*`) and how
changes arrive (`watch_peers`). Never touches the network itself.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from nimsnats.registry.backoff import Backoff
from nimsnats.registry.errors import (
    NameTakenError,
    NotRegisteredError,
    RegistryError,
    UnknownNodeError,
    WatchUnsupportedError,
)
from nimsnats.registry.lease import Lease
from nimsnats.registry.node import NodeInfo
from nimsnats.registry.registry import Listing, Registry, RegistryStatus
from nimsnats.runtime import Runtime

_T = TypeVar("_T")

FIRST_RETRY: Final = 0.5
"""Seconds until the first repeated attempt; doubled up to the heartbeat interval."""

_MOST_KINDS: Final = 16
"""Different failures told between two answers."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A listing as it arrived; the fields as in `Listing`."""

    nodes: Sequence[NodeInfo]
    index: int | None
    skipped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Grant:
    """The registry's yes: it keeps the node for `ttl` seconds (0: it does not say). Without `witness` nothing may be
    concluded from that about other nodes."""

    ttl: float = 0.0
    witness: bool = True


class RegistryMember(Registry):
    """A registry client with heartbeats. `heartbeat_interval` in seconds; shortened to a third of a short TTL.

    `ttl` (seconds) stands in for a registry that does not tell its own; 0 means unknown.
    """

    def __init__(
        self,
        url: str,
        service: str,
        runtime: Runtime,
        *,
        heartbeat_interval: float = 10.0,
        ttl: float = 0.0,
        log: logging.Logger | None = None,
    ) -> None:
        assert heartbeat_interval > 0
        self.service = service
        self.runtime = runtime
        self.status = RegistryStatus(url)
        self.lease = Lease()
        self._log = log or logging.getLogger(__name__)
        self._interval = heartbeat_interval
        self._assumed_ttl = ttl
        self._known_ttl = 0.0
        """What the registry told last; it may cease to promise it, and still keep it."""
        self._info: NodeInfo | None = None
        self._enrolled = False
        """A registration was acknowledged, so a heartbeat comes next."""
        self._confirmed = False
        """A heartbeat was acknowledged since that registration."""
        self._beating: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._said: set[str] = set()
        self._failures: set[str] = set()
        """What has been said to be wrong since the registry answered last."""

    @property
    def name(self) -> str:
        return self._info.name if self._info else ""

    @property
    def info(self) -> NodeInfo | None:
        """What this node is, or is to be, registered as."""
        return self._info

    # -- how requests travel ------------------------------------------------------------------------------------------

    @abstractmethod
    async def _send_register(self, info: NodeInfo) -> Grant: ...

    @abstractmethod
    async def _send_heartbeat(self, info: NodeInfo) -> Grant: ...

    @abstractmethod
    async def _send_deregister(self, info: NodeInfo) -> None: ...

    @abstractmethod
    async def _send_list(self) -> Listed: ...

    # -- Registry -----------------------------------------------------------------------------------------------------

    async def register(self, info: NodeInfo) -> None:
        again = self._info is not None
        self._info = info
        try:
            async with self._turn:
                await self._register(info, again=again)
        finally:
            if self._beating is None:
                self._beating = self.runtime.spawn(self._beat_for_ever(), f"registry-heartbeat-{info.name}")

    async def deregister(self) -> None:
        info = self._info
        await self._stop_beating()
        if info is None:
            return
        self._enrolled = self.status.registered = False
        self.lease.lapse()
        try:
            await self._ask(self._send_deregister(info))
        except (UnknownNodeError, NameTakenError):
            pass  # it is gone, or another instance's, which is what we want
        finally:
            self._info = None

    async def list_nodes(self) -> Listing:
        requested = self.runtime.boot_time_ns()
        listed = await self._ask(self._send_list())
        return Listing(requested, tuple(listed.nodes), listed.index, listed.skipped)

    async def close(self) -> None:
        await self._stop_beating()

    # -- heartbeats ---------------------------------------------------------------------------------------------------

    async def heartbeat(self) -> None:
        """Send one heartbeat now; registers again if the registry has lost this node. Raises `RegistryError`."""
        async with self._turn:
            if self._info is None:
                raise NotRegisteredError("heartbeat before register")
            if not self._enrolled:
                await self._register(self._info, again=True)
                return
            sent = self.runtime.boot_time_ns()
            try:
                grant = await self._ask(self._send_heartbeat(self._info))
            except UnknownNodeError:
                # A registry that has no heartbeats at all answers so every time: registering is its heartbeat.
                level = logging.INFO if self._confirmed else logging.DEBUG
                self._log.log(level, "Registry at %s does not know this node any more", self.status.url)
                await self._register(self._info, again=True, level=level)
            except NameTakenError:
                self.lease.lapse()
                self.status.registered = False
                raise
            else:
                self._confirmed = self.status.registered = True
                self._granted(grant, sent)

    async def _register(self, info: NodeInfo, *, again: bool, level: int = logging.INFO) -> None:
        if again:
            self.lease.lapse()
        self._enrolled = self._confirmed = self.status.registered = False
        sent = self.runtime.boot_time_ns()
        grant = await self._ask(self._send_register(info))
        self._enrolled = self.status.registered = True
        self._granted(grant, sent)
        self._log.log(level, "Registered in registry at %s", self.status.url)

    def _granted(self, grant: Grant, sent_ns: int) -> None:
        ttl = grant.ttl or self._assumed_ttl
        self._known_ttl = ttl or self._known_ttl
        self.lease.renew(sent_ns, int(ttl * 1e9) if grant.witness else 0, self.runtime.boot_time_ns())

    def _pause(self) -> float:
        """Seconds between heartbeats: as configured, but three fit into a TTL."""
        ttl = self._known_ttl
        if not ttl or self._interval <= ttl / 2:
            return self._interval
        self._once(
            logging.WARNING,
            f"Heartbeat interval {self._interval:g}s is too long for the registry's TTL {ttl:g}s: using {ttl / 3:g}s",
        )
        return ttl / 3

    async def _beat_for_ever(self) -> None:
        backoff = Backoff(self.runtime.random, min(FIRST_RETRY, self._interval), self._interval)
        delay = self._pause() if self._enrolled else backoff.delay()
        while True:
            await self.runtime.sleep(delay)
            try:
                await self.heartbeat()
            except RegistryError:
                delay = min(backoff.delay(), self._pause())  # reported where it happened, in `_ask`
            except Exception as error:  # a node that does not beat counts as gone
                self.runtime.fence.caught(self.heartbeat, error)
                delay = min(backoff.delay(), self._pause())
            else:
                backoff.reset()
                delay = self._pause()

    async def _stop_beating(self) -> None:
        task, self._beating = self._beating, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # -- judging answers ----------------------------------------------------------------------------------------------

    async def _ask(self, request: Awaitable[_T]) -> _T:
        """Await one request and keep `status` and the log honest about it."""
        try:
            answer = await request
        except UnknownNodeError:
            self._answered()  # a clear no is an answer
            raise
        except WatchUnsupportedError:
            raise  # so would whatever else listens there say; the listings that follow tell which it is
        except NameTakenError as error:
            self._answered()
            self._once(logging.ERROR, f"Node name {self.name} is taken by another node: the registry {error}")
            raise
        except RegistryError as error:
            self._failed(error)
            raise
        self._answered()
        return answer

    def _answered(self) -> None:
        status = self.status
        if not status.connected and status.failures:
            self._log.info("Registry at %s answers again", status.url)
        self._failures.clear()
        status.connected = True
        status.failures = 0
        status.last_error = ""
        status.last_success = datetime.fromtimestamp(self.runtime.time_ns() / 1e9, UTC)

    def _failed(self, error: RegistryError) -> None:
        """Logged when the trouble begins and for each further kind of it: repeating it would bury everything else."""
        status = self.status
        text = str(error)
        if text not in self._failures and len(self._failures) < _MOST_KINDS:
            self._failures.add(text)
            self._log.warning("Registry at %s: %s; the cluster goes on with what it knows", status.url, text)
        status.connected = False
        status.failures += 1
        status.last_error = text

    def _once(self, level: int, message: str) -> None:
        """Log a message that would otherwise come with every heartbeat or listing. Remembers a bounded number."""
        if message not in self._said and len(self._said) < 512:
            self._said.add(message)
            self._log.log(level, "%s", message)
