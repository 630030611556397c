"""A node that is called differently after a restart, as every unnamed server is, keeps what it stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimsnats import Server
from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.jetstream.nodes import HubNode


@pytest.mark.parametrize("names", [("first", "second"), ("", ""), ("named", "")])
async def test_a_renamed_server_keeps_its_streams(tmp_path: Path, names: tuple[str, str]) -> None:
    for lived, name in enumerate(names):
        async with Server(store_dir=tmp_path, name=name) as server:
            client = await server.client()
            js = client.jetstream()
            if lived == 0:
                await js.add_stream(name="S", subjects=["s"])
            assert (await js.publish("s", b"x")).seq == lived + 1
            await client.close()


async def test_a_renamed_node_keeps_its_streams(tmp_path: Path) -> None:
    """It corrects the catalogue, which names it as before, while it opens the streams."""
    streams = [f"S{n}" for n in range(4)]
    for lived, name in enumerate(("oak", "ash")):
        node = HubNode(tmp_path, name, MemoryHub(Runtime.real()))
        node.settings.data_dir = node.settings.jetstream.store_dir = tmp_path / "data"
        async with node:
            client = await node.connect()
            for stream in streams:
                if lived == 0:
                    await client.jetstream().add_stream(name=stream, subjects=[stream])
                assert (await client.jetstream().publish(stream, b"x")).seq == lived + 1
            await client.close()
