"""What consumers have yet to be given: kept up to date through everything that happens to a stream, in small parts."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nimsnats.jetstream import seeking
from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.consumer.backlog import LOOKS, Backlog
from nimsnats.jetstream.consumer.consumer import Consumer
from nimsnats.jetstream.view import StreamView
from nimsnats.protocol.subject import any_matcher
from tests.jetstream.consumer_stand import Stand, texts
from tests.jetstream.test_stream_store import Twin, new_store, store_batch

FILTERS = [(), (b"s.>",), (b"s.1.a",), (b"s.*.a",), (b"s.2.>", b"s.3.b"), (b"s.9.*", b"s.1.a"), (b"s.none",)]


class Reader:
    """A consumer as far as its backlog is concerned."""

    def __init__(self, view: StreamView, filters: tuple[bytes, ...], start: int) -> None:
        self.filters = filters
        self.matches = any_matcher(filters) if filters else bool
        self.backlog = Backlog(view, filters)
        self.backlog.hears = True
        self.next = start

    def ahead(self, twin: Twin) -> list[int]:
        return [seq for seq, (_, subject, _) in sorted(twin.held.items()) if seq >= self.next and self.matches(subject)]

    def read(self, twin: Twin, looks: int) -> None:
        """Take the next message, however many parts it takes to find it."""
        wanted = next(iter(self.ahead(twin)), 0)
        assert self.backlog.remaining(self.next) == len(self.ahead(twin))
        if self.backlog.caught_up:
            assert not wanted
            return
        while (found := self.backlog.find(self.next, looks)) < 0:
            assert self.backlog.reached > self.next
            self.next = self.backlog.reached
        assert found == wanted
        if found:
            self.backlog.sent(1)
            self.next = found + 1
        else:
            self.backlog.catch_up()
            self.next = max(self.next, twin.last + 1)


class World:
    """A real store with readers of it."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.twin, self.store = Twin(), new_store()
        config: Any = SimpleNamespace(subject_bytes=[b"s.>"])
        self.view = StreamView(config, self.store, cast(Any, None))
        self.view.take_struck(True)
        self.readers: list[Reader] = []
        self.index = 0

    def publish(self) -> None:
        self.index += 1
        first = self.twin.last + 1
        store_batch(self.store, self.twin, self.index, self.index, self.draw)
        for seq, subject in self.view.arrivals(first):
            for reader in self.readers:
                if reader.backlog.caught_up and reader.matches(subject):
                    reader.next = max(reader.next, seq)
                    reader.backlog.arrived(reader.next)

    def lose(self, gone: list[int]) -> None:
        for seq in gone:
            del self.twin.held[seq]
        struck = self.view.take_struck(True)
        for reader in self.readers:
            for seq in gone:
                if seq >= reader.next:
                    reader.backlog.lost(seq, struck)

    def remove(self) -> None:
        held, draw = sorted(self.twin.held), self.draw
        if not held:
            return
        kind = draw.random()
        if kind < 0.5:
            gone = [seq for seq in draw.sample(held, min(len(held), 5)) if self.store.remove(seq)]
        elif kind < 0.8:
            gone = self.store.remove_below(held[min(len(held) - 1, draw.randrange(40))])
        elif kind < 0.95:
            subject = self.twin.held[draw.choice(held)][1]
            gone = [seq for seq in list(self.store.index.seqs(subject))[:-1] if self.store.remove(seq)]
        else:
            self.store.clear()
            self.twin.held.clear()
            self.view.take_struck(True)
            for reader in self.readers:
                reader.backlog.forget()
                reader.next = max(reader.next, self.twin.last + 1)
            return
        self.lose(gone)

    def step(self) -> None:
        choice = self.draw.random()
        if choice < 0.35:
            self.publish()
        elif choice < 0.5:
            self.remove()
        elif choice < 0.6 or not self.readers:
            self.readers.append(Reader(self.view, self.draw.choice(FILTERS), self.draw.randint(1, self.twin.last + 2)))
        elif choice < 0.63:
            self.readers.remove(self.draw.choice(self.readers))
        else:
            reader = self.draw.choice(self.readers)
            for _ in range(self.draw.choice([1, 10])):
                reader.read(self.twin, self.draw.choice([1, 3, 1000]))
        for reader in self.readers:
            if self.draw.random() < 0.5:
                reader.backlog.count(reader.next, self.draw.choice([1, 7, 1000]))
            if self.draw.random() < 0.2:
                assert reader.backlog.remaining(reader.next) == len(reader.ahead(self.twin))
                fresh = Backlog(self.view, reader.filters)  # as a new leader counts
                assert fresh.remaining(reader.next) == len(reader.ahead(self.twin))


@pytest.mark.parametrize("seed", range(10))
def test_it_is_what_counting_and_looking_at_all_messages_would_find(seed: int) -> None:
    world = World(seed)
    for _ in range(60):
        world.publish()
    for _ in range(200):
        world.step()


@pytest.mark.extended
@pytest.mark.timeout(900)
def test_it_is_so_in_many_lives() -> None:
    for seed in range(1000, 1200):
        world = World(seed)
        for _ in range(600):
            world.step()


def many(subjects: list[bytes]) -> StreamView:
    store = new_store()
    for index, start in enumerate(range(0, len(subjects), 1000), 1):
        part = subjects[start : start + 1000]
        store.append_run(index, Batch(1, part, [b""] * len(part)), cache=False)
    config: Any = SimpleNamespace(subject_bytes=[b"s.>"])
    return StreamView(config, store, cast(Any, None))


def test_a_wide_filter_is_counted_and_followed_in_parts() -> None:
    view = many([b"s.%d.%b" % (n, b"b" if n == 19_999 else b"a") for n in range(20_000)])
    backlog, parts = Backlog(view, (b"s.*.b",)), 1
    backlog.hears = True
    while not backlog.count(1):
        parts += 1
    assert parts >= 20_000 // LOOKS and backlog.remaining(1) == 1
    start, turns = 1, 1
    while (found := backlog.find(start, LOOKS)) < 0:
        assert backlog.reached - start <= 2 * LOOKS
        start, turns = backlog.reached, turns + 1
    assert found == 20_000 and turns >= 20_000 // LOOKS


def test_a_narrow_filter_looks_at_what_matches_only() -> None:
    view = many([b"s.%d.%d" % (n % 1000, n) for n in range(20_000)])
    while view.store.index.order.settle():
        pass
    backlog = Backlog(view, tuple(b"s.%d.>" % n for n in range(10)))
    backlog.hears = True
    assert backlog.count(1) and backlog.remaining(1) == 200
    start, seen = 1, list[int]()
    before = backlog.looks
    while found := backlog.find(start, LOOKS):
        seen.append(found)
        start = found + 1
    assert len(seen) == 200 and backlog.looks - before <= 300


def test_what_was_found_but_not_delivered_is_found_again() -> None:
    """Whoever looks further ahead, and then has to begin where he was, is not told of what is further ahead only."""
    subjects = [b"s.%d" % (n % 200) for n in range(2000)]
    view = many(subjects)
    backlog, wanted = Backlog(view, (b"s.7", b"s.x")), [n + 1 for n in range(2000) if n % 200 == 7]
    assert backlog.find(1, LOOKS) == wanted[0]
    view.store.append_run(99, Batch(1, subjects, [b""] * 2000), cache=False)
    assert backlog.find(2001, LOOKS) == 2008
    for start in range(1, 2001, 150):
        assert backlog.find(start, LOOKS) == next(seq for seq in [*wanted, 2008] if seq >= start)


def test_filters_of_which_there_are_more_than_messages_are_not_asked_for_one_by_one() -> None:
    view = many([b"s.%d" % n for n in range(100)])
    assert not seeking.selective(view.store.index, tuple(b"s.%d" % n for n in range(100)), 100)


def test_a_consumer_that_is_still_counted_answers_and_delivers_when_it_is() -> None:
    stand = Stand()
    stand.stream.most = 3
    stand.publish(*["s.a", "s.b"] * 20)
    one = stand.create(filter_subject="s.b")
    assert stand.created["num_pending"] == 20
    got = stand.pull(one, batch=20, no_wait=True)
    assert texts(got) == [f"m{n}" for n in range(2, 41, 2)] and [m.pending for m in got] == list(range(19, -1, -1))
    assert texts(stand.pull(one, "empty", batch=1, no_wait=True)) == ["404 No Messages"]


@pytest.mark.parametrize("push", [False, True])
def test_a_consumer_is_not_inactive_while_its_creator_waits_for_the_count(
    push: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of the count takes longer than the consumer may be inactive; it lives on for that time behind it."""
    stand = Stand()
    stand.stream.most = 3
    stand.publish(*["s.a", "s.b"] * 20)
    parts, count = list[bool](), Consumer.count

    def slow(consumer: Consumer) -> bool:
        stand.loop.pass_by(8)
        parts.append(count(consumer))
        return parts[-1]

    monkeypatch.setattr(Consumer, "count", slow)
    deliver = {"deliver_subject": "nobody"} if push else {}
    one = stand.create(filter_subject="s.b", inactive_threshold=5 * 1_000_000_000, **deliver)
    assert len(parts) > 5 and stand.created["num_pending"] == 20
    assert stand.consumers.names() == [one.name]
    stand.loop.advance(4)
    assert stand.consumers.names() == [one.name]
    stand.loop.advance(4)
    assert stand.consumers.names() == []


def test_no_wait_on_a_consumer_that_is_not_counted_yet_still_ends() -> None:
    stand = Stand()
    one = stand.create(filter_subject="s.none")
    stand.stream.most = 3
    stand.publish(*["s.a"] * 20)
    one.restart(stand.consumers.now())
    assert texts(stand.pull(one, batch=1, no_wait=True)) == ["404 No Messages"]
