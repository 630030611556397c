"""Who wants a message: found by its subject, not by asking every consumer."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nimsnats.jetstream.consumer.audience import Audience
from nimsnats.jetstream.message import StoredMessage
from nimsnats.protocol.subject import any_matcher
from tests.jetstream.consumer_stand import Stand, texts
from tests.jetstream.stand import running

SECOND = 10**9
TOKENS = (b"a", b"b", b"c", b"*", b">", b"*x", b">x")


def subject(draw: random.Random, *, pattern: bool) -> bytes:
    tokens = [draw.choice(TOKENS) for _ in range(draw.randint(1, 4))]
    if pattern:
        tokens = [b"a" if token == b">" else token for token in tokens[:-1]] + tokens[-1:]
    return b".".join(tokens)


class Kept:
    """A consumer as it is: hashed by what it is."""

    def __init__(self, done: set[int]) -> None:
        self.state = SimpleNamespace(done=done.__contains__)


@pytest.mark.parametrize("seed", range(10))
def test_the_tree_finds_whom_asking_all_of_them_would_find(seed: int) -> None:
    draw, audience = random.Random(seed), Audience()
    filters: dict[Any, tuple[bytes, ...]] = {}
    done: dict[Any, set[int]] = {}
    waiting: set[Any] = set()
    for _ in range(300):
        choice = draw.random()
        if choice < 0.3:
            finished: set[int] = set()
            one = draw.choice(list(filters)) if filters and draw.random() < 0.3 else Kept(finished)
            done.setdefault(one, finished)
            filters[one] = tuple(subject(draw, pattern=True) for _ in range(draw.randint(0, 3)))
            audience.add(one, filters[one])
            waiting.discard(one)
        elif choice < 0.4 and filters:
            one = draw.choice(list(filters))
            del filters[one], done[one]
            waiting.discard(one)
            audience.remove(one)
        elif choice < 0.6 and filters:
            one = draw.choice(list(filters))
            if filters[one]:
                audience.wait(one)
                waiting.add(one)
        elif choice < 0.7 and filters:
            done[draw.choice(list(filters))].add(1)
        else:
            published = subject(draw, pattern=False)
            wanting = {one for one, its in filters.items() if not its or any_matcher(its)(published)}
            assert audience.wanted(published) == bool(wanting)
            besides = draw.choice([None, *filters])
            assert audience.needed(published, 1, besides) == any(
                1 not in done[one] for one in wanting if one is not besides
            )
            told = audience.arrived(published)
            assert len(told) == len(set(told)) and set(told) == wanting & waiting
            waiting -= wanting
        assert audience.waiting == len(waiting)
    for one in filters:
        audience.remove(one)
    assert audience._root.bare and not audience._literals and not audience.wanted(b"a")


def store(stand: Stand, published: str) -> set[str]:
    """Store a message; whom that has waked."""
    stand.loop.settle()
    seq = stand.stream.last_seq = stand.stream.last_seq + 1
    stand.stream.messages[seq] = StoredMessage(seq, stand.runtime.time_ns(), published.encode(), b"", b"m%d" % seq)
    stand.consumers.stored(seq, seq)
    waked = {consumer.name for consumer in stand.consumers.journal.marked.values()}
    stand.loop.settle()
    return waked


def test_a_message_wakes_the_consumers_that_want_it_and_no_others() -> None:
    stand = Stand()
    for number in range(200):
        one = stand.create(f"c{number}", filter_subject=f"s.{number}.>")
        stand.pull(one, f"i{number}", batch=2, expires=60 * SECOND)
        stand.create(f"p{number}", filter_subject=f"s.{number}.x", deliver_subject=f"d.{number}")
        stand.listen(f"d.{number}")
    stand.create("idle", filter_subject="s.7.>")
    assert store(stand, "s.7.x") == {"c7", "p7"}
    assert store(stand, "s.7.y") == {"c7"}
    assert store(stand, "s.7.y") == set()  # it wants no more
    assert store(stand, "s.none") == set()
    assert texts(stand.arrived[b"i7"]) == ["m1", "m2"] and texts(stand.arrived[b"d.7"]) == ["m1"]
    assert [m.pending for m in stand.arrived[b"i7"]] == [0, 0]
    seven = stand.consumers.get("c7")
    assert seven is not None and seven.info()["num_pending"] == 1
    assert texts(stand.pull(seven, "i7", expires=SECOND)) == ["m1", "m2", "m3"]


def test_a_consumer_that_waits_for_acknowledgements_is_waked_by_these_alone() -> None:
    stand = Stand()
    one = stand.create(max_ack_pending=1)
    got = stand.pull(one, batch=5, expires=60 * SECOND)
    assert store(stand, "s.a") == {"c"} and store(stand, "s.a") == set()
    stand.ack(got[0])
    assert texts(got) == ["m1", "m2"]
    stand.remove(2)
    assert store(stand, "s.a") == {"c"} and texts(got) == ["m1", "m2", "m3"]


def test_removed_messages_concern_those_alone_that_have_something_to_lose() -> None:
    stand = Stand()
    stand.publish(*["s.a"] * 10)
    for number in range(50):
        stand.create(f"new{number}", deliver_policy="new", filter_subject="s.a")
    behind, busy = stand.create("behind"), stand.create("busy")
    assert behind.info()["num_pending"] == 10
    got = stand.pull(busy, batch=3)
    stand.remove(1)
    assert {one.name for one in stand.consumers._exposed} == {"behind", "busy"}
    assert busy.info()["num_ack_pending"] == 2 and behind.info()["num_pending"] == 9
    for message in got[1:]:
        stand.ack(message)
    stand.pull(busy, batch=7)
    for message in got[3:]:
        stand.ack(message)
    stand.remove(10)
    assert busy.info()["num_pending"] == 0 and behind.info()["num_pending"] == 8


def test_who_comes_and_goes_is_told_to_the_consumers_that_deliver_there() -> None:
    stand = Stand()
    consumers = [stand.create(f"p{n}", filter_subject=f"s.{n}", deliver_subject=f"d.{n % 50}.{n}") for n in range(300)]
    interest = stand.account.interest

    def asked(subject: str) -> int:
        before = interest.matches
        stand.listen(subject)
        stand.silence(subject)
        return interest.matches - before

    assert asked("other.*") == asked("d.*") == asked("*.7.none") == 0
    assert 0 < asked("d.7.*") <= 2 * 6 and 0 < asked("*.7.>") <= 2 * 6
    stand.listen("d.7.*")
    assert [one.name for one in consumers if one.info().get("push_bound")] == [f"p{n}" for n in range(7, 300, 50)]
    stand.silence("d.7.*")
    assert not any(one.info().get("push_bound") for one in consumers)
    stand.create("p7", action="update", filter_subject="s.7", deliver_subject="e.7")
    assert 0 < asked("e.*") <= 2 and 0 < asked("d.7.*") <= 2 * 5


async def test_subjects_of_removed_messages_are_not_kept_for_consumers_that_have_gone(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"], max_msgs=5)
        for n in range(9):
            await js.publish(f"s.{n % 2}", b"x")
        await js.pull_subscribe("s.1", "D", stream="S")
        store = stand.stream("S").store
        assert store.struck == {}
        await js.publish("s.1", b"x")
        assert store.struck == {}
        await js.delete_consumer("S", "D")
        for _ in range(9):
            await js.publish("s.1", b"x")
        assert store.messages == 5 and store.struck is None


async def test_subjects_of_messages_that_nobody_wants_are_not_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"], retention="interest")
        await js.pull_subscribe("s.1", "D", stream="S")
        await js.publish("s.1", b"x")
        assert (await js.consumer_info("S", "D")).num_pending == 1
        for _ in range(9):
            await js.publish("s.2", b"x")
        store = stand.stream("S").store
        assert store.messages == 1 and store.struck == {}
