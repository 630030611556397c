"""Delivery between connections: runs and single messages, queue groups, limits, caches that must not go stale."""

from __future__ import annotations

import asyncio

from tests.broker.peer import QUIET, Peer, running

MESSAGE = b"PUB foo 2\r\nhi\r\n"
DELIVERED = [b"MSG foo 1 2", b"hi"]


async def test_a_run_reaches_everyone_in_order() -> None:
    async with running() as broker:
        receivers = [await Peer.connect(broker.port) for _ in range(3)]
        for sid, receiver in zip((b"1", b"1", b"abc"), receivers, strict=True):
            await receiver.sync(b"SUB a.* %b\r\nSUB b %b0\r\n" % (sid, sid))
        publisher = await Peer.connect(broker.port)
        script = b"".join(
            b"PUB a.%d %d\r\n%d\r\nPUB b re%d 1\r\n!\r\n" % (n % 3, len(str(n)), n, n) for n in range(500)
        )
        await publisher.sync(script + script)
        for sid, receiver in zip((b"1", b"1", b"abc"), receivers, strict=True):
            expected = [
                line
                for n in range(500)
                for line in (
                    b"MSG a.%d %b %d" % (n % 3, sid, len(str(n))),
                    b"%d" % n,
                    b"MSG b %b0 re%d 1" % (sid, n),
                    b"!",
                )
            ]
            assert await receiver.sync() == expected * 2
        client = broker.clients[4]
        assert (client.in_msgs, broker.stats.in_msgs, broker.stats.out_msgs) == (2000, 2000, 6000)
        assert broker.stats.out_bytes == 3 * broker.stats.in_bytes


async def test_known_lines_follow_interest() -> None:
    async with running() as broker:
        publisher, first, second = [await Peer.connect(broker.port) for _ in range(3)]
        await publisher.sync(MESSAGE * 3)
        await first.sync(b"SUB foo 1\r\n")
        await publisher.sync(MESSAGE * 3)
        assert await first.sync() == DELIVERED * 3
        await second.sync(b"SUB f* 1\r\nSUB * 1\r\nSUB > 1\r\n")
        await publisher.sync(MESSAGE)
        assert await second.sync() == []
        await second.sync(b"UNSUB 1\r\nSUB * 1\r\n")
        await publisher.sync(MESSAGE)
        assert await second.sync() == DELIVERED
        assert await first.sync(b"UNSUB 1\r\n") == DELIVERED * 2
        await publisher.sync(MESSAGE)
        assert await first.sync() == []
        second.close()
        await second.writer.wait_closed()
        assert await publisher.sync(MESSAGE + b"SUB foo 1\r\n" + MESSAGE) == DELIVERED


async def test_subscribing_between_two_messages_of_one_read() -> None:
    async with running() as broker:
        peer = await Peer.connect(broker.port)
        script = MESSAGE * 4 + b"SUB foo 1\r\n" + MESSAGE * 4 + b"UNSUB 1 6\r\n" + MESSAGE * 4
        assert await peer.sync(script) == DELIVERED * 6


async def test_one_connection_with_two_subscriptions_sees_them_interleaved() -> None:
    async with running() as broker:
        peer = await Peer.connect(broker.port)
        lines = await peer.sync(b"SUB foo 1\r\nSUB > 2\r\n" + MESSAGE * 4)
        assert [set(lines[n : n + 4 : 2]) for n in range(0, 16, 4)] == [{b"MSG foo 1 2", b"MSG foo 2 2"}] * 4


async def test_queue_members_share_and_a_leaver_is_replaced() -> None:
    async with running() as broker:
        members = [await Peer.connect(broker.port) for _ in range(3)]
        for member in members:
            await member.sync(b"SUB foo q 1\r\n")
        publisher = await Peer.connect(broker.port)
        await publisher.sync(MESSAGE * 300)
        counts = [len(await member.sync()) // 2 for member in members]
        assert sum(counts) == 300
        assert min(counts) > 40
        members[0].close()
        await members[0].writer.wait_closed()
        await publisher.sync()
        await publisher.sync(MESSAGE * 10)
        assert sum([len(await member.sync()) // 2 for member in members[1:]]) == 10


async def test_a_queue_member_that_does_not_want_its_echo_is_passed_over() -> None:
    async with running() as broker:
        silent = await Peer.connect(broker.port, QUIET.replace(b"{", b'{"echo":false,'))
        await silent.sync(b"SUB foo q 1\r\n")
        other = await Peer.connect(broker.port)
        await other.sync(b"SUB foo q 1\r\n")
        assert await silent.sync(MESSAGE * 20) == []
        assert await other.sync() == DELIVERED * 20


async def test_auto_unsubscribe_across_queue_group() -> None:
    async with running() as broker:
        peer = await Peer.connect(broker.port)
        assert await peer.sync(b"SUB foo q 1\r\nUNSUB 1 2\r\n" + MESSAGE * 5) == DELIVERED * 2
        assert broker.global_account.interest.count == 0


async def test_large_payloads_in_small_reads() -> None:
    async with running() as broker:
        receiver, publisher = await Peer.connect(broker.port), await Peer.connect(broker.port)
        await receiver.sync(b"SUB foo 1\r\n")
        body = bytes(range(256)) * 3900
        body = body.replace(b"\n", b"n")
        data = b"PUB foo %d\r\n%b\r\n" % (len(body), body) * 3
        for start in range(0, len(data), 50_001):
            publisher.send(data[start : start + 50_001])
            await publisher.writer.drain()
        reading = asyncio.create_task(publisher.sync())
        for _ in range(3):
            assert await receiver.line() == b"MSG foo 1 %d" % len(body)
            assert await receiver.reader.readexactly(len(body) + 2) == body + b"\r\n"
        await reading


async def test_requests_and_replies_on_fresh_inboxes() -> None:
    async with running() as broker:
        service, requester = await Peer.connect(broker.port), await Peer.connect(broker.port)
        await service.sync(b"SUB svc 1\r\n")
        await requester.sync(b"SUB _INBOX.me.* 1\r\n")
        for n in range(20):
            requester.send(b"PUB svc _INBOX.me.%d 1\r\n?\r\n" % n)
            assert await service.line() == b"MSG svc 1 _INBOX.me.%d 1" % n
            assert await service.line() == b"?"
            service.send(b"PUB _INBOX.me.%d 1\r\n!\r\n" % n)
            assert await requester.line() == b"MSG _INBOX.me.%d 1 1" % n
            assert await requester.line() == b"!"


async def test_more_subjects_than_are_kept() -> None:
    async with running() as broker:
        receiver, publisher = await Peer.connect(broker.port), await Peer.connect(broker.port)
        await receiver.sync(b"SUB s.> 1\r\n")
        script = b"".join(b"PUB s.%d 0\r\n\r\n" % n for n in range(20_000))
        await publisher.sync(script + script)
        lines = [line for line in await receiver.sync() if line != b"PING"]
        assert len(lines) == 80_000
        assert lines[::2] == [b"MSG s.%d 1 0" % n for n in range(20_000)] * 2
