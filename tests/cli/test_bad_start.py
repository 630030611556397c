"""What a node does on a machine that is not fit for it: one clear line, exit code 1, and data as it was."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import shlex
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nimsnats import Server, cli
from nimsnats.process import Process
from nimsnats.runtime import Runtime
from nimsnats.storage import layout, open_database


@pytest.fixture
async def directory(tmp_path: Path) -> Path:
    """A data directory with an entry in it, closed in order."""
    path = tmp_path / "data"
    runtime = Runtime.real()
    database = await open_database(path, runtime, "oak")
    group = database.create_group("S", 1, "oak", b"")
    database.append(group, 1, 1, 0x81, 1, 1, b"payload")
    done = runtime.loop.create_future()
    database.sync(done.set_result)
    assert await done is None
    await database.close()
    return path


def content(path: Path) -> dict[str, str]:
    """What is in the directory. Not the lock's text and SQLite's shared memory, which are of a moment, nor empty files
    such as the write-ahead log that a reader creates."""
    scratch = ("lock", "nimsnats.db-shm")
    found = {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.name not in scratch}
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if data}


def start(directory: Path, limit: str = "unlimited") -> subprocess.CompletedProcess[str]:
    """Run a node that must not come up; `limit` is of file sizes, in half kilobytes."""
    ports = "--client-port -1 --cluster-port -1 --monitor-port -1 --advertise 127.0.0.1"
    command = f"ulimit -f {limit}; exec {sys.executable} -m nimsnats {ports} --data-dir {shlex.quote(str(directory))}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=False)


def fatal(result: subprocess.CompletedProcess[str]) -> str:
    """The one fatal line."""
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "[FTL]" in line]
    assert "Traceback" not in result.stderr
    return line.partition("[FTL] ")[2]


async def test_a_disk_without_space_is_not_taken_for_damage(directory: Path) -> None:
    before = content(directory)
    assert fatal(start(directory, limit="16")) == f"no space left in {directory}: make room, then start again"
    assert content(directory) == before
    database = await open_database(directory, Runtime.real())
    assert database.damage == []
    await database.close()


async def test_the_data_of_a_newer_version_is_not_touched(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = (directory / "identity").read_text()
    instance = json.loads(identity)["instance"]
    connection = sqlite3.connect(directory / "nimsnats.db")
    crc = layout.meta_crc(1, layout.FORMAT + 1, instance, "oak")
    connection.execute(layout.UPSERTS["meta"], (1, crc, layout.FORMAT + 1, instance, "oak"))
    connection.commit()
    connection.close()
    newer = f'"format": {layout.FORMAT + 1}'
    for text, named in ((identity, directory / "nimsnats.db"), (re.sub(r'"format": \d+', newer, identity), directory)):
        (directory / "identity").write_text(text)
        before = whole(directory)
        told = f"{named} has format {layout.FORMAT + 1}; this version reads up to {layout.FORMAT}"
        assert told in fatal(start(directory))
        for words in (("verify",), ("recover", "--yes", "--data"), ("export", "--from-data")):
            assert await asyncio.to_thread(cli.main, [*words, str(directory)]) == 1
            assert told in capsys.readouterr().err
        assert whole(directory) == before


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("NATS_CLIENT_PORT", "abc", "is not a port number"),
        ("REGISTRY_URL", "registry:8500", "it must look like http://host:8500"),
        ("REGISTRY_HEARTBEAT_INTERVAL", "10s # often", "unknown unit"),
        ("NATS_NODE_NAME", "a b", "cannot contain spaces"),
        ("NATS_CLUSTER_TLS_CERT", "/nowhere.pem", "NATS_CLUSTER_TLS_CERT"),
    ],
)
async def test_a_broken_setting_is_named_and_no_data_is_touched(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    told: str,
) -> None:
    before = whole(directory)
    monkeypatch.setenv(name, value)
    assert await asyncio.to_thread(cli.main, ["--data-dir", str(directory)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nimsnats: ") and told in line
    assert whole(directory) == before


def whole(path: Path) -> dict[str, bytes]:
    """All of a directory but the text of the lock, which names the last process."""
    return {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.name != "lock"}


def clock(now: datetime) -> Runtime:
    real = Runtime.real()
    return Runtime(lambda: round(now.timestamp()) * 10**9, real.random, real.loop)


async def test_a_clock_that_cannot_be_right_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = Server(store_dir=tmp_path / "data")
    assert await Process(server, runtime=clock(datetime(1970, 1, 2, tzinfo=UTC))).run() == 1
    assert caplog.messages == [
        "the clock says 1970-01-02, which cannot be: set it, then start again; no data was touched"
    ]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("year", "expected"), [
    (2026, "s behind what was last written to"),
    (2127, "days ago; if the clock is wrong, messages expire too early"),
])  # fmt: skip
async def test_a_clock_that_has_jumped_is_reported(
    year: int, expected: str, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "nimsnats")
    server = Server(store_dir=directory)
    process = Process(server, runtime=clock(datetime(year, 1, 2, tzinfo=UTC)))
    server.progress = lambda _text: None
    start = server.start

    async def started() -> None:
        await start()
        raise ProcessLookupError  # enough seen

    server.start = started  # type: ignore[method-assign]
    with pytest.raises(ProcessLookupError):
        await process.run()
    await server.stop()
    assert expected in caplog.text
