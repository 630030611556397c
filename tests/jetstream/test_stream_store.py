"""The store against a naive twin: random stores and removals, then every question that can be asked."""

from __future__ import annotations

import random

import pytest

from nimsnats.jetstream import search
from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.blocks import BlockCache, Note
from nimsnats.jetstream.index import SeqList
from nimsnats.jetstream.store import MessageStore
from nimsnats.protocol.subject import matches

STREAM_SUBJECTS = [b"s.>"]
FILTERS = [(), (b"s.>",), (b"s.1.a",), (b"s.*.a",), (b"s.2.>", b"s.3.b"), (b"s.9.*",), (b"other",), (b">",)]


class Twin:
    """Sequence -> (time, subject, stored size)."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[int, bytes, int]] = {}
        self.last = 0


def new_store() -> MessageStore:
    return MessageStore(file=True, cache=BlockCache(1 << 20))


def store_batch(store: MessageStore, twin: Twin, index: int, now: int, source: random.Random) -> None:
    count = source.choice([1, 1, 3, 20])
    one = source.random() < 0.3
    subjects = [b"s.%d.%b" % (source.randrange(1 if one else 12), source.choice([b"a", b"b"])) for _ in range(count)]
    if one:
        subjects = subjects[:1] * count
    payloads = [b"x" * source.randrange(9) for _ in range(count)]
    batch = Batch(now, subjects, payloads)
    rejected = [] if source.random() < 0.6 else [at for at in range(count) if source.random() < 0.3]
    if not rejected and source.random() < 0.7:
        store.append_run(index, batch, cache=True)
    else:
        store.begin(index, batch)
        for at in range(count):
            if at not in rejected:
                store.add(at)
        store.finish(rejected, cache=True)
    for at in range(count):
        if at not in rejected:
            twin.last += 1
            twin.held[twin.last] = (now, subjects[at], 30 + len(subjects[at]) + len(payloads[at]))


def compare(store: MessageStore, twin: Twin, source: random.Random) -> None:
    held = twin.held
    assert store.messages == len(held) and store.last_seq == twin.last
    assert store.bytes == sum(size for _, _, size in held.values())
    assert store.first_seq == (min(held) if held else twin.last + 1 if twin.last else 0)
    assert len(store.index) == len({subject for _, subject, _ in held.values()})
    assert search.missing(store) == [s for s in range(max(store.first_seq, 1), twin.last + 1) if s not in held]
    start = source.randrange(twin.last + 3)
    for filters in FILTERS:
        wanted = [s for s in sorted(held) if not filters or any(matches(held[s][1], f) for f in filters)]
        after = [s for s in wanted if s >= start]
        assert search.next_match(store, filters, start, STREAM_SUBJECTS) == (after[0] if after else 0)
        assert search.last_match(store, filters, STREAM_SUBJECTS) == (wanted[-1] if wanted else 0)
        assert search.count_match(store, filters, start, STREAM_SUBJECTS) == len(after)
        newest = {held[s][1]: s for s in wanted}
        assert search.arrive(search.last_per_subject(store, filters, STREAM_SUBJECTS)) == sorted(newest.values())
    time = source.randrange(1, 60)
    later = [s for s in sorted(held) if held[s][0] >= time]
    assert search.seq_at_time(store, time) == (later[0] if later else twin.last + 1)
    for seq in range(twin.last + 2):
        expected = (held[seq][1], held[seq][0], held[seq][2]) if seq in held else None
        assert search.describe(store, seq) == expected


@pytest.mark.parametrize("seed", range(25))
def test_random_histories(seed: int) -> None:
    source = random.Random(seed)
    store, twin = new_store(), Twin()
    for step in range(1, 50):
        store_batch(store, twin, step, step, source)
        action = source.random()
        if action < 0.3 and twin.held:
            for seq in source.sample(sorted(twin.held), min(len(twin.held), 5)):
                assert store.remove(seq)
                assert not store.remove(seq)
                del twin.held[seq]
        elif action < 0.45:
            end = source.randrange(twin.last + 2)
            keep = {seq for seq in twin.held if source.random() < 0.1} if source.random() < 0.3 else set[int]()
            gone = [seq for seq in sorted(twin.held) if seq < end and seq not in keep]
            assert store.remove_below(end, keep=keep) == gone
            for seq in gone:
                del twin.held[seq]
        elif action < 0.5:
            store.clear()
            twin.held.clear()
        compare(store, twin, source)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_come_back_from_their_notes(seed: int) -> None:
    source = random.Random(seed)
    store, twin = new_store(), Twin()
    data: dict[int, Batch] = {}
    for step in range(1, 30):
        store_batch(store, twin, step, step, source)
        loaded = store.cached(store.blocks.last()) if len(store.blocks) else None
        del loaded
        for seq in source.sample(sorted(twin.held), min(len(twin.held), 3)):
            store.remove(seq)
            del twin.held[seq]
    restored = new_store()
    for block in store.blocks:
        positions = range(block.count)
        data[block.index] = Batch(
            block.time, [block.subject_at(at) for at in positions], [b"x" * (block.size_at(at)) for at in positions]
        )
        note = Note(block.note())
        assert list(note.live) == [seq for seq in sorted(twin.held) if block.first <= seq <= block.last]
        restored.restore_block(block.index, note.first, note.live, None, data[block.index])
    restored.last_seq = store.last_seq
    restored.advance()
    assert restored.messages == store.messages and restored.first_seq == store.first_seq
    for filters in FILTERS:
        newest = [search.arrive(search.last_per_subject(one, filters, STREAM_SUBJECTS)) for one in (restored, store)]
        assert newest[0] == newest[1]


def test_front_finds_what_has_to_go() -> None:
    store = new_store()
    store.append_run(1, Batch(1, [b"a"] * 4, [b""] * 4), cache=True)
    store.append_run(2, Batch(2, [b"a"] * 4, [b"xx"] * 4), cache=True)
    assert search.front(store, 3, 0) == 4
    assert search.front(store, 5, 0) == 6
    assert search.front(store, 0, 31 * 4 + 1) == 6
    assert search.front(store, 8, 0) == 9


def test_a_long_list_of_sequences_is_cheap_at_both_ends() -> None:
    source = random.Random(3)
    held = list(range(1, 5001))
    seqs = SeqList(held)
    while held:
        if source.random() < 0.2:
            take = min(source.randrange(1, 200), len(held))
            seqs.drop_front(take)
            del held[:take]
        else:
            seqs.remove(held.pop(min(int(source.expovariate(0.01)), len(held) - 1)))
        assert len(seqs) == len(held)
        assert list(seqs.items[seqs.head :]) == held


def test_who_waits_for_new_messages_does_not_search_all_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watchers of a bucket, each with a filter of its own: a put must not cost subjects times watchers."""
    store = new_store()
    subjects = [b"s.%d.%b" % (n, b"a" if n % 2 else b"b") for n in range(500)]
    for at in range(0, 500, 20):
        store.append_run(at + 1, Batch(at + 1, subjects[at : at + 20], [b"x"] * 20), cache=False)
    for seq in (493, 499):
        store.remove(seq)

    def scanned(filters: object) -> None:
        raise AssertionError("every subject of the stream was looked at")

    monkeypatch.setattr(store.index, "subjects", scanned)
    for start in (5, 100, 470, 492, 494, 500):
        for filters in (
            (b"s.*.a",),
            (b"s.*.b",),
            (b"s.492.>",),
            (b"s.*.a", b"s.9.>"),
            (b"none.>",),
            (b"none.*", b"no.x"),
        ):
            expected = [
                seq
                for seq in range(start, 501)
                if seq not in (493, 499) and any(matches(subjects[seq - 1], f) for f in filters)
            ]
            assert search.next_match(store, filters, start, STREAM_SUBJECTS) == (expected[0] if expected else 0)
