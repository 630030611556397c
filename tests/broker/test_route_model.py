"""Clients of three servers come, go and publish at random: each message reaches whom it would on one server."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from nimsnats.protocol.subject import matches
from tests.broker.peer import Peer
from tests.broker.route_stand import mesh, settled

PATTERNS = [b"a.x", b"a.y", b"b.x", b"a.*", b"*.x", b"a.>", b">", b"b.>"]
SUBJECTS = [b"a.x", b"a.y", b"b.x", b"b.z.w", b"c"]
QUEUES = [b"", b"", b"q", b"w"]

Subscription = tuple[int, bytes, bytes, bytes]
"""Which client, pattern, queue, sid."""


@pytest.mark.parametrize("seed", range(6))
async def test_a_mesh_delivers_like_one_server(seed: int) -> None:
    draw = random.Random(seed)
    async with mesh("a", "b", "c") as tables:
        clients = [await Peer.connect(tables[at % 3].broker.port) for at in range(5)]
        subs: list[Subscription] = []
        for step in range(12):
            for _ in range(draw.randrange(4)):
                who, sid = draw.randrange(len(clients)), b"%d" % (step * 10 + len(subs))
                if subs and draw.random() < 0.4:
                    gone = subs.pop(draw.randrange(len(subs)))
                    await clients[gone[0]].sync(b"UNSUB %b\r\n" % gone[3])
                elif all(sub[3] != sid for sub in subs):
                    subs.append((who, draw.choice(PATTERNS), draw.choice(QUEUES), sid))
                    await clients[who].sync(b"SUB %b %b %b\r\n" % subs[-1][1:])
            await settled(*tables)
            published = [(draw.randrange(len(clients)), draw.choice(SUBJECTS)) for _ in range(20)]
            for who, subject in published:
                reply = draw.choice((b"", b"re.ply "))
                clients[who].send(b"PUB %b %b%d\r\n%b\r\n" % (subject, reply, len(subject), subject))
            received = [await client.sync() for client in clients]
            await settled(*tables)
            for lines, client in zip(received, clients, strict=True):
                lines += await client.sync()
            check(subs, Counter(subject for _, subject in published), received)


def check(subs: list[Subscription], published: Counter[bytes], received: list[list[bytes]]) -> None:
    """Plain subscriptions have seen everything, and of each group exactly one member each message."""
    seen: Counter[tuple[int, bytes, bytes]] = Counter()
    for who, lines in enumerate(received):
        for line in lines:
            if line.startswith(b"MSG "):
                words = line.split(b" ")
                seen[who, words[2], words[1]] += 1
    for subject, count in published.items():
        for who, pattern, queue, sid in subs:
            if not queue and matches(subject, pattern):
                assert seen.pop((who, sid, subject), 0) == count
        for group in {queue for _, pattern, queue, _ in subs if queue and matches(subject, pattern)}:
            members = [(who, sid, subject) for who, pattern, queue, sid in subs if queue == group]
            assert sum(seen.pop(member, 0) for member in members) == count
    assert not seen
