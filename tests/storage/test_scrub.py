"""The scrub finds damage that nobody has read yet."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from nimsnats.runtime import Runtime
from nimsnats.storage import open_database


async def test_damage_is_found_and_named(tmp_path: Path) -> None:
    runtime = Runtime.real()
    database = await open_database(tmp_path, runtime, scrub_rate=1e9, scrub_rest=1e6)
    group = database.create_group("S", 1, "", b"")
    for index in range(1, 31):
        database.append(group, index, 1, 0x81, 1, index, bytes(500))
    done = runtime.loop.create_future()
    database.sync(done.set_result)
    assert await done is None
    scrub = database.scrub
    assert scrub is not None
    await scrub.check_all()
    assert (scrub.passes, scrub.rows, scrub.damaged) == (1, 30, set())
    assert scrub.pass_size > 0 and scrub.finished_ns > 0
    connection = sqlite3.connect(tmp_path / "nimsnats.db")
    connection.execute("UPDATE entries SET data = zeroblob(499) || x'01' WHERE id & 31 = 7")
    connection.commit()
    connection.close()
    await scrub.check_all()
    assert scrub.damaged == {(group, 7)}
    await database.close()
