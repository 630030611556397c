"""Removing in bulk: the same messages whether in steps or at once, and nothing else is applied in between."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from nimsnats.jetstream import content, expiry, kinds, removal, search
from nimsnats.jetstream import stream as streams
from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.blocks import BlockCache
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.store import MessageStore
from nimsnats.jetstream.stream import Stream
from nimsnats.protocol.subject import matches
from tests.jetstream.stand import running


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a few messages."""
    monkeypatch.setattr(removal, "_MESSAGES", 3)
    monkeypatch.setattr(removal, "_SUBJECTS", 2)
    monkeypatch.setattr(removal, "_SORTED", 10)
    monkeypatch.setattr(streams, "_STEPS", 1)
    monkeypatch.setattr(content, "_AT_ONCE", 4)


async def half_done(stream: Stream) -> None:
    for _ in iter(lambda: stream.unsettled, True):
        await asyncio.sleep(0)


def filled(source: random.Random) -> tuple[MessageStore, dict[int, bytes]]:
    store, held = MessageStore(file=True, cache=BlockCache(0)), dict[int, bytes]()
    for index in range(1, 15):
        subjects = [b"s.%d.%d" % (source.randrange(3), source.randrange(4)) for _ in range(source.randint(1, 8))]
        first = store.append_run(index, Batch(index, subjects, [b"x"] * len(subjects)), cache=False)
        held |= {first + at: subject for at, subject in enumerate(subjects)}
    for seq in source.sample(sorted(held), len(held) // 4):
        store.remove(seq)
        del held[seq]
    return store, held


@pytest.mark.parametrize("seed", range(12))
def test_what_is_removed_step_by_step_is_what_a_model_removes(seed: int) -> None:
    source = random.Random(seed)
    for kind in ("below", "subject limit", "subjects", "expired"):
        store, held = filled(source)
        last, end, keep = store.last_seq, source.randint(0, store.last_seq + 2), source.randint(0, 12)
        if kind == "below":
            gone = {seq for seq in held if seq < end}
            steps = removal.below(store, end)
        elif kind == "subject limit":
            keep += 1
            by_subject = {subject: [s for s in sorted(held) if held[s] == subject] for subject in held.values()}
            gone = {seq for seqs in by_subject.values() for seq in seqs[:-keep]}
            steps = removal.over_subject_limit(store, keep)
        elif kind == "subjects":
            wanted = source.choice([b"s.1.>", b"s.*.2", b"s.0.0", b"s.*.*"])
            found = [seq for seq in sorted(held) if matches(held[seq], wanted) and (not end or seq < end)]
            gone = set(found[: len(found) - keep] if keep else found)
            steps = removal.of_subjects(store, (wanted,), end, keep)
        else:
            deadlines, age = expiry.Expiry(), source.randrange(3)
            due = source.sample(sorted(held), len(held) // 3)
            for seq in due:
                deadlines.add(seq, 5 if seq % 2 else expiry.NEVER, 0)
            gone = {seq for seq in due if seq % 2}
            if age:
                time = {seq: found[1] for seq in held if (found := search.describe(store, seq))}
                gone |= {seq for seq in held if time[seq] <= 9 - age and seq not in deadlines.never}
            steps = removal.expired(store, deadlines, 9, age, 0)
        removed = [seq for part in steps for seq in part]
        left = sorted(set(held) - gone)
        assert sorted(removed) == sorted(gone), kind
        assert [seq for seq in range(1, last + 1) if search.live(store, seq)] == left, kind
        assert store.messages == len(left) and store.first_seq == (left[0] if left else last + 1)
        sizes = [found[2] for seq in left if (found := search.describe(store, seq))]
        assert store.bytes == sum(sizes)
        assert sorted(store.index.find((b"s.>",))) == sorted({held[seq] for seq in left})


CHANGES: dict[str, tuple[int, Any]] = {
    "purge of a filter": (kinds.STREAM_PURGE, {"filter": b"s.*.1", "seq": 0, "keep": 0}),
    "purge of all but some": (kinds.STREAM_PURGE, {"filter": b"", "seq": 0, "keep": 5}),
    "purge of all": (kinds.STREAM_PURGE, {"filter": b"", "seq": 0, "keep": 0}),
    "lower max_msgs": (kinds.STREAM_CONFIG, {"max_msgs": 7}),
    "lower max_bytes": (kinds.STREAM_CONFIG, {"max_bytes": 400}),
    "lower max_msgs_per_subject": (kinds.STREAM_CONFIG, {"max_msgs_per_subject": 2}),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_nothing_is_applied_while_a_change_is_half_done(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries behind it find the whole change done, and so do requests that read; others have their turn."""
    kind, change = CHANGES[name]
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"])
        for n in range(60):
            await js.publish(f"s.{n % 5}.{n % 3}", b"%d" % n)
        stream = stand.stream("S")
        turns, seen = 0, list[int]()

        def turn() -> None:
            nonlocal turns
            if stream.unsettled:
                turns += 1
                stream.runtime.call_soon(turn)

        applied = stream.apply

        def apply(entry: Any) -> Any:
            assert not stream.unsettled, "an entry is applied in the middle of another"
            rest = applied(entry)
            if entry.kind == kind:
                assert rest is not None
                stream.runtime.call_soon(turn)
            else:
                seen.append(stream.store.messages)
            return rest

        monkeypatch.setattr(stream, "apply", apply)
        if kind == kinds.STREAM_CONFIG:
            change = {"config": {**stream.config.to_stored(), **change}}
        done = asyncio.create_task(stream.change(kind, change))
        behind = asyncio.create_task(stream.change(kinds.STREAM_EXPIRE, {"now": 0}))
        await half_done(stream)
        info = await js.stream_info("S")
        assert not stream.unsettled
        await asyncio.gather(done, behind)
        assert turns > 2
        assert seen == [stream.store.messages] == [info.state.messages]
        for group in stand.host.groups():
            group.compact()
        left = [seq for seq in range(1, 61) if stream.live(seq)]
    async with running(tmp_path) as stand:
        again = stand.stream("S")
        assert [seq for seq in range(1, 61) if again.live(seq)] == left


async def test_an_entry_that_is_committed_meanwhile_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"], storage="memory")
        for n in range(60):
            await js.publish(f"s.{n % 5}.{n % 3}", b"%d" % n)
        stream, applied = stand.stream("S"), list[bool]()
        apply = stream.apply

        def watched(entry: Any) -> Any:
            applied.append(stream.unsettled)
            return apply(entry)

        monkeypatch.setattr(stream, "apply", watched)
        done = asyncio.create_task(stream.change(kinds.STREAM_PURGE, {"filter": b"s.*.1", "seq": 0, "keep": 0}))
        await half_done(stream)
        stream.propose(kinds.STREAM_EXPIRE, pack({"now": 0}))
        assert await done == 20
        assert await stream.change(kinds.STREAM_EXPIRE, {"now": 0}) is None
        assert applied == [False] * 3


async def test_a_snapshot_in_the_middle_of_a_change_holds_all_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"])
        for n in range(40):
            await js.publish(f"s.{n % 5}.{n % 3}", b"%d" % n)
        stream = stand.stream("S")
        done = asyncio.create_task(stream.change(kinds.STREAM_PURGE, {"filter": b"s.*.1", "seq": 0, "keep": 0}))
        await half_done(stream)
        for group in stand.host.groups():
            group.compact()
        assert not stream.unsettled and await done == 13
        assert await stream.change(kinds.STREAM_EXPIRE, {"now": 0}) is None
    async with running(tmp_path) as stand:
        assert stand.stream("S").store.messages == 27


async def test_whoever_waits_for_a_change_hears_when_the_group_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"])
        for n in range(40):
            await js.publish(f"s.{n % 5}.{n % 3}", b"%d" % n)
        stream = stand.stream("S")
        done = asyncio.create_task(stream.change(kinds.STREAM_PURGE, {"filter": b"s.*.1", "seq": 0, "keep": 0}))
        await half_done(stream)
        await stand.host.remove_group(stream.group.name)
        with pytest.raises(Exception, match="removed"):
            await done
        assert not stream.unsettled


async def test_whoever_waits_behind_a_change_hears_when_the_group_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"], storage="memory")
        for n in range(40):
            await js.publish(f"s.{n % 5}.{n % 3}", b"%d" % n)
        stream = stand.stream("S")
        (group,) = [group for group in stand.host.groups() if group.name == stream.group.name]
        purge = {"filter": b"s.*.1", "seq": 0, "keep": 0}
        waiting = [asyncio.create_task(stream.change(kinds.STREAM_PURGE, purge)) for _ in range(3)]
        await half_done(stream)
        assert group.committed == group.applied + 2
        group.stop("the test ends it")
        for task in waiting:
            with pytest.raises(Exception, match="the test ends it"):
                await task


@pytest.mark.parametrize("how", ["in a turn", "by a snapshot"])
async def test_a_node_that_fails_in_the_middle_of_a_change_does_not_take_it_for_done(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have not failed there: this member serves no more, and nothing of its state is stored."""
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"])
        for n in range(40):
            await js.publish(f"s.{n % 5}.{n % 3}", b"%d" % n)
        stream = stand.stream("S")
        (group,) = [group for group in stand.host.groups() if group.name == stream.group.name]
        done = asyncio.create_task(
            stream.change(kinds.STREAM_PURGE, {"filter": b"s.*.1", "seq": 0, "keep": 0}),
        )
        await half_done(stream)

        def fails(*_: object) -> list[int]:
            raise MemoryError

        monkeypatch.setattr(stream.store, "remove_fronts", fails)
        if how == "by a snapshot":
            group.compact()
            assert group.failure
        with pytest.raises(Exception, match="MemoryError"):
            await done
        assert group.failure and not group.compacting and not stream.unsettled
    async with running(tmp_path) as stand:
        assert stand.stream("S").store.messages == 27


async def test_a_roll_up_of_everything_is_whole_before_the_next_message_of_its_batch(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"], allow_rollup_hdrs=True)
        for n in range(40):
            await js.publish(f"s.{n % 5}.{n % 3}", b"%d" % n)
        expects = {"Nats-Expected-Last-Subject-Sequence": "41", "Nats-Expected-Last-Subject-Sequence-Subject": "s.>"}
        acks = await asyncio.gather(
            js.publish("s.x", b"all", headers={"Nats-Rollup": "all"}), js.publish("s.y", b"next", headers=expects)
        )
        assert [ack.seq for ack in acks] == [41, 42]
        assert stand.stream("S").store.messages == 2


def test_the_cache_forgets_the_blocks_of_a_store_without_looking_at_others() -> None:
    cache, stores = BlockCache(1 << 20), list[MessageStore]()
    for _ in range(4):
        store = MessageStore(file=True, cache=cache)
        for index in range(1, 6):
            store.append_run(index, Batch(index, [b"s"], [b"x"]), cache=True)
        stores.append(store)
    looked: list[object] = []
    drop = cache.drop

    def dropping(key: tuple[int, int]) -> None:
        looked.append(key)
        drop(key)

    cache.drop = dropping  # type: ignore[method-assign]
    stores[1].close()
    assert sorted(looked) == [(stores[1].id, index) for index in range(1, 6)]  # pyright: ignore[reportArgumentType]
    held = [all(store.cached(block) is not None for block in store.blocks) for store in stores]
    assert held == [True, False, True, True]
