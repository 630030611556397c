"""Opening: whose directory, which format, who uses it. Each refusal is one line."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from nimsnats.runtime import Runtime, StartError
from nimsnats.storage import Corrupt, Foreign, InUse, NewerVersion, Unwritable, layout, open_database, opening

_HOLD = """
import asyncio, sys
from pathlib import Path
from nimsnats.runtime import Runtime
from nimsnats.storage import open_database
async def main():
    database = await open_database(Path(sys.argv[1]), Runtime.real())
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await database.close()
asyncio.run(main())
"""


async def _open_and_close(path: Path) -> str:
    database = await open_database(path, Runtime.real(), "n1")
    await database.close()
    return database.identity.instance


async def test_an_instance_keeps_its_identity(tmp_path: Path) -> None:
    first = await _open_and_close(tmp_path / "a" / "b")
    assert await _open_and_close(tmp_path / "a" / "b") == first
    assert await _open_and_close(tmp_path / "c") != first


async def test_either_copy_of_the_identity_restores_the_other(tmp_path: Path) -> None:
    first = await _open_and_close(tmp_path)
    (tmp_path / "identity").unlink()
    assert await _open_and_close(tmp_path) == first
    assert json.loads((tmp_path / "identity").read_text())["instance"] == first
    connection = sqlite3.connect(tmp_path / "nimsnats.db")
    connection.execute("DELETE FROM meta")
    connection.execute("DELETE FROM meta_mirror")
    connection.commit()
    connection.close()
    assert await _open_and_close(tmp_path) == first


async def test_a_directory_stays_locked_while_an_opening_that_nobody_waits_for_is_at_work_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    prepare = opening.prepare

    def slow(*arguments: Any) -> opening.Contents:
        entered.set()
        go_on.wait(20)
        return prepare(*arguments)

    monkeypatch.setattr(opening, "prepare", slow)
    task = asyncio.create_task(open_database(tmp_path, Runtime.real(), "n1"))
    await asyncio.to_thread(entered.wait, 20)
    task.cancel()
    with pytest.raises(InUse):
        await open_database(tmp_path, Runtime.real(), "n1")
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _open_and_close(tmp_path)


async def test_a_directory_in_use_names_the_process(tmp_path: Path) -> None:
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLD, str(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        assert await holder.stdout.readline() == b"open\n"
        with pytest.raises(InUse, match=rf"in use by another process \(pid {holder.pid}\)"):
            await _open_and_close(tmp_path)
    finally:
        holder.kill()
        await holder.wait()
    await _open_and_close(tmp_path)  # a dead process holds nothing


async def test_foreign_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "jetstream").mkdir()
    with pytest.raises(Foreign, match="not ours: it holds jetstream"):
        await _open_and_close(tmp_path)
    assert os.listdir(tmp_path) == ["jetstream"]


async def test_foreign_databases_are_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "nimsnats.db")
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    before = (tmp_path / "nimsnats.db").read_bytes()
    with pytest.raises(Foreign, match="database of other software"):
        await _open_and_close(tmp_path)
    (tmp_path / "nimsnats.db").write_bytes(b"text\n" * 100)
    with pytest.raises(Foreign, match="not a database of ours"):
        await _open_and_close(tmp_path)
    (tmp_path / "nimsnats.db").write_bytes(before)
    with pytest.raises(Foreign):
        await _open_and_close(tmp_path)


async def test_databases_of_another_instance_are_refused(tmp_path: Path) -> None:
    await _open_and_close(tmp_path / "a")
    await _open_and_close(tmp_path / "b")
    (tmp_path / "a" / "nimsnats.db").replace(tmp_path / "b" / "nimsnats.db")
    with pytest.raises(Foreign, match="belongs to another instance"):
        await _open_and_close(tmp_path / "b")


async def test_newer_formats_are_refused(tmp_path: Path) -> None:
    instance = await _open_and_close(tmp_path)
    identity = tmp_path / "identity"
    kept = identity.read_text()
    identity.write_text(json.dumps({"format": layout.FORMAT + 1, "instance": "x", "node": "y", "new": True}))
    with pytest.raises(NewerVersion, match="has format 3; this version reads up to 2"):
        await _open_and_close(tmp_path)
    identity.write_text(kept)
    connection = sqlite3.connect(tmp_path / "nimsnats.db")
    newer = layout.FORMAT + 1
    row = (1, layout.meta_crc(1, newer, instance, "n1"), newer, instance, "n1")
    connection.execute(layout.UPSERTS["meta"], row)
    connection.commit()
    connection.close()
    with pytest.raises(NewerVersion):
        await _open_and_close(tmp_path)


async def test_an_older_format_becomes_ours_where_it_is_opened(tmp_path: Path) -> None:
    instance = await _open_and_close(tmp_path)
    identity = tmp_path / "identity"
    identity.write_text(json.dumps({"format": 1, "instance": instance, "node": "n1"}))
    connection = sqlite3.connect(tmp_path / "nimsnats.db")
    for table in layout.copies("meta"):
        connection.execute(layout.UPSERTS[table], (1, layout.meta_crc(1, 1, instance, "n1"), 1, instance, "n1"))
    connection.commit()
    connection.close()
    assert await _open_and_close(tmp_path) == instance
    assert json.loads(identity.read_text())["format"] == layout.FORMAT
    connection = sqlite3.connect(tmp_path / "nimsnats.db")
    for table in layout.copies("meta"):
        assert connection.execute(f"SELECT * FROM {table}").fetchall() == [layout.meta_row(instance, "n1")]
    connection.close()


async def test_unwritable_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match="cannot be used"):
        await _open_and_close(tmp_path / "file")
    with pytest.raises(StartError):
        await _open_and_close(Path("/proc/nowhere/here"))


async def test_a_missing_database_is_not_started_afresh(tmp_path: Path) -> None:
    runtime = Runtime.real()
    database = await open_database(tmp_path, runtime, "n1")
    group = database.create_group("S", 1, "n1", b"")
    database.append(group, 1, 1, 0x81, 1, 1, b"data")
    done = runtime.loop.create_future()
    database.sync(done.set_result)
    assert await done is None
    await database.close()
    (tmp_path / "nimsnats.db").unlink()
    with pytest.raises(Corrupt, match=r"is missing, but .* has held 1 groups"):
        await _open_and_close(tmp_path)


async def test_tables_are_where_salvage_expects_them(tmp_path: Path) -> None:
    await _open_and_close(tmp_path)
    connection = sqlite3.connect(tmp_path / "nimsnats.db")
    roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table'"))
    assert roots == layout.ROOTS
    assert connection.execute("PRAGMA page_size").fetchone() == (layout.PAGE_SIZE,)
    connection.close()
