"""Messages that a disk cannot give for a moment are waited for, not passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from nats.errors import NoRespondersError
from nats.js.errors import ServiceUnavailableError

from nimsnats.storage.errors import Unwritable
from tests.jetstream.stand import running


async def test_what_cannot_be_read_now_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s"], allow_direct=True)
        for n in range(1, 6):
            await js.publish("s", b"%d" % n)
        stand.stream("S").store.close()  # nothing is cached
        read_block, failures = stand.database.read_block, 0

        async def fail(group: int, index: int) -> bytes:
            nonlocal failures
            failures += 1
            raise Unwritable("disk I/O error")

        monkeypatch.setattr(stand.database, "read_block", fail)
        with pytest.raises(ServiceUnavailableError):
            await js.get_msg("S", 1)
        with pytest.raises((ServiceUnavailableError, NoRespondersError)):
            await js.get_msg("S", 1, direct=True)
        work = await js.pull_subscribe("s", durable="D")
        with pytest.raises(TimeoutError):
            await work.fetch(5, timeout=0.2)
        assert failures > 2
        monkeypatch.setattr(stand.database, "read_block", read_block)
        assert [message.data for message in await work.fetch(5, timeout=10)] == [b"1", b"2", b"3", b"4", b"5"]


async def test_who_leads_again_reads_again(tmp_path: Path) -> None:
    """The lead was lost in the very turn in which a consumer began to wait for a message."""
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s"])
        await js.publish("s", b"x")
        work = await js.pull_subscribe("s", durable="D")
        await js.consumer_info("S", "D")
        stream = stand.stream("S")
        consumer = stream.consumers.get("D")
        assert consumer is not None
        stream.store.close()  # nothing is cached
        consumer.load(1)
        for leading in (False, True):
            stream.consumers.leadership(leading)
        assert [message.data for message in await work.fetch(1, timeout=10)] == [b"x"]
