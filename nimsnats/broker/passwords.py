"""Comparing passwords with bcrypt hashes: slow by design, so on threads of its own, and in fair turns.

Owns the threads and the queue of logins that wait for them. Addresses take turns, so that who guesses passwords from
one address keeps nobody waiting who comes from another one; and the queue is bounded: when it is full, the newest login
of the address with the most of them is refused at once. It knows no users and closes no connection.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import bcrypt

if TYPE_CHECKING:
    from nimsnats.runtime import Runtime

WAITING: Final = 1024
"""Logins that wait for a thread at most."""
_MOST_BYTES: Final = 72
"""What bcrypt looks at of a password."""

_Login = tuple[bytes, bytes, "asyncio.Future[bool]"]
"""The hash, what was given, and who waits for the answer."""


class Passwords:
    """The logins with hashed passwords of one broker. Threads come into being with the first of them."""

    def __init__(self, runtime: Runtime, waiting: int = WAITING, threads: int = 0) -> None:
        self.refused = 0
        """Logins that were refused unseen, because too many waited."""
        self._runtime = runtime
        self._most = waiting
        self._threads = threads or max(1, (os.cpu_count() or 1) // 2)
        """Threads that compute; the loop and the disk need the other cores."""
        self._executor: ThreadPoolExecutor | None = None
        self._lanes: dict[str, deque[_Login]] = {}
        """Who waits, by address; the next address first."""
        self._count = 0
        self._busy = 0

    async def fits(self, secret: str, given: str, address: str) -> bool:
        """Whether `given` is the password of the hash `secret`; False also for one that is refused unseen. Cancelled,
        it leaves the queue."""
        answer: asyncio.Future[bool] = self._runtime.loop.create_future()
        login = (secret.encode(), given.encode()[:_MOST_BYTES], answer)
        if self._busy < self._threads:
            self._begin(login)
            return await answer
        lane = self._lanes.setdefault(address, deque())
        lane.append(login)
        self._count += 1
        if self._count > self._most:
            self._refuse_one()
        try:
            return await answer
        except asyncio.CancelledError:
            self._leave(login, address)
            raise

    def close(self) -> None:
        """Compute nothing more; what a thread is at is not waited for."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    def _refuse_one(self) -> None:
        address = max(self._lanes, key=lambda address: len(self._lanes[address]))
        _, _, answer = self._lanes[address].pop()
        self._taken(address)
        self.refused += 1
        if not answer.done():
            answer.set_result(False)

    def _leave(self, login: _Login, address: str) -> None:
        lane = self._lanes.get(address)
        if lane is not None and login in lane:
            lane.remove(login)
            self._taken(address)

    def _taken(self, address: str) -> None:
        self._count -= 1
        if not self._lanes[address]:
            del self._lanes[address]

    def _begin(self, login: _Login) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="passwords")
        self._busy += 1
        secret, given, answer = login
        running = self._runtime.loop.run_in_executor(self._executor, _check, secret, given)
        running.add_done_callback(lambda done: self._ended(done, answer))

    def _ended(self, done: asyncio.Future[bool], answer: asyncio.Future[bool]) -> None:
        self._busy -= 1
        if not answer.done() and not done.cancelled():
            error = done.exception()
            if error is None:
                answer.set_result(done.result())
            else:
                answer.set_exception(error)
        if self._executor is not None and (login := self._next()) is not None:
            self._begin(login)

    def _next(self) -> _Login | None:
        """Take the login out whose turn it is; None when nobody waits."""
        while self._lanes:
            address, lane = next(iter(self._lanes.items()))
            login = lane.popleft()
            del self._lanes[address]
            if lane:
                self._lanes[address] = lane  # behind the other addresses
            self._count -= 1
            if not login[2].done():
                return login
        return None


def _check(secret: bytes, given: bytes) -> bool:
    try:
        return bcrypt.checkpw(given, secret)
    except ValueError:
        return False  # not a hash that bcrypt can read: nobody gets in with it
