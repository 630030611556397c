"""Merging and rewriting blocks never changes the stream, whenever the process ends in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nimsnats.jetstream.info import stream_state
from nimsnats.jetstream.stream import Stream
from nimsnats.raft.group import HostedGroup
from nimsnats.raft.machine import StoredBlock
from nimsnats.storage import StorageFull
from tests.broker.peer import until
from tests.jetstream.stand import running
from tests.jetstream.test_stream_machine import CONFIGS, Log, contents, header, new_stream, publish, random_history


class Disk:
    """What storage would hold: the last snapshot, notes, and block bytes (in the log's entries)."""

    def __init__(self) -> None:
        self.state = b""
        self.index = 0
        self.notes: dict[int, bytes] = {}

    def snapshot(self, stream: Stream, log: Log) -> None:
        taken = stream.snapshot()
        self.state, self.index = taken.state, len(log.entries)
        self.notes.update({record.index: record.note for record in taken.blocks})
        for index in taken.dropped:
            self.notes.pop(index, None)

    async def restart(self, log: Log, config: dict[str, Any]) -> Stream:
        stream, other = new_stream(**config)
        other.entries = log.entries
        blocks = [StoredBlock(index, self.notes[index], log.entries[index - 1].data) for index in sorted(self.notes)]
        await stream.restore(self.state, blocks)
        for entry in log.entries[self.index :]:
            stream.apply(entry)
        return stream


async def same(one: Stream, two: Stream) -> None:
    assert stream_state(one) == stream_state(two)
    assert await contents(one) == await contents(two)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", CONFIGS[:6], ids=str)
async def test_a_restart_at_any_point_finds_the_same_stream(config: dict[str, Any], seed: int) -> None:
    source = random.Random(seed)
    stream, log = new_stream(**config)
    disk = Disk()
    for _ in range(4):
        random_history(stream, log, source)
        disk.snapshot(stream, log)
        await same(await disk.restart(log, config), stream)
        task = stream._compactor._task
        if task is not None:
            await task
        await same(await disk.restart(log, config), stream)
        random_history(stream, log, source)
        await same(await disk.restart(log, config), stream)
        stream.store.close()  # nothing is cached: payloads come from the rewritten bytes
        await same(await disk.restart(log, config), stream)


async def test_readings_that_a_merge_overtakes_find_their_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they get from the disk are bytes of blocks that are others now, or no more."""
    stream, log = new_stream()
    repeated = header(Nats_Msg_Id="a")
    publish(stream, log, 1, [(b"s.1", repeated, b"1"), (b"s.1", repeated, b"refused"), (b"s.2", b"", b"2")])
    for n in range(3, 31):
        publish(stream, log, n, [(b"s.%d" % n, b"", b"%d" % n)])
    stream.store.close()  # nothing is cached
    before = len(stream.store.blocks)
    under_way, gate = 0, asyncio.Event()

    async def read_block(index: int) -> bytes:
        nonlocal under_way
        data = log.entries[index - 1].data
        under_way += 1
        if under_way <= before:
            await gate.wait()
        return data

    monkeypatch.setattr(log, "read_block", read_block)
    readings = [asyncio.create_task(stream.load(seq)) for seq in range(1, 31)]
    await until(lambda: under_way == before)
    disk = Disk()
    for _ in range(2):
        disk.snapshot(stream, log)
        assert stream._compactor._task is not None
        await stream._compactor._task
    assert len(stream.store.blocks) < before // 2
    gate.set()
    for _ in range(2):  # neither now nor later, out of the cache
        found = [message.payload for message in await asyncio.gather(*readings) if message is not None]
        assert found == [b"%d" % n for n in range(1, 31)]
        readings = [asyncio.create_task(stream.load(seq)) for seq in range(1, 31)]


async def test_single_publishes_and_overwrites_end_in_few_blocks(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s"])
        kv = await js.create_key_value(bucket="b")
        for n in range(60):
            await js.publish("s", b"%d" % n)
            await kv.put(f"k{n % 3}", b"%d" % n)
        stored = stand.stream("S").store, stand.stream("KV_b").store
        assert len(stored[0].blocks) > 50
        for _ in range(2):
            for group in stand.host.groups():
                group.compact()
            for name in ("S", "KV_b"):
                task = stand.stream(name)._compactor._task
                if task is not None:
                    await task
            await js.publish("s", b"more")
            await kv.put("more", b"")
        assert len(stored[0].blocks) < 5
        assert len(stored[1].blocks) < 6
        for store in stored:
            store.close()
        assert (await js.get_msg("S", 17)).data == b"16"
        assert (await kv.get("k1")).value == b"58"
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        assert (await js.stream_info("S")).state.messages == 62
        assert [(await js.get_msg("S", seq)).data for seq in range(1, 61)] == [b"%d" % n for n in range(60)]
        kv = await js.key_value("b")
        assert [(await kv.get(f"k{n}")).value for n in range(3)] == [b"57", b"58", b"59"]


class FullFor:
    """A disk without space for what is to be written while `full` is set."""

    full = False

    def commit(self, write: Callable[[], None]) -> None:
        if self.full:
            raise StorageFull("no space left")
        write()


async def test_blocks_that_a_full_disk_kept_from_being_merged_stay_apart(tmp_path: Path) -> None:
    disk = FullFor()
    async with running(tmp_path, disk) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s"])
        for n in range(30):
            await js.publish("s", b"%d" % n)
        stream = stand.stream("S")
        assert isinstance(stream.group, HostedGroup)
        for number in range(3):
            disk.full = number == 0
            stream.group.compact()
            assert stream._compactor._task is not None
            await stream._compactor._task
            disk.full = False
            assert len(stream.store.blocks) > 20 or number == 2
            await js.publish("s", b"more")
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        assert len(stand.stream("S").store.blocks) < 10
        assert (await js.stream_info("S")).state.messages == 33
        assert [(await js.get_msg("S", seq)).data for seq in range(1, 31)] == [b"%d" % n for n in range(30)]
