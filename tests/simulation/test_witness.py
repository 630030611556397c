"""The rule for two members and a witness: no order of events breaks it, and every weaker rule breaks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from nimsnats.cluster.witness import RULE, Facts, Standing, obstacles, shortcoming, standing
from nimsnats.registry import Lease, Listing, NodeInfo
from tests.simulation.witness_model import BROKEN, LONG, SETTINGS, Case, Model, Setting, check
from tests.simulation.witness_node import ALONE, BOTH, Node, Variant, without_route

SECOND = 1_000_000_000
STAMP = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ME = NodeInfo("node-1", "10.0.0.1", 6222, instance="disk1")
PEER = NodeInfo("node-2", "10.0.0.2", 6222, instance="disk2")
LISTED = replace(ME, registered_at=STAMP)

# -- every order of events ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_no_order_of_events_lets_both_sides_acknowledge(name: str) -> None:
    result = check(Variant(), SETTINGS[name], name)
    assert result.safe, str(result)
    assert result.alone or SETTINGS[name].two_registries, "the rule must not be vacuous"
    print(result)


@pytest.mark.extended
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LONG)
def test_no_order_of_more_events_does(name: str) -> None:
    result = check(Variant(), LONG[name], name)
    assert result.safe and result.alone, str(result)
    print(result)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.variant.name)
def test_every_weaker_rule_is_caught(case: Case) -> None:
    result = case.check()
    assert not result.safe, str(result)
    assert sum("alone, and does" in line or "goes alone" in line for line in result.trace) == 2, str(result)
    print(result)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.variant.name)
def test_a_weaker_rule_differs_from_the_shipped_one(case: Case) -> None:
    assert replace(case.variant, name="") != Variant("") and set(case.variant.rule) <= set(RULE)


def test_the_survivor_of_an_expiry_gets_the_right() -> None:
    """Without any fault but the crash itself: the survivor heartbeats, the other expires, a listing says so."""
    model = Model(Variant(), Setting(prompt=False))
    steps = model.steps

    def take(node: Node, what: str) -> Node:
        return next(after for said, after, _ in steps.local(node) if said == what)

    node = Node(up=True)
    node = take(node, "{i} sends a registration")
    node = take(node, "the registration of {i} arrives")
    node = take(node, "{i} receives the acknowledgement of its registration")
    node = steps.listed(node, True)._replace(route=True)
    node = take(node, "{i}, which sees both listed, asks {j} for sync")
    assert not steps.may_go_alone(node)
    node = steps.settle(node._replace(sync=node.asked, asked=None))
    node = steps.settle(without_route(node))  # the other has crashed
    peer = Node(up=False, entry=model.setting.ttl, stored=True)
    for _ in range(model.setting.ttl):
        assert peer.entry and not steps.may_go_alone(steps.listed(node, True))
        node, peer = steps.ticked(node), steps.ticked(peer)
        node = take(node, "{i} sends a heartbeat")
        node = take(node, "the heartbeat of {i} arrives")
        node = take(node, "{i} receives the acknowledgement of its heartbeat")
    assert not peer.entry
    node = steps.listed(node, False)
    assert node.membership == BOTH
    assert take(node, "{i} may go alone, and does").membership == ALONE


# -- the rule in the product's own values ---------------------------------------------------------------------------


def facts() -> Facts:
    """The peer is gone and everything is in order."""
    lease = Lease()
    lease.renew(100 * SECOND, 30 * SECOND, 100 * SECOND)
    together = Listing(101 * SECOND, (LISTED, PEER))
    sync = standing(ME, PEER, 7, lease, together, 102 * SECOND)
    lease.renew(128 * SECOND, 30 * SECOND, 128 * SECOND)
    return Facts(
        now_ns=141 * SECOND,
        member=ME,
        peer=PEER,
        membership=7,
        lease=lease,
        sync=sync,
        lost_ns=111 * SECOND,
        route=False,
        listing=Listing(140 * SECOND, (LISTED,)),
    )


def test_when_everything_is_in_order_nothing_stands_in_the_way() -> None:
    assert facts().sync == Standing(0, STAMP, 7)
    assert obstacles(facts()) == ()


def test_each_obstacle_is_named() -> None:
    good = facts()
    assert good.sync is not None
    lapsed = replace(good.lease, lapses=1)
    restamped = Listing(140 * SECOND, (replace(ME, registered_at=STAMP.replace(year=2027)),))
    elsewhere = Listing(140 * SECOND, (replace(LISTED, address="10.0.0.9"),))
    other_disk = Listing(140 * SECOND, (replace(LISTED, instance="disk9"),))
    nameless = Listing(140 * SECOND, (LISTED, replace(PEER, instance="")))
    cases = [
        (replace(good, route=True), "there is a route to node-2"),
        (replace(good, sync=None), "not in sync with node-2 since this process started"),
        (replace(good, membership=8), "not in sync with node-2 since the membership changed"),
        (replace(good, lease=lapsed), "not in sync with node-2 since the latest registry lapse"),
        (replace(good, now_ns=158 * SECOND), "the registry may have let this node expire"),
        (replace(good, lost_ns=None), "no route to node-2 was lost since this process started"),
        (replace(good, lost_ns=140 * SECOND), "no listing of the registry since node-2 was lost"),
        (replace(good, listing=Listing(140 * SECOND, (LISTED, PEER))), "the registry still lists node-2"),
        (replace(good, listing=nameless), "the registry still lists node-2"),
        (
            replace(good, listing=Listing(140 * SECOND, (LISTED,), skipped=frozenset({"node-2"}))),
            "the registry lists something that cannot be read and may be node-2",
        ),
        (replace(good, listing=Listing(140 * SECOND, ())), "the registry does not list this node"),
        (replace(good, listing=elsewhere), "the registry does not list this node"),
        (replace(good, listing=other_disk), "the registry does not list this node"),
        (replace(good, listing=restamped), "the registry has lost and regained this node since the sync"),
    ]
    for broken, why in cases:
        assert obstacles(broken) == (why,)
    assert len(obstacles(replace(good, listing=None))) == 2
    assert obstacles(replace(good, now_ns=158 * SECOND - 1)) == ()


def test_a_peer_on_an_empty_disk_is_not_the_peer() -> None:
    wiped = Listing(140 * SECOND, (LISTED, replace(PEER, instance="disk3")))
    assert obstacles(replace(facts(), listing=wiped)) == ()


def test_what_a_registry_must_do_to_be_a_witness() -> None:
    lease, listing = facts().lease, Listing(0, (LISTED, PEER))
    assert shortcoming(ME, lease, listing) == shortcoming(ME, Lease(), None) == ""
    endless = Lease()
    endless.renew(1, 0, 1)
    assert "for how long" in shortcoming(ME, endless, listing)
    assert "does not stamp" in shortcoming(ME, lease, Listing(0, (ME, PEER)))


def test_nothing_is_asked_that_could_not_prove_anything() -> None:
    lease = facts().lease
    together = Listing(0, (LISTED, PEER))
    now = 130 * SECOND
    assert standing(ME, PEER, 1, lease, together, now) == Standing(0, STAMP, 1)
    assert standing(ME, PEER, 1, lease, None, now) is None
    assert standing(ME, PEER, 1, lease, Listing(0, (LISTED,)), now) is None
    assert standing(ME, PEER, 1, lease, Listing(0, (PEER,)), now) is None
    assert standing(ME, PEER, 1, lease, Listing(0, (ME, PEER)), now) is None, "a registry that does not stamp"
    assert standing(ME, PEER, 1, lease, together, 158 * SECOND) is None
    assert standing(ME, PEER, 1, Lease(), together, now) is None
