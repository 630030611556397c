"""What comes off the wire: frames survive the trip, everything else is refused without an effect."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

import msgpack
import pytest

from nimsnats.raft.machine import Entry
from nimsnats.raft.membership import Membership
from nimsnats.raft.message import Kind, Message
from nimsnats.raft.wire import Fetch, Item, Malformed, Piece, WrongVersion, decode, encode
from tests.raft.cluster import Cluster, run

_pack = cast("Callable[[Any], bytes]", msgpack.packb)

ITEMS: list[Item] = [
    Message(Kind.VOTE, "b@2", "a@1", 7, 5, 6, force=True),
    Message(Kind.APPEND, "b@2", "a@1", 7, 5, 6, 4, [Entry(6, 6, 0x81, b"x", None, 3), Entry(7, 7, 0, b"")]),
    Message(Kind.APPEND_REPLY, "b@2", "a@1", 7, 5, reject=True, hint=3),
    Message(Kind.INSTALL, "b@2", "a@1", 7, 5, 6, members=Membership(frozenset({"a@1"})).encode()),
    Fetch(5, 6, 1, 1000, [1, 2]),
    Piece(1, 2000, b"part", [(1, 1, 0x81, 2, 2, b"block")]),
]


def test_frames_survive_the_trip() -> None:
    found = decode(encode("a@1", "b@2", 5, [("S", ITEMS), ("T", [])]))
    assert (found.sender, found.receiver, found.incarnation) == ("a@1", "b@2", 5)
    assert found.groups == [("S", ITEMS), ("T", [])]


def _message(**changes: Any) -> list[Any]:
    fields = {"kind": 5, "term": 7, "index": 5, "log_term": 6, "commit": 4, "flags": 0, "hint": 0}
    fields |= {"members": b"", "entries": [[7, 0x81, 1, b"x"]]} | changes
    return list(fields.values())


def _frame(*items: Any, head: tuple[Any, ...] = (1, "a@1", "b@2", 5)) -> bytes:
    return _pack([*head, [["S", list(items)]]])


BAD = [
    b"",
    b"\xc1",
    b"garbage that is no msgpack",
    b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 100_000,
    b"\xd5\x01ab",
    _pack({}),
    _pack(7),
    _pack([]),
    _pack([1]),
    _pack([1, "a", "b", 1, [["S"]]]),
    _pack([1, "a", "b", 1, {"S": []}]),
    _pack([1, "a" * 1000, "b", 1, []]),
    _pack([1, b"a", "b", 1, []]),
    _pack([1, "a", "b", -1, []]),
    _frame([]),
    _frame([99]),
    _frame(["VOTE"]),
    _frame(_message(kind=True)),
    _frame(_message(term=-1)),
    _frame(_message(term=1 << 62)),
    _frame(_message(index=None)),
    _frame(_message(flags=8)),
    _frame(_message(kind=6)),
    _frame(_message(members=b"{}")),
    _frame(_message(members=b"[[1], []]")),
    _frame(_message(members=b'[["a"], ["a"]]')),
    _frame(_message(members=b"[" * 10_000)),
    _frame(_message(entries=[[8, 2, 0, b""]])),
    _frame(_message(entries=[[5, 2, 0, b""]])),
    _frame(_message(entries=[[7, 2, 0, "text"]])),
    _frame(_message(entries=[[7, 256, 0, b""]])),
    _frame(_message(entries=[[7, 1, 0, b"no membership"]])),
    _frame(_message(entries=[[7, 2, 0]])),
    _frame([32, 1, 1, 1, 0, ["x"]]),
    _frame([33, 1, 1, b"", [[1, 1, 300, 0, 0, b""]]]),
    _frame([33, 1, 1, b"", [[1, 1, 1, 0, 0]]]),
]


@pytest.mark.parametrize("frame", BAD, ids=range(len(BAD)))
def test_nonsense_is_malformed(frame: bytes) -> None:
    with pytest.raises(Malformed):
        decode(frame)


def test_another_version_is_told_apart() -> None:
    with pytest.raises(WrongVersion):
        decode(_frame(head=(2, "a@1", "b@2", 5)))


def test_bad_frames_change_nothing() -> None:
    async def test() -> None:
        cluster = Cluster("abc", 1)
        await cluster.start()
        for name in "abc":
            await cluster.nodes[name].open("S", cluster.members("abc"))
        await cluster.write(b"x")
        leader = await cluster.elected()
        other = next(node for node in cluster.nodes.values() if node is not leader)
        host, group = leader.host, cluster.group(leader.name)
        assert host is not None
        before = str(group.core)
        dice = random.Random(1)
        good = encode(other.member, leader.member, 10**18, [("S", ITEMS)])
        for _ in range(300):
            broken = bytearray(good)
            broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
            host.receive("x", bytes(broken))
        for frame in BAD:
            host.receive(other.name, frame)
        host.receive(other.name, encode(other.member, leader.name + "@wiped", 10**18, [("S", [])]))
        host.receive(other.name, encode("c@x" if other.name != "c" else "b@x", leader.member, 10**18, [("S", [])]))
        host.receive(other.name, encode(other.member, leader.member, 10**18, [("unknown", [])]))
        term, last = group.term, group.core.log.last
        impossible = [
            Message(Kind.HEARTBEAT, leader.member, other.member, term, commit=99),
            Message(Kind.APPEND, leader.member, other.member, term, 0, 0, 9, [Entry(1, term, 2, b"forged")]),
            Message(Kind.APPEND_REPLY, leader.member, other.member, term, last + 100),
            Message(Kind.TIMEOUT_NOW, leader.member, other.member, term),
        ]
        host.receive(other.name, encode(other.member, leader.member, 10**18, [("S", impossible)]))
        assert str(group.core) == before
        refused = host.peers.refused
        assert refused["malformed frame"] >= len(BAD)
        for reason in ("frame for another instance", "frame under a wrong name", "message for an unknown group"):
            assert refused[reason] >= 1
        assert refused["message from a second leader"] == 3
        assert refused["acknowledgement of what is not there"] == 1
        assert "message that made an error" not in refused
        await cluster.write(b"y")
        await cluster.agreed("abc")
        await cluster.stop()

    run(test)


def test_only_a_peer_that_goes_on_about_an_unknown_group_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        cluster = Cluster("ab", 3)
        await cluster.start()
        host = cluster.nodes["a"].host
        assert host is not None

        async def speak(group: str, seconds: int) -> None:
            """b speaks of a group once a second."""
            for _ in range(seconds):
                host.receive("b", encode(cluster.nodes["b"].member, host.member, 10**18, [(group, [])]))
                await cluster.runtime.sleep(1)

        for number in range(1100):
            host.receive("b", encode(cluster.nodes["b"].member, host.member, 10**18, [(f"race {number}", [])]))
        for _ in range(2):
            await speak("late", 4)
            await cluster.runtime.sleep(60)
        assert not caplog.records and host.peers.refused["message for an unknown group"] == 1108
        await speak("gone", 10)
        (warning,) = caplog.records
        assert warning.getMessage().endswith(": message for an unknown group (gone)")
        await cluster.stop()

    run(test)


def test_a_removed_member_is_not_heard() -> None:
    async def test() -> None:
        cluster = Cluster("abcd", 2)
        await cluster.start()
        for name in "abcd":
            await cluster.nodes[name].open("S", cluster.members("abcd"))
        await cluster.write(b"x")
        leader = await cluster.elected()
        gone = next(node for node in cluster.nodes.values() if node is not leader)
        stay = [node.member for node in cluster.nodes.values() if node is not gone]
        cluster.isolate(gone.name)
        await cluster.group(leader.name).change_members(stay)
        await cluster.write(b"y")
        await cluster.agreed("".join(member[0] for member in stay))
        cluster.cut.clear()
        term = cluster.group(leader.name).term
        await cluster.runtime.sleep(30)
        assert cluster.group(leader.name).term == term and cluster.group(leader.name).leading
        assert sum(node.host.peers.refused["message from a removed member"] for node in cluster.running() if node.host)
        await cluster.stop()

    run(test)
