"""Internal subscriptions and publishing, as JetStream and the monitor use them."""

from __future__ import annotations

import pytest

from nimsnats.broker.account import InvalidSubject
from nimsnats.broker.client import ClientConnection
from tests.broker.peer import Peer, running

Call = tuple[bytes, bytes, bytes, bytes, bool]


class Seen:
    """A handler that writes down its calls and answers `answer`."""

    def __init__(self, answer: bool | None = None) -> None:
        self.calls: list[Call] = []
        self.answer = answer

    def __call__(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> bool | None:
        self.calls.append((subject, reply, headers, payload, origin is not None))
        return self.answer


async def test_handlers_hear_clients_and_the_server() -> None:
    async with running() as broker:
        account = broker.global_account
        seen = Seen()
        sub = account.subscribe(b"api.>", seen)
        peer = await Peer.connect(broker.port)
        block = b"NATS/1.0\r\nA: b\r\n\r\n"
        await peer.sync(b"PUB api.x re 2\r\nhi\r\nHPUB api.y %d %d\r\n%b--\r\n" % (len(block), len(block) + 2, block))
        assert account.publish(b"api.z", b"!", reply=b"r", headers=block) == 1
        assert seen.calls == [
            (b"api.x", b"re", b"", b"hi", True),
            (b"api.y", b"", block, b"--", True),
            (b"api.z", b"r", block, b"!", False),
        ]
        assert sub.delivered == 3
        account.unsubscribe(sub)
        account.unsubscribe(sub)
        assert account.publish(b"api.z") == 0


async def test_a_handler_that_is_not_there_leaves_no_responders() -> None:
    async with running() as broker:
        absent = Seen(answer=False)
        broker.global_account.subscribe(b"svc", absent)
        peer = await Peer.connect(broker.port)
        lines = await peer.sync(b"SUB in.* 1\r\nPUB svc in.1 0\r\n\r\n")
        assert lines[0].startswith(b"HMSG in.1 1 35 35")
        assert len(absent.calls) == 1
        assert broker.global_account.publish(b"svc") == 0


async def test_publish_reaches_clients_with_and_without_headers() -> None:
    async with running() as broker:
        modern = await Peer.connect(broker.port)
        plain = await Peer.connect(broker.port, b'CONNECT {"verbose":false,"pedantic":false}\r\n')
        await modern.sync(b"SUB foo 1\r\n")
        await plain.sync(b"SUB foo 9\r\n")
        headers = b"NATS/1.0\r\nA: b\r\n\r\n"
        for _ in range(3):
            assert broker.global_account.publish(b"foo", b"hi", reply=b"re", headers=headers) == 2
        assert b"\n".join(await modern.sync()).count(b"HMSG foo 1 re 18 20\nNATS/1.0\nA: b\n\nhi") == 3
        assert (await plain.sync()) == [b"MSG foo 9 re 2", b"hi"] * 3
        assert broker.stats.out_msgs == 6


async def test_deliver_shows_another_subject() -> None:
    async with running() as broker:
        peer = await Peer.connect(broker.port)
        await peer.sync(b"SUB _INBOX.x.* 1\r\n")
        account = broker.global_account
        for n in range(3):
            assert account.deliver(b"_INBOX.x.%d" % n, b"orders.eu", b"$JS.ACK.1", b"", b"hi") == 1
            assert account.deliver(b"_INBOX.x.0", b"orders.us", b"", b"", b"") == 1
        assert await peer.sync() == [b"MSG orders.eu 1 $JS.ACK.1 2", b"hi", b"MSG orders.us 1 0", b""] * 3
        assert account.deliver(b"_INBOX.y.1", b"orders.eu", b"", b"", b"hi") == 0


async def test_interest_is_visible_and_watched() -> None:
    async with running() as broker:
        account = broker.global_account
        events: list[tuple[bytes, bytes, bool]] = []
        unwatch = account.watch_interest(lambda subject, queue, added: events.append((subject, queue, added)))
        peer = await Peer.connect(broker.port)
        await peer.sync(b"SUB push.1 1\r\nSUB push.2 workers 2\r\nSUB a..b 3\r\n")
        assert account.has_interest(b"push.1")
        assert account.has_interest(b"push.2")
        assert account.has_interest(b"push.2", b"workers")
        assert not account.has_interest(b"push.2", b"others")
        assert not account.has_interest(b"push.1", b"workers")
        assert not account.has_interest(b"push.3")
        await peer.sync(b"UNSUB 1\r\nUNSUB 2 5\r\n")
        assert events == [(b"push.1", b"", True), (b"push.2", b"workers", True), (b"push.1", b"", False)]
        peer.close()
        other = await Peer.connect(broker.port)
        await other.sync()
        assert events[-1] == (b"push.2", b"workers", False)
        unwatch()
        unwatch()
        await other.sync(b"SUB more 1\r\n")
        assert len(events) == 4


async def test_internal_queue_members_share() -> None:
    async with running() as broker:
        account = broker.global_account
        handlers = [Seen(), Seen(), Seen(answer=False)]
        for handler in handlers:
            account.subscribe(b"work", handler, b"q")
        assert sum(account.publish(b"work") for _ in range(90)) == 90
        taken = [len(handler.calls) for handler in handlers[:2]]
        assert sum(taken) == 90
        assert min(taken) > 10


async def test_a_handler_may_publish_and_subscribe() -> None:
    async with running() as broker:
        account = broker.global_account
        late = Seen()

        def echo(subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None) -> None:
            account.publish(reply, payload.upper())
            account.subscribe(b"late", late)

        account.subscribe(b"echo", echo)
        peer = await Peer.connect(broker.port)
        lines = await peer.sync(b"SUB in.* 1\r\n" + b"PUB echo in.1 2\r\nhi\r\n" + b"PUB late 1\r\n!\r\n")
        assert lines == [b"MSG in.1 1 2", b"HI"]
        assert len(late.calls) == 1


async def test_invalid_subject() -> None:
    async with running() as broker:
        with pytest.raises(InvalidSubject):
            broker.global_account.subscribe(b"a..b", Seen())
        assert broker.global_account.interest.count == 0


async def test_accounts_are_apart() -> None:
    async with running() as broker:
        seen = Seen()
        broker.system_account.subscribe(b">", seen)
        peer = await Peer.connect(broker.port)
        await peer.sync(b"PUB foo 0\r\n\r\n")
        assert seen.calls == []
        assert broker.accounts.keys() == {"$G", "$SYS"}
        assert list(broker.global_account.clients) == [1]
