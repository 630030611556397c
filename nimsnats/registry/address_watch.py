"""Notices that this machine has got another address: a lease that ended, a moved machine, another way to the world.

Owns: listening for what the kernel says about links, addresses and routes, and asking anew which address to advertise.
What it says is only a hint, read by nobody: the choice is `address.py`'s. A machine that has lost its network keeps the
address that it had, because nobody could dial loopback.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

from nimsnats.registry.address import Advertised, find_address
from nimsnats.runtime import Runtime

_SETTLE: Final = 0.5
"""Seconds after which a change is looked at: they come in flocks."""
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""rtnetlink(7): links, and addresses and routes of IPv4 and IPv6."""
_READ: Final = 65536


class AddressWatch:
    """Calls `moved` whenever the address to advertise is another one than `current`, and the one before.

    `changes` yields when something may have changed; `find` chooses.
    """

    def __init__(
        self,
        current: str,
        moved: Callable[[Advertised], Awaitable[None]],
        runtime: Runtime,
        log: logging.Logger,
        *,
        changes: Callable[[asyncio.AbstractEventLoop], AsyncGenerator[None]] | None = None,
        find: Callable[[], Awaitable[Advertised]] = find_address,
    ) -> None:
        self._current = current
        self._moved = moved
        self._runtime = runtime
        self._log = log
        self._changes = changes or kernel_changes
        self._find = find
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._task = self._runtime.tend(self._run(), "address watch")

    async def stop(self) -> None:
        """Listen no more. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        try:
            async with aclosing(self._changes(self._runtime.loop)) as changes:
                async for _ in changes:
                    await self._runtime.sleep(_SETTLE)
                    try:
                        await self._look()
                    except Exception as error:
                        self._runtime.fence.caught(self._look, error)
        except OSError as error:
            self._log.info("Changes of this machine's address are not noticed: %s", error)

    async def _look(self) -> None:
        found = await self._find()
        if found.address == self._current or ipaddress.ip_address(found.address).is_loopback:
            return
        before, self._current = self._current, found.address
        self._log.info("Advertising %s to other nodes instead of %s (%s)", found.address, before, found.reason)
        await self._moved(found)


async def kernel_changes(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
    """Yields once for everything that the kernel has said since. Raises OSError where there is no netlink."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as kernel:
        kernel.bind((0, _GROUPS))
        while True:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(kernel.fileno(), _set, readable)
            try:
                await readable
            finally:
                loop.remove_reader(kernel.fileno())
            with suppress(BlockingIOError):
                while _heard(kernel):
                    pass
            yield


def _heard(kernel: socket.socket) -> bool:
    """Read and forget one datagram; that some were lost (ENOBUFS) is as good a hint. Raises BlockingIOError."""
    try:
        return bool(kernel.recv(_READ))
    except BlockingIOError:
        raise
    except OSError:
        return False


def _set(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
