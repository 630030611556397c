"""A node that lets nobody in without a password: its own forest needs none."""

from __future__ import annotations

from pathlib import Path

import pytest
from nats.errors import Error as NatsError

from nimsnats.config import NodeFlags, load_node
from nimsnats.node import Node


@pytest.mark.parametrize("closed", [
    'authorization { users: [ { user: "app", password: "secret" } ] }',
    'authorization { user: "app", password: "secret" }\naccounts { $SYS { users: [ { user: "a", password: "b" } ] } }',
])  # fmt: skip
async def test_the_forest_grows_where_strangers_are_refused(closed: str, tmp_path: Path) -> None:
    file = tmp_path / "node.conf"
    file.write_text(f"{closed}\nlisten: 127.0.0.1:-1\ncluster {{ listen: 127.0.0.1:-1 }}\n")
    flags = NodeFlags(config=str(file), data_dir=str(tmp_path / "data"), monitor_port=0, advertise="127.0.0.1")
    async with Node(load_node(flags, {})) as node:
        assert node.forest is not None and node.forest.running
        with pytest.raises(NatsError, match="Authorization Violation"):
            await (await node.client(allow_reconnect=False, max_reconnect_attempts=0)).flush()
        client = await node.client(user="app", password="secret")
        streams = await client.jetstream().streams_info()
        await client.close()
    assert {"RIVER", "WIND", "HUMUS"} <= {stream.config.name for stream in streams}
