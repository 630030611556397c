"""`sync_interval` of the configuration reaches the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nimsnats.runtime import Runtime
from nimsnats.server import Server, embedded_settings
from nimsnats.storage.database import Database, open_database


@pytest.mark.parametrize(("always", "interval"), [(True, 0.1), (False, 0.25), (False, 120.0)])
async def test_the_storage_syncs_as_it_is_configured(tmp_path: Path, always: bool, interval: float) -> None:
    opened: list[dict[str, Any]] = []

    async def opens(path: Path, runtime: Runtime, node_name: str = "", **how: Any) -> Database:
        opened.append(how)
        return await open_database(path, runtime, node_name, **how)

    settings = embedded_settings("127.0.0.1", -1, tmp_path, jetstream=True, monitor_port=0, name="")
    settings.jetstream.sync_always, settings.jetstream.sync_interval = always, interval
    async with Server(settings, open_storage=opens):
        assert opened == [{"sync_always": always, "sync_interval": interval}]
