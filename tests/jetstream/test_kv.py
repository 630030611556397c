"""Key-value buckets as nats-py uses them, unmodified."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError

from tests.jetstream.stand import running


@pytest.mark.parametrize("direct", [False, True])
async def test_bucket_round_trip(tmp_path: Path, direct: bool) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        kv = await js.create_key_value(bucket="soil", history=3, direct=direct)
        first = await kv.put("a", b"1")
        assert (await kv.get("a")).value == b"1"
        second = await kv.update("a", b"2", last=first)
        with pytest.raises(KeyWrongLastSequenceError):
            await kv.update("a", b"3", last=first)
        with pytest.raises(KeyWrongLastSequenceError):
            await kv.create("a", b"4")
        await kv.update("a", b"5", last=second)
        await kv.put("a", b"6")
        assert [entry.value for entry in await kv.history("a")] == [b"2", b"5", b"6"]
        assert (await kv.get("a", revision=second)).value == b"2"
        await kv.put("b.c", b"x")
        assert sorted(await kv.keys()) == ["a", "b.c"]
        await kv.delete("b.c")
        with pytest.raises(KeyNotFoundError):
            await kv.get("b.c")
        await kv.create("b.c", b"again")
        await kv.purge("a")
        assert len(await kv.history("a")) == 1
        with pytest.raises(KeyNotFoundError):
            await kv.get("nothing")
        status = await kv.status()
        assert status.bucket == "soil"
        assert await js.delete_key_value("soil")


async def test_watch_sees_updates_in_order(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        kv = await stand.client.jetstream().create_key_value(bucket="w")
        await kv.put("a", b"0")
        watcher = await kv.watch("*")
        entry = await watcher.updates(timeout=20)
        assert entry is not None and entry.value == b"0"
        assert await watcher.updates(timeout=20) is None
        for n in range(1, 20):
            await kv.put("a", b"%d" % n)
        seen = [(await watcher.updates(timeout=20)).value for _ in range(19)]  # type: ignore[union-attr]
        assert seen == [b"%d" % n for n in range(1, 20)]


async def test_keys_run_out_and_the_bucket_survives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        kv = await stand.client.jetstream().create_key_value(bucket="t", ttl=0.5, history=2)
        await kv.put("old", b"1")
        gone = asyncio.Event()
        stream = stand.stream("KV_t")
        removed = stream.consumers.removed
        stream.consumers.removed = lambda seqs: (removed(seqs), gone.set())  # type: ignore[method-assign]
        await stand.client.jetstream().subscribe("$KV.t.>")
        await asyncio.wait_for(gone.wait(), 5)
        with pytest.raises(KeyNotFoundError):
            await kv.get("old")
        await stand.client.jetstream().create_key_value(bucket="keep")
        await (await stand.client.jetstream().key_value("keep")).put("k", b"v")
    async with running(tmp_path) as stand:
        kept = await stand.client.jetstream().key_value("keep")
        entry = await kept.get("k")
        assert (entry.value, entry.revision) == (b"v", 1)
        assert await kept.put("k", b"w") == 2
