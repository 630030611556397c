"""Commits: grouping, failures of the disk, checkpoints, the opt-out from durability."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nimsnats.runtime import Runtime
from nimsnats.storage import CommitReport, Corrupt, Database, StorageFailed, StorageFull, Unwritable, open_database

BLOCK = 0x81


class BadDisk:
    """A disk that fails on demand."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.commits = 0

    def commit(self, write: Callable[[], None]) -> None:
        self.commits += 1
        if self.error is not None:
            raise self.error
        write()


def _sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("injected")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "INJECTED"
    return error


async def _synced(database: Database) -> None:
    done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    database.sync(done.set_result)
    error = await done
    if error is not None:
        raise error


async def test_what_waits_goes_into_one_commit(tmp_path: Path) -> None:
    database = await open_database(tmp_path, Runtime.real())
    reports: list[CommitReport] = []
    database.observers.append(reports.append)
    group = database.create_group("S", 1, "", b"")
    await _synced(database)
    order: list[int] = []
    for index in range(1, 101):
        database.append(group, index, 1, BLOCK, 3, 3 * index, b"x" * 100)
        database.sync(lambda error, index=index: order.append(index))
        if index == 10:
            await asyncio.sleep(0)  # the first ten are on their way; the rest gathers behind them
    await _synced(database)
    assert order == list(range(1, 101))
    assert [report.entries for report in reports] == [0, 10, 90]
    assert [report.messages for report in reports] == [0, 30, 270]
    assert reports[1].size == 1000 and reports[1].seconds > 0
    await database.close()


async def test_a_full_disk_refuses_and_then_goes_on(tmp_path: Path) -> None:
    disk = BadDisk()
    database = await open_database(tmp_path, Runtime.real(), disk=disk)
    group = database.create_group("S", 1, "", b"")
    await _synced(database)
    disk.error = _sqlite_error(sqlite3.SQLITE_FULL)
    database.append(group, 1, 1, BLOCK, 1, 1, b"refused")
    other = database.create_group("T", 1, "", b"")
    with pytest.raises(StorageFull, match="no space left"):
        await _synced(database)
    assert database.group_names() == ["S"] and other > group
    disk.error = None
    database.append(group, 1, 1, BLOCK, 1, 1, b"stored")
    await _synced(database)
    assert await database.read_block(group, 1) == b"stored"
    await database.close()


async def test_what_gathered_behind_a_refused_commit_is_refused_too(tmp_path: Path) -> None:
    disk = BadDisk()
    database = await open_database(tmp_path, Runtime.real(), disk=disk)
    group = database.create_group("S", 1, "", b"")
    await _synced(database)
    disk.error = _sqlite_error(sqlite3.SQLITE_FULL)
    results: list[Exception | None] = []
    database.append(group, 1, 1, BLOCK, 1, 1, b"a")
    database.sync(results.append)
    await asyncio.sleep(0)
    database.append(group, 2, 1, BLOCK, 1, 2, b"b")
    database.sync(results.append)
    with pytest.raises(StorageFull):
        await _synced(database)
    assert len(results) == 2
    assert all(isinstance(result, StorageFull) for result in results)
    disk.error = None
    await _synced(database)
    with pytest.raises(Corrupt):
        await database.read_block(group, 2)
    await database.close()


async def test_an_error_of_ours_in_a_commit_leaves_nobody_waiting(tmp_path: Path) -> None:
    disk = BadDisk()
    database = await open_database(tmp_path, Runtime.real(), disk=disk)
    disk.error = RuntimeError("a bug")
    group = database.create_group("S", 1, "", b"")
    database.append(group, 1, 1, BLOCK, 1, 1, b"x")
    for _ in range(2):
        with pytest.raises(StorageFailed):
            async with asyncio.timeout(10):
                await _synced(database)
    assert database.failure is not None
    await database.close()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_CORRUPT])
async def test_after_a_failed_write_nothing_is_acknowledged(tmp_path: Path, code: int) -> None:
    disk = BadDisk()
    database = await open_database(tmp_path, Runtime.real(), disk=disk)
    group = database.create_group("S", 1, "", b"")
    await _synced(database)
    disk.error = _sqlite_error(code)
    database.append(group, 1, 1, BLOCK, 1, 1, b"x")
    with pytest.raises(StorageFailed):
        await _synced(database)
    disk.error = None
    database.append(group, 1, 1, BLOCK, 1, 1, b"x")
    with pytest.raises(StorageFailed):
        await _synced(database)
    assert database.failure is not None
    await database.close()


async def test_checkpoints_keep_the_wal_bounded(tmp_path: Path) -> None:
    database = await open_database(tmp_path, Runtime.real(), wal_bytes=1 << 20)
    group = database.create_group("S", 1, "", b"")
    for index in range(1, 161):
        database.append(group, index, 1, BLOCK, 1, index, bytes(60_000))
        await _synced(database)
    await database.idle()
    assert (tmp_path / "nimsnats.db-wal").stat().st_size < 4 << 20
    assert (tmp_path / "nimsnats.db").stat().st_size > 6 << 20
    assert await database.read_block(group, 1) == bytes(60_000)
    await database.close()


async def test_the_opt_out_says_so_and_syncs_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = await open_database(tmp_path, Runtime.real(), sync_always=False, sync_interval=0.001)
    assert "a power failure loses what was acknowledged" in caplog.text
    group = database.create_group("S", 1, "", b"")
    database.append(group, 1, 1, BLOCK, 1, 1, b"x")
    await _synced(database)
    await database.idle()
    await database.close()
    database = await open_database(tmp_path, Runtime.real())
    assert await database.read_block(group, 1) == b"x"
    await database.close()


async def test_a_closed_database_refuses(tmp_path: Path) -> None:
    database = await open_database(tmp_path, Runtime.real())
    await database.close()
    await database.close()
    with pytest.raises(StorageFailed):
        await database.read_block(1, 1)


_FILL = """
import asyncio, resource, sys
from pathlib import Path
from nimsnats.raft.host import Host
from nimsnats.runtime import Runtime
from nimsnats.storage import open_database
from tests.raft.recorder import MESSAGES, Recorder
async def main():
    path, limit = Path(sys.argv[1]), int(sys.argv[2])
    runtime = Runtime.real()
    database = await open_database(path, runtime, "n1")
    host, machine = Host(database, runtime, "n1"), Recorder()
    group = await host.open_group("S", machine)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    sent = 0
    while not machine.refused:
        group.propose(MESSAGES, bytes(20_000), sent)
        sent += 1
        await machine.until(sent)
    accepted = len(machine.contexts)
    print(type(machine.refused[0][1]).__name__, flush=True)
    for _ in range(3):
        group.propose(MESSAGES, bytes(20_000), sent)
        sent += 1
    await machine.until(sent)
    assert len(machine.contexts) == accepted, "still full"
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        (path.parent / "ballast").unlink()
    group.propose(MESSAGES, b"again", sent)
    await machine.until(sent + 1)
    assert machine.contexts[-1] == sent and database.failure is None
    print(*sorted(machine.entries), flush=True)
    await host.stop()
    await database.close()
asyncio.run(main())
"""


async def _fill(path: Path, limit: int) -> None:
    """Run a node into the limit in another process, then check here that exactly what it accepted is
    stored."""
    command = [sys.executable, "-c", _FILL, str(path), str(limit)]
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kind, indexes = result.stdout.splitlines()
    assert kind == "StorageFull"
    database = await open_database(path, Runtime.real())
    assert database.damage == []
    for index in map(int, indexes.split()):
        assert await database.read_block(1, index) in {bytes(20_000), b"again"}
    await database.close()


async def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    await _fill(tmp_path / "db", 1 << 20)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 6 MB with 2 MB of ballast to throw off."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    mount = ctypes.CDLL(None, use_errno=True)
    path = tmp_path / "small"
    path.mkdir()
    if mount.mount(b"tmpfs", str(path).encode(), b"tmpfs", 0, b"size=6m") != 0:
        pytest.skip("this container cannot mount")
    (path / "ballast").write_bytes(bytes(2 << 20))
    yield path
    mount.umount2(str(path).encode(), 2)


async def test_a_really_full_disk(small_disk: Path) -> None:
    await _fill(small_disk / "db", 0)


async def test_a_start_without_room_is_refused_before_anything_is_touched(small_disk: Path) -> None:
    """What a crash leaves: everything is in the write-ahead log, which a start folds in."""
    first = small_disk.parent / "first"
    database = await open_database(first, Runtime.real())
    group = database.create_group("S", 1, "n1", b"")
    for index in range(1, 5):
        database.append(group, index, 1, 0x81, 1, index, b"x" * 200_000)
    await _synced(database)
    data = small_disk / "data"
    (small_disk / "ballast").unlink()
    shutil.copytree(first, data)
    await database.close()
    (data / "nimsnats.db-shm").unlink()
    free = os.statvfs(small_disk)
    with (small_disk / "other").open("wb") as other:
        os.posix_fallocate(other.fileno(), 0, (free.f_bfree - 64) * free.f_frsize)
    before = {path.name: path.read_bytes() for path in data.iterdir() if path.name != "lock"}
    with pytest.raises(Unwritable, match=r"no space left in .*: make room \(0.9 MiB at least\), then start again"):
        await open_database(data, Runtime.real())
    assert {path.name: path.read_bytes() for path in data.iterdir() if path.name != "lock"} == before
    (small_disk / "other").unlink()
    database = await open_database(data, Runtime.real())
    assert len(await database.read_log(group, 1, 9, 1 << 20)) == 4
    await database.close()


async def test_what_was_being_fetched_when_a_node_ended_is_no_damage(tmp_path: Path) -> None:
    """Its blocks come in any order and with gaps, and nobody was promised anything."""
    for orderly in (True, False):
        directory = tmp_path / str(orderly)
        database = await open_database(directory, Runtime.real())
        group = database.create_group("^S", 0, "", b"")
        for index in (1, 5000, 70):
            database.append(group, index, 1, BLOCK, 3, 3, b"x" * 100)
        await _synced(database)
        if orderly:
            await database.close()
            again = await open_database(directory, Runtime.real())
        else:
            copy = tmp_path / "crashed"
            shutil.copytree(directory, copy)
            (copy / "lock").unlink(missing_ok=True)
            again = await open_database(copy, Runtime.real())
            await database.close()
        assert again.damage == []
        assert again.group_names() == ["^S"]
        await again.close()
