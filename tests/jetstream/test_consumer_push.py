"""Push consumers on virtual time: interest, queues, flow control, heartbeats, rate, replay, inactivity."""

from __future__ import annotations

import pytest

from nimsnats.jetstream.consumer.push import FIRST_WINDOW
from tests.jetstream.consumer_stand import Stand, texts


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_messages_wait_for_interest(stand: Stand) -> None:
    stand.publish("s.a")
    consumer = stand.create(deliver_subject="to")
    assert "push_bound" not in consumer.info()
    got = stand.listen("to")
    assert consumer.info()["push_bound"] is True
    stand.publish("s.b")
    assert [(m.subject, m.status) for m in got] == [(b"s.a", "m1"), (b"s.b", "m2")]
    stand.silence("to")
    stand.publish("s.c")
    assert consumer.info()["num_pending"] == 1
    assert "push_bound" not in consumer.info()
    assert texts(stand.listen("to")) == ["m1", "m2", "m3"]


def test_a_deliver_group_needs_its_queue(stand: Stand) -> None:
    stand.publish("s.a")
    consumer = stand.create(deliver_subject="to", deliver_group="workers")
    stand.listen("to")
    assert "push_bound" not in consumer.info()
    stand.silence("to")
    assert texts(stand.listen("to", "workers")) == ["m1"]


def test_unacknowledged_messages_are_pushed_again(stand: Stand) -> None:
    stand.publish("s.a")
    stand.create(deliver_subject="to", ack_wait=10**9)
    got = stand.listen("to")
    stand.advance(2.5)
    assert [(m.number, m.deliveries) for m in got] == [(1, 1), (2, 2), (3, 3)]


def test_heartbeats_when_nothing_is_delivered(stand: Stand) -> None:
    stand.create(deliver_subject="to", idle_heartbeat=10**9, ack_policy="none")
    got = stand.listen("to")
    stand.advance(0.6)
    stand.publish("s.a")
    stand.advance(0.9)
    assert texts(got) == ["m1"]
    stand.advance(0.2)
    assert texts(got) == ["m1", "100 Idle Heartbeat"]
    assert (got[1].header("Nats-Last-Consumer"), got[1].header("Nats-Last-Stream")) == ("1", "1")
    assert got[1].reply == b""


def test_flow_control_stops_delivery_until_it_is_answered(stand: Stand) -> None:
    size = FIRST_WINDOW // 8
    stand.publish(*["s.a"] * 20, size=size)
    stand.create(deliver_subject="to", flow_control=True, idle_heartbeat=10**9, ack_policy="none")
    got = stand.listen("to")
    requests = [m for m in got if m.status == "100 FlowControl Request"]
    assert len(requests) == 1
    assert requests[0].reply.startswith(b"$JS.FC.S.c.")
    assert len(got) < 12
    stand.advance(1.1)
    assert got[-1].header("Nats-Consumer-Stalled") == requests[0].reply.decode()
    while len([m for m in got if m.payload]) < 20:
        stand.account.publish([m for m in got if m.reply.startswith(b"$JS.FC")][-1].reply)
        stand.loop.settle()
    assert [m.payload[:3] for m in got if m.payload][-1] == b"m20"


def test_rate_limit_spaces_deliveries(stand: Stand) -> None:
    stand.publish(*["s.a"] * 4, size=1024 * 1024)
    stand.create(deliver_subject="to", rate_limit_bps=8 * 1024 * 1024, ack_policy="none")
    got = stand.listen("to")
    assert len(got) < 4
    stand.advance(10)
    assert len(got) == 4


def test_replay_original_keeps_the_distances(stand: Stand) -> None:
    stand.publish("s.a")
    stand.advance(0.7)
    stand.publish("s.a")
    stand.advance(0.7)
    stand.publish("s.a")
    stand.advance(5)
    stand.create(deliver_subject="to", replay_policy="original", ack_policy="none")
    got = stand.listen("to")
    assert len(got) == 1
    stand.advance(0.75)
    assert len(got) == 2
    stand.advance(0.7)
    assert len(got) == 3
    stand.publish("s.a", "s.a")
    assert len(got) == 5


def test_an_ephemeral_is_removed_without_interest(stand: Stand) -> None:
    stand.create("e", deliver_subject="to", durable=False, ack_policy="none")
    stand.listen("to")
    stand.advance(20)
    assert stand.consumers.names() == ["e"]
    stand.silence("to")
    stand.advance(5)
    assert stand.consumers.names() == ["e"]
    stand.advance(1.1)
    assert stand.consumers.names() == []


def test_the_deliver_subject_can_move_when_nobody_listens(stand: Stand) -> None:
    stand.create(deliver_subject="to")
    consumer = stand.create(deliver_subject="there")
    got = stand.listen("there")
    stand.publish("s.a")
    assert texts(got) == ["m1"]
    assert consumer.info()["config"]["deliver_subject"] == "there"


def test_a_long_backlog_goes_out_in_turns(stand: Stand) -> None:
    stand.publish(*["s.a"] * 1000)
    stand.create(deliver_subject="to", ack_policy="none")
    got = stand.listen("to")
    assert [m.number for m in got] == list(range(1, 1001))
    assert got[-1].pending == 0
