"""Logins with hashed passwords: fair turns, a bound, and threads that nobody else needs."""

from __future__ import annotations

import asyncio
import threading

import bcrypt
import pytest

from nimsnats.broker import passwords as module
from nimsnats.broker.auth import ConfiguredAuthenticator
from nimsnats.broker.options import User
from nimsnats.broker.passwords import Passwords
from nimsnats.runtime import Runtime
from tests.broker.peer import Peer, running, until

SECRET = bcrypt.hashpw(b"s3cret", bcrypt.gensalt(4)).decode()


class Gate:
    """Stands for bcrypt: says in which order it is asked, and answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.open = threading.Event()

    def check(self, given: bytes, secret: bytes) -> bool:
        self.asked.append(given)
        assert self.open.wait(30)
        return secret == given


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(module.bcrypt, "checkpw", gate.check)
    return gate


async def _asking(passwords: Passwords, logins: list[tuple[str, str]]) -> list[asyncio.Task[bool]]:
    tasks = [asyncio.create_task(passwords.fits("right", given, address)) for address, given in logins]
    for _ in range(3):  # turns: until they wait, or are told
        await asyncio.sleep(0)
    return tasks


async def test_addresses_take_turns(gate: Gate) -> None:
    passwords = Passwords(Runtime.real(), threads=1)
    tasks = await _asking(passwords, [("a", f"a{i}") for i in range(5)] + [("b", "b0"), ("c", "right"), ("b", "b1")])
    gate.open.set()
    assert await asyncio.gather(*tasks) == [False] * 6 + [True, False]
    assert gate.asked == [b"a0", b"a1", b"b0", b"right", b"a2", b"b1", b"a3", b"a4"]
    assert passwords.refused == 0
    passwords.close()


async def test_a_full_queue_refuses_the_newest_of_who_has_most(gate: Gate) -> None:
    passwords = Passwords(Runtime.real(), waiting=4, threads=1)
    tasks = await _asking(passwords, [("a", f"a{i}") for i in range(8)])
    assert [task.done() for task in tasks] == [False] * 5 + [True] * 3  # one is at work, four wait
    (other,) = await _asking(passwords, [("b", "right")])
    assert not other.done() and tasks[4].done() and not tasks[4].result()
    assert passwords.refused == 4
    gate.open.set()
    assert await other
    assert b"a4" not in gate.asked
    passwords.close()


async def test_who_leaves_is_not_computed(gate: Gate) -> None:
    passwords = Passwords(Runtime.real(), threads=1)
    tasks = await _asking(passwords, [("a", "a0"), ("a", "a1"), ("b", "b0"), ("a", "a2")])
    tasks[1].cancel()
    tasks[2].cancel()
    gate.open.set()
    assert not await tasks[3] and not await tasks[0]
    assert gate.asked == [b"a0", b"a2"]
    passwords.close()


async def test_the_threads_of_others_stay_free(gate: Gate) -> None:
    passwords = Passwords(Runtime.real())
    tasks = await _asking(passwords, [(f"a{i}", "right") for i in range(100)])
    assert await asyncio.to_thread(lambda: 7) == 7  # nothing of it waits for a password
    gate.open.set()
    assert all(await asyncio.gather(*tasks))
    passwords.close()


async def _guessing(port: int, count: int) -> list[asyncio.Task[bytes]]:
    """Log in with wrong passwords; what each hears until the server hangs up."""
    heard: list[asyncio.Task[bytes]] = []
    for _ in range(count):
        peer = await Peer.connect(port, b"")
        peer.send(b'CONNECT {"user":"u","pass":"guess"}\r\n')
        heard.append(asyncio.create_task(peer.rest()))
    return heard


async def test_the_authentication_timeout_covers_the_queue(gate: Gate) -> None:
    async with running(users=[User("u", SECRET)], auth_timeout=0.05) as broker:
        heard = await asyncio.gather(*await _guessing(broker.port, 4))
        assert set(heard) == {b"-ERR 'Authentication Timeout'\r\n"}
        await until(lambda: not broker.clients)
        gate.open.set()


async def test_over_the_bound_a_login_is_refused_at_once(gate: Gate) -> None:
    async with running(users=[User("u", SECRET)], auth_timeout=60.0) as broker:
        broker.passwords = Passwords(broker.runtime, waiting=2, threads=1)
        broker.authenticator = ConfiguredAuthenticator(broker.options, broker.passwords)
        heard = await _guessing(broker.port, 4)
        done, _ = await asyncio.wait(heard, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == broker.passwords.refused == 1
        gate.open.set()
        assert set(await asyncio.gather(*heard)) == {b"-ERR 'Authorization Violation'\r\n"}
