"""The open requests of a pull consumer: their order, their times and their listeners, whatever their number."""

from __future__ import annotations

import json
import random

import pytest

from nimsnats.jetstream.consumer.delivery import NEVER
from nimsnats.jetstream.consumer.pull import PullSide
from nimsnats.jetstream.consumer.request import PullRequest, read_request
from nimsnats.jetstream.consumer.waiting import SWEEP, Waiting
from tests.jetstream.consumer_stand import Stand, texts

SECOND = 10**9


def request(reply: str, **body: object) -> PullRequest:
    return read_request(json.dumps(body).encode(), reply.encode(), 0)


@pytest.mark.parametrize("seed", range(20))
def test_they_are_what_a_list_of_them_would_be(seed: int) -> None:
    """Compared with a plain list that is searched for everything."""
    draw = random.Random(seed)
    waiting = Waiting(lambda request: request.priority)
    listed: list[PullRequest] = []
    now = 0
    for step in range(400):
        choice = draw.random()
        if choice < 0.4:
            new = request(
                str(step), batch=draw.randint(1, 9), priority=draw.randint(0, 3), no_wait=draw.random() < 0.3,
                expires=draw.choice([0, 5, 50]) * SECOND,
            )  # fmt: skip
            new.expires_at = now + new.expires if new.expires else 0
            waiting.add(new)
            listed.append(new)
        elif choice < 0.6 and listed:
            first = min(listed, key=lambda r: r.priority)
            assert waiting.head() is first
            waiting.served(first, 1)
            listed.remove(first)
            if first.left:
                waiting.requeue(first)
                listed.append(first)
            else:
                waiting.remove(first)
        elif choice < 0.8 and listed:
            gone = draw.choice(listed)
            listed.remove(gone)
            waiting.remove(gone)
        else:
            now += draw.randint(0, 10) * SECOND
            expired = {r for r in listed if r.expires_at and r.expires_at <= now}
            while (due := waiting.due(now)) is not None:
                expired.remove(due)
                listed.remove(due)
                waiting.remove(due)
            assert not expired
        assert list(waiting) == listed and len(waiting) == len(listed)
        assert waiting.left == sum(r.left for r in listed)
        assert waiting.next_due() == min((r.expires_at for r in listed if r.expires_at), default=NEVER)
        assert set(waiting.impatient()) == {r for r in listed if r.no_wait and (r.delivered or not r.expires)}


def test_each_is_asked_once_for_its_listeners_until_somebody_stops_listening() -> None:
    waiting, asked = Waiting(lambda request: 0), list[bytes]()
    requests = [request(str(number)) for number in range(5)]

    def listened(reply: bytes) -> bool:
        asked.append(reply)
        return reply != b"3"

    for one in requests:
        waiting.add(one)
    assert waiting.unlistened(7, listened, 1) == [requests[3]]
    waiting.remove(requests[3])
    assert len(asked) == 5 and not waiting.unlistened(7, listened, 1) and len(asked) == 5
    waiting.add(request("new"))
    assert not waiting.unlistened(7, listened, 1) and asked[5:] == [b"new"]
    assert not waiting.unlistened(8, listened, 1) and len(asked) == 11


def test_very_many_are_not_all_asked_in_one_moment() -> None:
    waiting, asked = Waiting(lambda request: 0), list[bytes]()
    for number in range(5 * SWEEP):
        waiting.add(request(str(number)))

    def listened(reply: bytes) -> bool:
        asked.append(reply)
        return True

    for removes in range(10):
        waiting.unlistened(removes, listened, now=1)
    assert len(asked) < 2 * SWEEP
    for now in range(2, 8):
        waiting.unlistened(10, listened, now)
    assert len(set(asked)) == 5 * SWEEP


def test_notes_of_requests_that_are_served_do_not_pile_up() -> None:
    waiting = Waiting(lambda request: 0)
    for number in range(2000):
        one = request(str(number), expires=30 * SECOND)
        waiting.add(one)
        waiting.remove(one)
    assert len(waiting._due) < 200


def test_requests_with_heartbeats_hear_them_and_expire_among_hundreds() -> None:
    stand = Stand()
    consumer = stand.create(max_waiting=1000)
    quiet = stand.listen("quiet")
    for _ in range(300):
        stand.pull(consumer, "quiet", expires=60 * SECOND)
    beating = stand.pull(consumer, "beating", expires=3 * SECOND, idle_heartbeat=SECOND)
    stand.advance(2.5)
    assert texts(beating) == ["100 Idle Heartbeat"] * 2 and not quiet
    stand.advance(1)
    assert texts(beating)[-1] == "408 Request Timeout" and isinstance(consumer.side, PullSide)
    assert consumer.side.count() == 300
    stand.advance(60)
    assert texts(quiet) == ["408 Request Timeout"] * 300 and consumer.side.count() == 0


def test_an_overflow_group_serves_the_first_whose_condition_holds() -> None:
    stand = Stand()
    consumer = stand.create(priority_policy="overflow", priority_groups=["g"])
    high = stand.pull(consumer, "high", expires=60 * SECOND, group="g", min_pending=3)
    free = stand.pull(consumer, "free", expires=60 * SECOND, group="g")
    stand.publish("s.a")
    assert texts(free) == ["m1"] and not high
    stand.publish("s.b", "s.b", "s.b")
    assert texts(high) == ["m2"]
