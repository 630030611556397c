"""The index of subjects and the searches on it: against models over random histories, and how much they look at."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from nimsnats.jetstream import order, search
from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.blocks import BlockCache
from nimsnats.jetstream.index import SubjectIndex
from nimsnats.jetstream.order import Pattern, SubjectOrder
from nimsnats.jetstream.store import MessageStore
from nimsnats.protocol.subject import has_wildcard, matcher

TOKENS = (b"a", b"b", b"a-b", b"a/b", b"z", b"*", b">", b"\xff", b"!")


def literal(source: random.Random) -> bytes:
    """A subject as clients may publish it, tokens that sort around the dot and look like wildcards among them."""
    return b".".join(source.choice(TOKENS) + source.choice((b"", b"1", b"2")) for _ in range(source.randint(1, 4)))


def wanted_subject(source: random.Random) -> bytes:
    tokens = literal(source).split(b".")
    tokens = [b"*" if token == b">" or source.random() < 0.5 else token for token in tokens]
    if source.random() < 0.4:
        tokens[-1] = b">"
    return b".".join(tokens)


def selected(subjects: Iterator[bytes] | list[bytes], filters: tuple[bytes, ...]) -> list[bytes]:
    return sorted(s for s in subjects if any(matcher(f)(s) if has_wildcard(f) else f == s for f in filters))


@pytest.mark.parametrize("seed", range(6))
def test_subjects_that_match_are_found_through_any_history(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "CHUNK", 1 + 4 * (seed % 2))
    monkeypatch.setattr(order, "PORTION", 4)
    monkeypatch.setattr(order, "RUN", 6)
    monkeypatch.setattr(order, "_SWEEP", 2)
    source = random.Random(seed)
    index, held = SubjectIndex(), dict[bytes, list[int]]()
    for seq in range(1, 600):
        if source.random() < (0.7 if seq % 200 < 120 else 0.3) or not held:
            subject = literal(source)
            index.add(subject, seq)
            held.setdefault(subject, []).append(seq)
        else:
            subject = source.choice(list(held))
            gone = source.choice(held[subject])
            index.remove(subject, gone)
            held[subject].remove(gone)
            if not held[subject]:
                del held[subject]
        if seq % 7:
            continue
        filters = tuple(wanted_subject(source) for _ in range(source.choice((1, 1, 2, 4))))
        expected = selected(list(held), filters)
        assert sorted(index.find(filters)) == expected
        assert sorted(index.subjects(filters)) == expected
        parts = [subject for part in index.parts(filters, source.choice((0, 1, 5))) for subject in part]
        assert sorted(parts) == expected
        while index.order.settle():
            pass
        parts = [subject for part in index.parts(filters, source.choice((0, 1, 5))) for subject in part]
        assert sorted(parts) == expected and (len(filters) > 1 or parts == expected)
        assert len(index.order) == len(held) == len(index)


@pytest.mark.parametrize("looks", [1, 3])
def test_what_is_sorted_in_between_two_parts_comes_once(looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may look for something in the middle of a removal, which counts what it finds."""
    monkeypatch.setattr(order, "PORTION", 2)
    index = SubjectIndex()
    for seq in range(1, 20):
        index.add(b"a.%02d" % seq, seq)
    found: list[bytes] = []
    for part in index.parts((b"a.*",), looks):
        found += part
        index.order.settle()
    assert sorted(found) == [b"a.%02d" % seq for seq in range(1, 20)]


@pytest.mark.parametrize("seed", range(4))
def test_searches_in_steps_find_what_a_scan_finds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_LOOKS", 3)
    source = random.Random(seed)
    store = MessageStore(file=True, cache=BlockCache(0))
    held: dict[int, bytes] = {}
    for index in range(1, 60):
        subjects = [literal(source) for _ in range(source.randint(1, 6))]
        first = store.append_run(index, Batch(index, subjects, [b"x"] * len(subjects)), cache=False)
        held |= {first + at: subject for at, subject in enumerate(subjects)}
        for seq in source.sample(sorted(held), min(3, len(held))):
            store.remove(seq)
            del held[seq]
        filters = tuple(wanted_subject(source) for _ in range(source.choice((1, 1, 2))))
        start, end = source.randint(0, store.last_seq + 1), source.randint(0, store.last_seq)
        matching = {s: held[s] for s in sorted(held) if selected([held[s]], filters)}
        ahead = [s for s in matching if s >= start]
        assert search.arrive(search.next_in_steps(store, filters, start)) == min(ahead, default=0)
        assert search.arrive(search.last_in_steps(store, filters)) == max(matching, default=0)
        assert search.last_of(store, filters) == max(matching, default=0)
        assert search.arrive(search.count_in_steps(store, filters, start)) == len(ahead)
        newest = {subject: s for s, subject in matching.items() if s <= end}
        found = search.arrive(search.last_of_each_in_steps(store, filters, end, 1000))
        assert sorted(found) == sorted(newest.values())
        most = source.randint(0, 5)
        cut = search.arrive(search.last_of_each_in_steps(store, filters, end, most))
        assert len(cut) == len(newest) if len(newest) <= most else len(cut) > most


class Counted:
    """Counts the subjects that a pattern is compared with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        made = Pattern.test.fget
        assert made is not None

        def counting(pattern: Pattern) -> Callable[[bytes], object]:
            test = made(pattern)

            def looked(candidate: bytes) -> object:
                self.looks += 1
                return test(candidate)

            return looked

        monkeypatch.setattr(Pattern, "test", property(counting))
        order.pattern_of.cache_clear()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    yield Counted(monkeypatch)
    order.pattern_of.cache_clear()


def test_a_wildcard_looks_only_where_matches_can_be(counted: Counted) -> None:
    subjects = SubjectOrder()
    for number in range(40_000):
        subjects.add(b"w.%d.k%d" % (number % 40, number))
    while subjects.settle():
        pass
    looks = dict[bytes, int]()
    for pattern in (b"w.*.k777", b"w.7.>", b"w.7.k1*", b"*.7.k7", b"w.*.none", b"none.*", b"w.7.*"):
        before = counted.looks
        subjects.select(pattern)
        looks[pattern] = counted.looks - before
    assert looks[b"w.*.k777"] <= 40 * 4 * order._SEEKS  # pyright: ignore[reportPrivateUsage]
    assert looks[b"w.*.none"] <= 40 * 4 * order._SEEKS  # pyright: ignore[reportPrivateUsage]
    assert looks[b"w.7.*"] <= 1000 + 2
    assert looks[b"w.7.>"] == looks[b"none.*"] == 0
    assert looks[b"*.7.k7"] <= 2 * order._SEEKS  # pyright: ignore[reportPrivateUsage]


def test_a_selection_ends_when_it_has_looked_at_enough_and_goes_on_where_it_was(counted: Counted) -> None:
    subjects = SubjectOrder()
    for number in range(20_000):
        subjects.add(b"%d.x" % number)
    while subjects.settle():
        pass
    steps, start, most = 0, b"", 0
    while True:
        before = counted.looks
        _, start = subjects.select(b"*.y", start, 500)
        most, steps = max(most, counted.looks - before), steps + 1
        if not start:
            break
    assert most <= 500 + 2 * order.RUN and steps >= 10


def test_new_subjects_wait_and_are_sorted_in_together(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects, settled = SubjectOrder(), list[int]()
    sort_in = SubjectOrder._sort_in  # pyright: ignore[reportPrivateUsage]

    def counting(subjects: SubjectOrder, fresh: list[bytes]) -> None:
        settled.append(len(fresh))
        sort_in(subjects, fresh)

    monkeypatch.setattr(SubjectOrder, "_sort_in", counting)
    for number in range(5 * order.PORTION):
        subjects.add(b"%d" % number)
    for number in range(20_000):  # those that come and go are never sorted, nor kept
        subjects.add(b"gone.%d" % number)
        subjects.remove(b"gone.%d" % number)
    assert not settled and len(subjects) == 5 * order.PORTION
    while subjects.settle():
        pass
    assert sum(settled) == len(subjects) and max(settled) <= order.PORTION + order.CHUNK and len(settled) >= 5


def test_subjects_that_wait_and_are_gone_are_taken_out_in_time() -> None:
    subjects = SubjectOrder()
    for number in range(20_000):
        subjects.add(b"%06d" % number)
    for number in range(19_000):
        subjects.remove(b"%06d" % number)
        assert subjects.unsorted - len(subjects) <= subjects.unsorted // 4 + 2 * order.CHUNK
    while subjects.settle():
        pass
    assert subjects.select(b">")[0] == [b"%06d" % number for number in range(19_000, 20_000)]


def test_subjects_that_are_gone_are_taken_out_in_time() -> None:
    subjects = SubjectOrder()
    for number in range(20_000):
        subjects.add(b"%06d" % number)
    while subjects.settle():
        pass
    for number in range(19_000):
        subjects.remove(b"%06d" % number)
        held = sum(map(len, subjects._runs))  # pyright: ignore[reportPrivateUsage]
        assert held - len(subjects) <= held // 4 + 2 * order.RUN + 256 * len(subjects._runs)  # pyright: ignore[reportPrivateUsage]
    assert subjects.select(b">")[0] == [b"%06d" % number for number in range(19_000, 20_000)]
