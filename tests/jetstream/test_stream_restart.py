"""What a stream still knows after the process has ended: everything that was acknowledged, and what damage took."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.content import Publication
from nimsnats.jetstream.info import stream_state
from tests.broker.peer import until
from tests.jetstream.stand import Stand, running


async def fill(stand: Stand, count: int, start: int = 0) -> None:
    js = stand.client.jetstream()
    for n in range(start, start + count):
        await js.publish(f"s.{n % 7}", b"%d" % n, headers={"Nats-Msg-Id": f"id-{n}"})


@pytest.mark.parametrize("compacted", [False, True])
async def test_messages_deletes_and_ids_survive(tmp_path: Path, compacted: bool) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(StreamConfig(name="S", subjects=["s.*"], max_msgs_per_subject=3))
        await fill(stand, 40)
        await js.delete_msg("S", 30)
        await js.purge_stream("S", subject="s.1")
        if compacted:
            for group in stand.host.groups():
                group.compact()
            await fill(stand, 5, start=40)
        before = (await js.stream_info("S")).state
        held = [stand.stream("S").get(seq) for seq in range(1, 60) if stand.stream("S").live(seq)]
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        assert (await js.stream_info("S")).state == before
        stream = stand.stream("S")
        assert [await stream.load(seq) for seq in range(1, 60) if stream.live(seq)] == held
        again = await js.publish("s.0", b"again", headers={"Nats-Msg-Id": "id-39"})
        assert again.duplicate and again.seq == 40
        fresh = await js.publish("s.0", b"fresh")
        assert fresh.seq == before.last_seq + 1


async def test_memory_streams_end_and_deleted_streams_stay_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="M", subjects=["m"], storage=StorageType.MEMORY)
        await js.publish("m", b"x")
        await js.add_stream(name="F", subjects=["f"])
        await js.add_stream(name="D", subjects=["d"], retention=RetentionPolicy.WORK_QUEUE)
        await js.delete_stream("D")
    with caplog.at_level(logging.WARNING):
        async with running(tmp_path) as stand:
            assert [info.config.name for info in await stand.client.jetstream().streams_info()] == ["F"]
            assert [name for name in stand.host.recorded_groups() if name.startswith("S-")] == [
                stand.engine.accounts["$G"].served("F").group_name
            ]
    assert "Memory stream '$G > M' ended with the last process" in caplog.text
    async with running(tmp_path) as stand:
        with pytest.raises(NotFoundError):
            await stand.client.jetstream().stream_info("M")


async def test_a_stream_that_the_catalogue_lost_is_adopted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S-1", subjects=["s.*"], max_msgs_per_subject=2)
        await stand.client.jetstream().publish("s.1", b"x")
        await stand.host.remove_group(stand.engine.meta.group.name)
    with caplog.at_level(logging.ERROR):
        async with running(tmp_path) as stand:
            info = await stand.client.jetstream().stream_info("S-1")
            assert info.state.messages == 1 and info.config.max_msgs_per_subject == 2
    assert "missing in the damaged catalogue" in caplog.text
    async with running(tmp_path) as stand:
        assert (await stand.client.jetstream().publish("s.1", b"y")).seq == 2


async def test_blocks_that_leave_the_cache_are_read_from_disk(tmp_path: Path) -> None:
    async with running(tmp_path, cache_bytes=4096) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.*"], allow_direct=True)
        for n in range(50):
            await js.publish("s.1", b"%04d" % n * 64)
        assert stand.stream("S").get(1) is None
        for seq in (1, 25, 50):
            message = await js.get_msg("S", seq)
            assert message.data == b"%04d" % (seq - 1) * 64
            assert (await js.get_msg("S", seq, direct=True)).data == message.data


@pytest.mark.parametrize("compacted", [False, True])
async def test_damage_found_by_a_reader_is_named_in_the_state_and_stays_so(tmp_path: Path, compacted: bool) -> None:
    async with running(tmp_path, cache_bytes=4096) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.*"])
        for n in range(30):
            await js.publish("s.1", b"%04d" % n * 64)
        if compacted:
            for group in stand.host.groups():
                group.compact()
        stream = stand.stream("S")
        block = stream.store.blocks.find(2)
        assert block is not None and stream.get(2) is None
        seqs, size = [block.seq_at(at) for at in block.live_positions()], block.stored
        with closing(sqlite3.connect(tmp_path / "nimsnats.db")) as file, file:
            assert file.execute("UPDATE entries SET data = x'00' WHERE instr(data, ?)", (b"0001" * 64,)).rowcount == 1
        pull = await js.pull_subscribe("s.*", durable="D")
        assert (await pull.fetch(1))[0].metadata.sequence.stream == 1
        late = [message.metadata.sequence.stream for message in await pull.fetch(28 + 1 - len(seqs))]
        assert not set(late) & set(seqs)
        await js.publish("s.1", b"")  # its entry follows the one that says so
        state = stream_state(stream)
        assert state["lost"] == {"msgs": seqs, "bytes": size} and state["messages"] == 31 - len(seqs)
    async with running(tmp_path) as stand:
        state = stream_state(stand.stream("S"))
        assert state["lost"]["msgs"] == seqs and state["messages"] == 31 - len(seqs)
        assert (await stand.client.jetstream().publish("s.1", b"")).seq == 32


async def test_sequences_stay_although_no_batch_follows_that_tells_what_a_damaged_one_held(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s"])
        assert (await js.publish("s", b"first", headers={"Nats-Msg-Id": "1"})).seq == 1
        stream = stand.stream("S")
        header = b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n"
        for payload, headers in ((b"damaged", [b"", header, header]), (b"behind", [b"", b"", header])):
            batch = Batch(stream.store.last_time, [b"s"] * 3, [payload] * 3, headers)
            stream.propose_batch(Publication(batch), batch.encode())
        last = stream.group.applied + 3  # these, and an entry that tells of them
        await until(lambda: stream.group.applied == last)
        assert stream.last_seq == 4
    with closing(sqlite3.connect(tmp_path / "nimsnats.db")) as file, file:
        assert file.execute("UPDATE entries SET data = x'00' WHERE instr(data, 'damaged')").rowcount == 1
    async with running(tmp_path) as stand:
        stream = stand.stream("S")
        found = [message and message.payload for message in [await stream.load(seq) for seq in range(1, 6)]]
        assert found == [b"first", None, b"behind", b"behind", None]
        assert stream_state(stream)["lost"]["msgs"] == [2]


@pytest.mark.parametrize("compacted", [False, True])
async def test_consumers_survive_with_their_positions(tmp_path: Path, compacted: bool) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s.*"], retention=RetentionPolicy.WORK_QUEUE)
        await fill(stand, 10)
        pull = await js.pull_subscribe("s.*", durable="D")
        for message in await pull.fetch(4):
            await message.ack_sync()
        if compacted:
            for group in stand.host.groups():
                group.compact()
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        assert (await js.stream_info("S")).state.messages == 6
        assert (await js.consumer_info("S", "D")).num_pending == 6
        pull = await js.pull_subscribe("s.*", durable="D")
        assert [message.data for message in await pull.fetch(6, timeout=20)] == [b"%d" % n for n in range(4, 10)]
        assert (await js.consumer_info("S", "D")).num_pending == 0
