"""The ports file, by which scripts find what a server started on free ports."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from nimsnats import Server
from nimsnats.process import Process


@pytest.mark.parametrize(
    ("started", "name"), [("/x/nimsnats/__main__.py", "nimsnats"), ("/bin/nimsnats-server", "nimsnats-server")]
)
async def test_is_named_after_the_program(
    started: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    async with Server(jetstream=False) as server:
        server.settings.ports_file_dir = str(tmp_path)
        process = Process(server)
        process._write_ports(server.settings)
        path = tmp_path / f"{name}_{os.getpid()}.ports"
        assert json.loads(path.read_text()) == {"nats": [server.url]}
