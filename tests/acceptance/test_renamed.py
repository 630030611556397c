"""A node that is called differently after a restart, as every unnamed server is, keeps what it stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimsnats import Server


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
