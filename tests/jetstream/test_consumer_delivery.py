"""Delivery to pull consumers on virtual time: order, acknowledgement, redelivery, limits, statuses."""

from __future__ import annotations

import pytest

from nimsnats.jetstream.kinds import CONSUMER_ACKS, CONSUMER_DELIVERED
from tests.jetstream.consumer_stand import Stand, texts


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_a_batch_is_delivered_in_order_with_ack_subjects(stand: Stand) -> None:
    stand.publish("s.a", "s.b", "s.c")
    got = stand.pull(stand.create(), batch=2)
    assert texts(got) == ["m1", "m2"]
    assert [(m.seq, m.number, m.deliveries, m.pending) for m in got] == [(1, 1, 1, 2), (2, 2, 1, 1)]
    assert got[0].subject == b"s.a"
    assert got[0].reply.startswith(b"$JS.ACK.S.c.1.1.1.")


def test_a_waiting_request_is_served_when_messages_come(stand: Stand) -> None:
    consumer = stand.create()
    got = stand.pull(consumer, batch=3, expires=5_000_000_000)
    assert consumer.info()["num_waiting"] == 1
    stand.publish("s.a", "s.b")
    stand.publish("s.c")
    assert texts(got) == ["m1", "m2", "m3"]
    assert consumer.info()["num_waiting"] == 0


def test_filters_choose_what_is_delivered_and_counted(stand: Stand) -> None:
    stand.publish("s.a", "s.b", "s.a.x", "s.b")
    one = stand.create("one", filter_subject="s.b")
    two = stand.create("two", filter_subjects=["s.a", "s.a.*"])
    assert one.info()["num_pending"] == 2
    assert texts(stand.pull(one, "i1", batch=5, no_wait=True)) == ["m2", "m4", "404 No Messages"]
    assert texts(stand.pull(two, "i2", batch=5, no_wait=True)) == ["m1", "m3", "404 No Messages"]
    stand.publish("s.b")
    assert one.info()["num_pending"] == 1
    assert two.info()["num_pending"] == 0


@pytest.mark.parametrize(
    ("fields", "expected", "position"),
    [
        ({"deliver_policy": "all"}, ["m1", "m2", "m3", "m4"], 0),
        ({"deliver_policy": "last"}, ["m4"], 3),
        ({"deliver_policy": "last", "filter_subject": "s.a"}, ["m3"], 2),
        ({"deliver_policy": "new"}, [], 4),
        ({"deliver_policy": "by_start_sequence", "opt_start_seq": 3}, ["m3", "m4"], 2),
        ({"deliver_policy": "by_start_sequence", "opt_start_seq": 9}, [], 8),
        ({"deliver_policy": "last_per_subject", "filter_subject": "s.>"}, ["m2", "m3", "m4"], 1),
    ],
)
def test_deliver_policies(stand: Stand, fields: dict[str, object], expected: list[str], position: int) -> None:
    stand.publish("s.a", "s.b", "s.a", "s.c")
    consumer = stand.create(**fields)
    info = consumer.info()
    assert info["delivered"] == {"consumer_seq": 0, "stream_seq": position}
    assert info["ack_floor"] == {"consumer_seq": 0, "stream_seq": position}
    assert info["num_pending"] == len(expected)
    assert texts(stand.pull(consumer, batch=10, expires=10**9)) == expected


def test_start_time(stand: Stand) -> None:
    stand.publish("s.a")
    stand.advance(10)
    stand.publish("s.b")
    consumer = stand.create(deliver_policy="by_start_time", opt_start_time="2023-11-14T22:13:25Z")
    assert texts(stand.pull(consumer, batch=5, no_wait=True)) == ["m2", "404 No Messages"]


def test_last_per_subject_then_new_ones(stand: Stand) -> None:
    stand.publish("s.a", "s.b", "s.a")
    consumer = stand.create(deliver_policy="last_per_subject", filter_subject="s.>")
    stand.publish("s.b")
    got = stand.pull(consumer, batch=10, no_wait=True)
    assert texts(got) == ["m2", "m3", "m4", "404 No Messages"]
    assert [m.pending for m in got[:3]] == [2, 1, 0]


def test_acks_move_the_floor_over_contiguous_ones(stand: Stand) -> None:
    stand.publish("s.a", "s.a", "s.a")
    consumer = stand.create()
    got = stand.pull(consumer, batch=3)
    stand.ack(got[1])
    assert consumer.info()["ack_floor"]["stream_seq"] == 0
    assert consumer.info()["num_ack_pending"] == 2
    stand.ack(got[0], b"+ACK")
    assert consumer.info()["ack_floor"]["stream_seq"] == 2
    stand.ack(got[2], b"+OK")
    info = consumer.info()
    assert (info["ack_floor"]["consumer_seq"], info["ack_floor"]["stream_seq"]) == (3, 3)
    assert info["num_ack_pending"] == 0


def test_ack_all_acknowledges_everything_before(stand: Stand) -> None:
    stand.publish("s.a", "s.a", "s.a")
    consumer = stand.create(ack_policy="all")
    got = stand.pull(consumer, batch=3)
    stand.ack(got[1])
    info = consumer.info()
    assert info["num_ack_pending"] == 1
    assert info["ack_floor"]["stream_seq"] == 2
    stand.ack(got[0])
    assert consumer.info()["num_ack_pending"] == 1


def test_an_ack_is_answered_when_its_entry_is_applied(stand: Stand) -> None:
    stand.publish("s.a")
    got = stand.pull(stand.create())
    answers = stand.listen("answer")
    stand.stream.held = []
    stand.ack(got[0], reply=b"answer")
    stand.ack(got[0], reply=b"answer")
    assert answers == []
    stand.stream.release()
    assert texts(answers) == ["", ""]
    stand.ack(got[0], b"anything", reply=b"answer")
    assert len(answers) == 3


def test_an_ack_beyond_what_was_delivered_is_ignored(stand: Stand) -> None:
    stand.publish("s.a", "s.a")
    consumer = stand.create()
    stand.pull(consumer)
    answers = stand.listen("answer")
    stand.account.publish(b"$JS.ACK.S.c.1.2.2.0.0", reply=b"answer")
    stand.loop.settle()
    assert answers == []
    assert consumer.info()["num_ack_pending"] == 1


def test_the_second_form_of_the_ack_subject(stand: Stand) -> None:
    stand.publish("s.a")
    consumer = stand.create()
    stand.pull(consumer)
    assert stand.account.publish(b"$JS.ACK._.szMpdrwD.S.c.1.1.1.0.0") == 1
    stand.loop.settle()
    assert consumer.info()["num_ack_pending"] == 0


def test_without_acks_nobody_listens_on_the_ack_subject(stand: Stand) -> None:
    stand.publish("s.a")
    got = stand.pull(stand.create(ack_policy="none"))
    assert stand.ack(got[0]) == 0


def test_unacknowledged_messages_come_again_before_new_ones(stand: Stand) -> None:
    stand.publish("s.a", "s.a", "s.a")
    consumer = stand.create(ack_wait=10**9)
    got = stand.pull(consumer, batch=2)
    stand.advance(1.01)
    stand.pull(consumer, batch=3)
    assert texts(got) == ["m1", "m2", "m1", "m2", "m3"]
    assert [(m.number, m.deliveries) for m in got] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 1)]
    assert consumer.info()["num_redelivered"] == 2
    stand.ack(got[2])
    assert consumer.info()["num_redelivered"] == 1


def test_backoff_spaces_the_attempts(stand: Stand) -> None:
    stand.publish("s.a")
    consumer = stand.create(backoff=[200_000_000, 600_000_000], max_deliver=4)
    exhausted = stand.advisories("MAX_DELIVERIES")
    got = stand.pull(consumer, batch=10, expires=10**11)
    times = [0.0]
    stand.advance(0.05)
    for _ in range(25):
        stand.advance(0.1)
        times += [round(stand.loop.time() - 0.05, 1)] * (len(got) - len(times))
    assert times == [0.0, 0.2, 0.8, 1.4]
    assert [e["deliveries"] for e in exhausted] == [4]
    info = consumer.info()
    assert (info["num_ack_pending"], info["num_redelivered"]) == (0, 1)


def test_max_deliver_leaves_the_message_but_a_late_ack_counts() -> None:
    stand = Stand("workqueue")
    stand.publish("s.a")
    consumer = stand.create(ack_wait=10**9, max_deliver=1)
    got = stand.pull(consumer, batch=5, expires=10**11)
    stand.advance(5)
    assert texts(got) == ["m1"]
    assert stand.stream.live(1)
    stand.ack(got[0])
    assert not stand.stream.live(1)


def test_negative_acks_come_again_at_once_or_later(stand: Stand) -> None:
    stand.publish("s.a", "s.a", "s.a")
    naked = stand.advisories("MSG_NAKED")
    got = stand.pull(stand.create(), batch=20, expires=10**12)
    stand.ack(got[0], b"-NAK")
    assert texts(got[3:]) == ["m1"]
    stand.ack(got[1], b'-NAK {"delay": 2000000000}')
    stand.ack(got[2], b"-NAK 1s")
    stand.advance(0.9)
    assert len(got) == 4
    stand.advance(0.2)
    assert texts(got[4:]) == ["m3"]
    stand.advance(1)
    assert texts(got[5:]) == ["m2"]
    assert [e["stream_seq"] for e in naked] == [1, 2, 3]


def test_work_in_progress_restarts_the_wait(stand: Stand) -> None:
    stand.publish("s.a")
    got = stand.pull(stand.create(ack_wait=10**9), batch=5, expires=10**12)
    for _ in range(4):
        stand.advance(0.8)
        stand.ack(got[0], b"+WPI")
    assert len(got) == 1
    stand.advance(1.1)
    assert texts(got) == ["m1", "m1"]


def test_terminated_messages_do_not_come_again(stand: Stand) -> None:
    stand.publish("s.a")
    events = stand.advisories("MSG_TERMINATED")
    consumer = stand.create(ack_wait=10**9)
    got = stand.pull(consumer, batch=5, expires=10**12)
    stand.ack(got[0], b"+TERM bad luck")
    stand.advance(3)
    assert texts(got) == ["m1"]
    assert consumer.info()["num_ack_pending"] == 0
    assert [(e["stream_seq"], e["reason"]) for e in events] == [(1, "bad luck")]


def test_ack_and_next(stand: Stand) -> None:
    stand.publish(*["s.a"] * 5)
    consumer = stand.create()
    got = stand.pull(consumer)
    stand.ack(got[0], b"+NXT", reply=b"inbox")
    stand.ack(got[1], b"+NXT 2", reply=b"inbox")
    stand.ack(got[3], b'+NXT {"batch":1,"no_wait":true}', reply=b"inbox")
    assert texts(got) == ["m1", "m2", "m3", "m4", "m5"]
    assert consumer.info()["num_ack_pending"] == 2


def test_max_ack_pending_holds_back_and_resumes(stand: Stand) -> None:
    stand.publish(*["s.a"] * 5)
    consumer = stand.create(max_ack_pending=2)
    got = stand.pull(consumer, batch=5, expires=10**12)
    assert texts(got) == ["m1", "m2"]
    stand.ack(got[1])
    assert texts(got) == ["m1", "m2", "m3"]


def test_requests_take_turns(stand: Stand) -> None:
    consumer = stand.create()
    one = stand.pull(consumer, "one", batch=2, expires=10**10)
    two = stand.pull(consumer, "two", batch=2, expires=10**10)
    stand.publish("s.a", "s.a", "s.a")
    assert texts(one) == ["m1", "m3"]
    assert texts(two) == ["m2"]


def test_a_request_whose_inbox_is_gone_is_dropped(stand: Stand) -> None:
    consumer = stand.create()
    gone = stand.pull(consumer, "gone", batch=2, expires=10**10)
    got = stand.pull(consumer, "inbox", batch=2, expires=10**10)
    stand.silence("gone")
    assert consumer.info()["num_waiting"] == 1
    stand.publish("s.a")
    assert gone == []
    assert [(m.number, m.status) for m in got] == [(1, "m1")]


def test_statuses_of_a_request(stand: Stand) -> None:
    consumer = stand.create(max_waiting=1, max_batch=10, max_expires=5 * 10**9, max_bytes=1000)
    got = stand.pull(consumer, no_wait=True)
    stand.pull(consumer, batch=11)
    stand.pull(consumer, expires=6 * 10**9)
    stand.pull(consumer, max_bytes=1001)
    stand.pull(consumer, expires=10**9, idle_heartbeat=6 * 10**8)
    stand.pull(consumer, batch=3, expires=10**9)
    stand.pull(consumer, batch=3, expires=10**9)
    stand.advance(1.1)
    assert texts(got) == [
        "404 No Messages",
        "409 Exceeded MaxRequestBatch of 10",
        "409 Exceeded MaxRequestExpires of 5s",
        "409 Exceeded MaxRequestMaxBytes of 1000",
        "400 Bad Request - heartbeat value too large",
        "409 Exceeded MaxWaiting",
        "408 Request Timeout",
    ]
    assert got[-1].header("Nats-Pending-Messages") == "3"
    assert got[-1].header("Nats-Pending-Bytes") == "0"


def test_max_bytes(stand: Stand) -> None:
    stand.publish("s.a", "s.a", size=100)
    consumer = stand.create()
    got = stand.pull(consumer, batch=2, max_bytes=200)
    assert texts(got)[1] == "409 Message Size Exceeds MaxBytes"
    got.clear()
    stand.pull(consumer, batch=1, max_bytes=1000)
    assert texts(got)[1] == "409 Batch Completed"
    assert got[1].header("Nats-Pending-Messages") == "0"


def test_idle_heartbeats_of_a_request(stand: Stand) -> None:
    stand.publish("s.a")
    got = stand.pull(stand.create(), batch=3, expires=10**9, idle_heartbeat=4 * 10**8)
    stand.advance(1.05)
    assert texts(got) == ["m1", "100 Idle Heartbeat", "100 Idle Heartbeat", "408 Request Timeout"]
    assert got[1].header("Nats-Last-Consumer") == "1"


def test_no_wait_with_expires_waits_for_the_first_message(stand: Stand) -> None:
    consumer = stand.create()
    got = stand.pull(consumer, batch=3, no_wait=True, expires=10**9)
    assert got == []
    stand.publish("s.a")
    assert texts(got) == ["m1", "404 No Messages"]


def test_deleting_the_consumer_ends_requests(stand: Stand) -> None:
    got = stand.pull(stand.create(), expires=10**9)
    stand.consumers.propose_delete("c")
    stand.loop.settle()
    assert texts(got) == ["409 Consumer Deleted"]
    assert len(stand.consumers) == 0


def test_headers_only(stand: Stand) -> None:
    stand.publish("s.a")
    got = stand.pull(stand.create(headers_only=True))
    assert got[0].payload == b""
    assert got[0].header("Nats-Msg-Size") == "2"


def test_messages_on_disk_are_loaded_and_holes_passed_over(stand: Stand) -> None:
    stand.publish(*["s.a"] * 6)
    stand.stream.cold = {1, 2, 5}
    stand.remove(3)
    got = stand.pull(stand.create(), batch=10, no_wait=True)
    assert texts(got) == ["m1", "m2", "m4", "m5", "m6", "404 No Messages"]
    assert [m.pending for m in got[:5]] == [4, 3, 2, 1, 0]


def test_pausing_holds_deliveries_back(stand: Stand) -> None:
    stand.publish("s.a")
    events = stand.advisories("PAUSE")
    consumer = stand.create()
    stand.consumers.propose_pause("c", stand.runtime.time_ns() + 2 * 10**9)
    stand.loop.settle()
    got = stand.pull(consumer, expires=10**10)
    assert got == []
    assert consumer.info()["paused"]
    stand.advance(2.1)
    assert texts(got) == ["m1"]
    assert [e["paused"] for e in events] == [True, False]


def test_reset_starts_again(stand: Stand) -> None:
    stand.publish("s.a", "s.a")
    consumer = stand.create()
    got = stand.pull(consumer, batch=2)
    stand.consumers.propose_reset("c", 1)
    stand.loop.settle()
    stand.pull(consumer, batch=2)
    assert [(m.seq, m.number) for m in got] == [(1, 1), (2, 2), (1, 1), (2, 2)]
    assert consumer.info()["num_ack_pending"] == 2


def test_one_entry_a_tick_for_all_consumers(stand: Stand) -> None:
    stand.publish(*["s.a"] * 100)
    one, two = stand.create("one"), stand.create("two")
    before = len(stand.stream.entries)
    got = stand.pull(one, "i1", batch=100)
    stand.advance(0.01)
    assert len(stand.stream.entries) == before + 1
    for message in got:
        stand.account.publish(message.reply)
    stand.account.publish(stand.pull(two, "i2")[0].reply)
    stand.loop.settle()
    kinds = [entry.kind for entry in stand.stream.entries[before:]]
    assert kinds.count(CONSUMER_DELIVERED) == 2
    assert 1 <= kinds.count(CONSUMER_ACKS) <= 2
    assert all(len(entry.data) < 60 for entry in stand.stream.entries[before:])


def test_an_ephemeral_without_acks_writes_nothing(stand: Stand) -> None:
    stand.publish(*["s.a"] * 10)
    consumer = stand.create(ack_policy="none", durable=False, mem_storage=True)
    before = len(stand.stream.entries)
    assert len(stand.pull(consumer, batch=10)) == 10
    assert len(stand.stream.entries) == before


def test_an_ephemeral_is_removed_when_nobody_pulls(stand: Stand) -> None:
    events = stand.advisories("DELETED")
    stand.create("e", durable=False, inactive_threshold=10**9)
    stand.create("d")
    stand.advance(1.05)
    assert stand.consumers.names() == ["d", "e"]
    stand.advance(1)
    assert stand.consumers.names() == ["d"]
    assert [e["consumer"] for e in events] == ["e"]


def test_replicas_and_snapshots_agree(stand: Stand) -> None:
    stand.publish(*["s.a", "s.b"] * 10)
    one = stand.create("one", ack_wait=10**9)
    two = stand.create("two", filter_subject="s.b", ack_policy="all")
    got = stand.pull(one, "i1", batch=12)
    also = stand.pull(two, "i2", batch=5)
    stand.ack(got[0])
    stand.ack(got[5], b"-NAK")
    stand.ack(also[2])
    stand.remove(2)
    stand.advance(1.1)
    stand.pull(one, "i1", batch=4)
    replica = stand.replay()
    ours = stand.consumers.snapshot()
    assert replica.consumers.snapshot() == ours
    restored = stand.new_set()
    restored.restore(ours)
    assert restored.snapshot() == ours


def test_a_new_leader_goes_on(stand: Stand) -> None:
    stand.publish("s.a", "s.a", "s.a")
    consumer = stand.create(ack_wait=2 * 10**9)
    stand.ack(stand.pull(consumer, batch=2)[0])
    other = stand.replay()
    other.consumers.leadership(True)
    taken = other.consumers.get("c")
    assert taken is not None
    got = other.pull(taken, batch=5, expires=10**10)
    assert texts(got) == ["m3"]
    other.advance(2.1)
    assert [(m.status, m.deliveries) for m in got] == [("m3", 1), ("m2", 2), ("m3", 2)]


def test_dropped_entries_are_proposed_again(stand: Stand) -> None:
    stand.publish("s.a")
    consumer = stand.create()
    got = stand.pull(consumer)
    answers = stand.listen("answer")
    stand.stream.refusing = True
    stand.ack(got[0], reply=b"answer")
    assert answers == []
    stand.stream.refusing = False
    stand.advance(1)
    assert len(answers) == 1
    assert consumer.info()["ack_floor"]["stream_seq"] == 1


def test_an_ack_that_overtakes_its_delivery_is_not_lost(stand: Stand) -> None:
    stand.publish("s.a", "s.a", "s.a")
    consumer = stand.create()
    stand.stream.refusing = True
    got = stand.pull(consumer, batch=2)
    stand.stream.refusing = False
    stand.ack(got[0])
    stand.pull(consumer)
    stand.advance(1)
    info = consumer.info()
    assert (info["num_ack_pending"], info["ack_floor"]["stream_seq"]) == (2, 1)
    assert list(consumer.state.pending) == [2, 3]


def test_a_deleted_message_is_no_longer_pending(stand: Stand) -> None:
    stand.publish("s.a", "s.a")
    events = stand.advisories("MSG_TERMINATED")
    consumer = stand.create()
    stand.pull(consumer, batch=2)
    stand.remove(1)
    assert consumer.info()["num_ack_pending"] == 1
    assert [e["reason"] for e in events] == ["Unacknowledged message was deleted"]


def test_a_purge_moves_everything(stand: Stand) -> None:
    stand.publish(*["s.a"] * 4)
    consumer = stand.create()
    stand.pull(consumer, batch=2)
    stand.purge(5)
    info = consumer.info()
    assert (info["num_ack_pending"], info["num_pending"]) == (0, 0)
    assert info["ack_floor"]["stream_seq"] == 4
    stand.publish("s.a")
    assert texts(stand.pull(consumer, "next", no_wait=True, batch=9)) == ["m5", "404 No Messages"]


def test_work_queue_removes_on_ack() -> None:
    stand = Stand("workqueue")
    stand.publish("s.a", "s.a")
    consumer = stand.create()
    got = stand.pull(consumer, batch=2)
    stand.ack(got[1])
    assert list(stand.stream.messages) == [1]


def test_interest_waits_for_every_consumer() -> None:
    stand = Stand("interest")
    one, two = stand.create("one"), stand.create("two", filter_subject="s.b")
    none = stand.create("none", ack_policy="none", filter_subject="s.c")
    stand.publish("s.a", "s.b", "s.c")
    for message in stand.pull(one, "i1", batch=3):
        stand.ack(message)
    assert list(stand.stream.messages) == [2, 3]
    stand.pull(none, "i2")
    stand.advance(0.01)
    assert list(stand.stream.messages) == [2]
    stand.pull(two, "i3")
    stand.consumers.propose_delete("two")
    stand.loop.settle()
    assert list(stand.stream.messages) == []
