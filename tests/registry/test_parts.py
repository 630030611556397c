"""The pure parts: lease, back-off, catalog, peer set, event streams, and the choice of an address."""

from __future__ import annotations

import random
import socket
from datetime import UTC, datetime

import pytest

from nimsnats.registry import InvalidNodeError, Lease, NodeInfo, RegistryAnswerError
from nimsnats.registry import catalog as catalog_module
from nimsnats.registry.address import Address, Advertised, DefaultRoute, Link, choose, find_address
from nimsnats.registry.backoff import Backoff
from nimsnats.registry.catalog import Catalog
from nimsnats.registry.peers import PeerSet
from nimsnats.registry.sse import EventReader, Message, encode

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SECOND = 1_000_000_000


def node(name: str, port: int = 1) -> NodeInfo:
    return NodeInfo(name, "10.0.0.1", port)


# -- lease ----------------------------------------------------------------------------------------------------------


def test_a_lease_breaks_at_a_gap_of_exactly_one_ttl() -> None:
    lease = Lease()
    assert not lease.unbroken(0)
    lease.renew(100 * SECOND, 30 * SECOND, 100 * SECOND)
    lease.renew(129 * SECOND, 30 * SECOND, 129 * SECOND)
    assert (lease.since_ns, lease.lapses) == (100 * SECOND, 0)
    assert lease.unbroken(159 * SECOND - 1) and not lease.unbroken(159 * SECOND)
    lease.renew(159 * SECOND, 30 * SECOND, 159 * SECOND)
    assert (lease.since_ns, lease.lapses) == (159 * SECOND, 1)


def test_an_acknowledgement_that_comes_too_late_proves_nothing() -> None:
    """The heartbeat was sent in time, but may have arrived after an expiry that the registry has undone since."""
    lease = Lease()
    lease.renew(100 * SECOND, 30 * SECOND, 101 * SECOND)
    lease.renew(120 * SECOND, 30 * SECOND, 130 * SECOND - 1)
    assert lease.lapses == 0
    lease.renew(140 * SECOND, 30 * SECOND, 150 * SECOND)
    assert (lease.since_ns, lease.lapses) == (140 * SECOND, 1)


def test_the_gap_is_judged_by_the_ttl_granted_before_it() -> None:
    lease = Lease()
    lease.renew(100 * SECOND, 5 * SECOND, 100 * SECOND)
    lease.renew(110 * SECOND, 60 * SECOND, 110 * SECOND)
    assert lease.lapses == 1


def test_a_lapse_ends_the_run_once() -> None:
    lease = Lease()
    lease.lapse()
    assert lease.lapses == 0, "what never began cannot break"
    lease.renew(SECOND, SECOND, SECOND)
    lease.lapse()
    lease.lapse()
    assert lease.lapses == 1 and not lease.unbroken(SECOND)


def test_without_a_known_ttl_nothing_is_proven() -> None:
    lease = Lease()
    lease.renew(SECOND, 0, SECOND)
    lease.renew(2 * SECOND, 0, 2 * SECOND)
    assert lease.lapses == 0 and not lease.unbroken(2 * SECOND)


# -- back-off -------------------------------------------------------------------------------------------------------


def test_backoff_doubles_is_capped_and_jitters() -> None:
    backoff = Backoff(random.Random(1), 0.5, 10)
    bounds = [0.5, 1, 2, 4, 8, 10, 10, 10]
    delays = [backoff.delay() for _ in bounds]
    assert all(bound / 2 <= delay <= bound for delay, bound in zip(delays, bounds, strict=True))
    backoff.reset()
    assert backoff.delay() <= 0.5
    again = Backoff(random.Random(1), 0.5, 10)
    assert [again.delay() for _ in bounds] == delays


# -- catalog --------------------------------------------------------------------------------------------------------


def test_history_is_bounded_and_says_when_it_no_longer_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "HISTORY", 3)
    catalog = Catalog(1000, 30)
    start = catalog.index("s")
    assert catalog.changes("s", start) is None, "a service that never was has no history"
    for port in range(1, 4):
        catalog.register("s", node(f"n{port}", port), 0, NOW)
    assert [change.event.node.name for change in catalog.changes("s", start) or ()] == ["n1", "n2", "n3"]
    assert catalog.changes("s", catalog.index("s")) == []
    assert catalog.changes("s", catalog.index("s") + 1) is None
    catalog.remove("s", "n1", 0)
    assert catalog.changes("s", start) is None
    assert len(catalog.changes("s", start + 1) or ()) == 3


def test_other_services_leave_a_revision_alone() -> None:
    catalog = Catalog(1000, 30)
    catalog.register("a", node("n"), 0, NOW)
    index = catalog.index("a")
    catalog.register("b", node("n"), 0, NOW)
    assert catalog.index("a") == index != catalog.index("b")


def test_the_same_endpoint_keeps_its_seniority() -> None:
    catalog = Catalog(1000, 30)
    first = catalog.register("s", node("n"), 0, NOW)
    index = catalog.index("s")
    later = datetime(2026, 1, 3, tzinfo=UTC)
    assert catalog.register("s", node("n"), 20, later) == first and catalog.index("s") == index
    assert catalog.nodes("s", 49)[0] == [first] and catalog.nodes("s", 50)[0] == []
    assert catalog.register("s", node("n"), 51, later).registered_at == later


# -- peers ----------------------------------------------------------------------------------------------------------


def test_a_peer_set_reports_each_change_once() -> None:
    peers = PeerSet()
    listed = peers.listed([node("me"), node("a"), node("a", 9), node("b")], "me")
    assert [(event.type, event.node.name, event.node.port) for event in listed] == [
        ("added", "a", 1),
        ("added", "b", 1),
    ]
    assert list(peers.added(node("a"), "me")) == list(peers.added(node("me"), "me")) == []
    assert [event.type for event in peers.added(node("a", 2), "me")] == ["removed", "added"]
    assert [event.type for event in peers.removed("a")] == ["removed"]
    assert list(peers.removed("a")) == []
    assert [(event.type, event.node.name) for event in peers.listed([], "me")] == [("removed", "b")]


# -- event streams --------------------------------------------------------------------------------------------------

STREAM = (
    b"\xef\xbb\xbf: hello\n\nid: 1\nevent: added\ndata: {}\n\n"
    b"data:a\rdata: b\r\rid\nretry: 5\n\nid: 2\r\ndata:  c\r\n\r\n"
)
EXPECTED = [Message("added", "{}", "1"), Message("message", "a\nb", ""), Message("message", " c", "2")]


def test_events_from_any_split_of_the_bytes() -> None:
    for cut in range(len(STREAM) + 1):
        reader = EventReader()
        assert reader.feed(STREAM[:cut]) + reader.feed(STREAM[cut:]) == EXPECTED, cut
    reader = EventReader()
    assert [message for byte in STREAM for message in reader.feed(bytes([byte]))] == EXPECTED


def test_what_is_written_is_what_is_read() -> None:
    assert EventReader().feed(encode("added", '{"a":1}', 7)) == [Message("added", '{"a":1}', "7")]


def test_an_endless_event_is_refused() -> None:
    reader = EventReader()
    with pytest.raises(RegistryAnswerError, match="2048 KiB"):
        for _ in range(40):
            reader.feed(b"data: " + b"x" * 65536)


# -- nodes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "fd00::1", "host", "node-1.example.com", "a_b.c", "127.0.0.1", "host."]
)
def test_addresses_that_can_be_dialled(address: str) -> None:
    assert NodeInfo.from_json({"name": "n", "address": address, "port": 1}).address == address


@pytest.mark.parametrize("time", [None, 5, "", "yesterday", "0001-01-01T00:00:00+23:59", "9" * 500])
def test_an_odd_time_costs_only_the_time(time: object) -> None:
    read = NodeInfo.from_json({"name": "n", "address": "host", "port": 1, "registered_at": time})
    assert read.registered_at == datetime.fromtimestamp(0, UTC) and "registered_at" not in read.to_json()


def test_a_node_must_be_an_object() -> None:
    for value in (None, [], "x", 5, True):
        with pytest.raises(InvalidNodeError, match="JSON object"):
            NodeInfo.from_json(value)


# -- address --------------------------------------------------------------------------------------------------------

V4, V6 = socket.AF_INET, socket.AF_INET6
LO, ETH0, ETH1, DOWN = (
    Link(1, "lo", True, True),
    Link(2, "eth0", True, False),
    Link(3, "eth1", True, False),
    Link(4, "eth2", False, False),
)
LINKS = [LO, ETH0, ETH1, DOWN]
ADDRESSES = [
    Address(1, V4, "127.0.0.1"),
    Address(1, V6, "::1"),
    Address(4, V4, "10.9.0.1"),
    Address(2, V4, "10.0.0.5"),
    Address(2, V4, "10.0.0.6"),
    Address(2, V6, "fe80::2"),
    Address(2, V6, "fd00::2", usable=False),
    Address(2, V6, "fd00::5"),
    Address(3, V4, "10.1.0.5"),
]


@pytest.mark.parametrize(
    ("routes", "address", "reason"),
    [
        ([DefaultRoute(2, V4)], "10.0.0.5", "default route via eth0"),
        ([DefaultRoute(2, V4, source="10.0.0.6")], "10.0.0.6", "default route via eth0"),
        ([DefaultRoute(2, V4, 200), DefaultRoute(3, V4, 100)], "10.1.0.5", "default route via eth1"),
        ([DefaultRoute(2, V6)], "fd00::5", "default route via eth0"),
        ([DefaultRoute(2, V6), DefaultRoute(3, V4)], "10.1.0.5", "default route via eth1"),
        ([DefaultRoute(4, V4)], "10.0.0.5", "no default route, address of eth0"),
        ([], "10.0.0.5", "no default route, address of eth0"),
    ],
)
def test_the_address_of_the_default_route(routes: list[DefaultRoute], address: str, reason: str) -> None:
    assert choose(LINKS, ADDRESSES, routes) == Advertised(address, reason)


def test_loopback_is_the_last_resort() -> None:
    chosen = choose([LO, DOWN], ADDRESSES, [DefaultRoute(4, V4)])
    assert chosen.address == "127.0.0.1" and "loopback" in chosen.reason


async def test_the_kernel_is_asked_and_never_stops_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await find_address()
    assert NodeInfo.from_json({"name": "n", "address": found.address, "port": 1})

    async def broken() -> None:
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr("nimsnats.registry.address._ask_kernel", broken)
    without = await find_address()
    assert without.address == "127.0.0.1" and "netlink is not available" in without.reason
