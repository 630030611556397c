"""The registry server's database: restarts, damage, foreign files, two servers on one file, a disk that refuses."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from pathlib import Path

import aiohttp
import pytest

from nimsnats.cluster.witness import shortcoming
from nimsnats.registry import NodeInfo, RegistryStoreError, UnknownNodeError, store
from nimsnats.registry.directory import Directory
from nimsnats.registry.morpheus import MorpheusRegistry
from nimsnats.registry.server import RegistryServer
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.registry.clock import ManualRuntime

ONE = NodeInfo("one", "10.0.0.1", 6222, instance="i1", http="http://10.0.0.1:8222")
TWO = NodeInfo("two", "fd00::2", 6222)


async def opened(path: Path, runtime: Runtime | None = None) -> Directory:
    directory = Directory(runtime or Runtime.real(), ttl=30, path=path)
    await directory.open()
    return directory


async def test_a_restart_forgets_nobody_and_grants_a_full_ttl(tmp_path: Path) -> None:
    runtime = ManualRuntime()
    directory = await opened(tmp_path / "registry.db", runtime)
    first = await directory.register("forest", ONE)
    await directory.register("forest", TWO)
    await directory.register("other", ONE)
    await directory.deregister("forest", "two")
    index = directory.index("forest")
    await runtime.advance(29)
    await directory.close()

    runtime.now += 1000
    directory = await opened(tmp_path / "registry.db", runtime)
    assert directory.nodes("forest")[0] == [first]
    assert directory.services() == {"forest": 1, "other": 1}
    assert directory.index("forest") > index, "an index from before the restart must not look current"
    await runtime.advance(20)
    directory.heartbeat("forest", "one", "i1")
    await runtime.advance(20)
    assert directory.services() == {"forest": 1}, "without a heartbeat the other one expires"
    await directory.close()

    directory = await opened(tmp_path / "registry.db", runtime)
    assert directory.services() == {"forest": 1}, "what has expired does not come back"
    await directory.close()


async def test_whom_a_listing_omits_no_restart_brings_back(tmp_path: Path) -> None:
    def stored() -> list[tuple[str]]:
        path = f"file:{tmp_path / 'registry.db'}?immutable=1"
        return sqlite3.connect(path, uri=True).execute("SELECT name FROM nodes ORDER BY name").fetchall()

    runtime = ManualRuntime()
    directory = await opened(tmp_path / "registry.db", runtime)
    await directory.register("forest", ONE)
    await directory.register("forest", TWO)
    runtime.now += 20
    directory.heartbeat("forest", "one", "i1")
    runtime.now += 20
    nodes, _ = await directory.listing("forest")
    assert [node.name for node in nodes] == ["one"] and stored() == [("one",)]
    removing = asyncio.ensure_future(directory.deregister("forest", "one"))
    await asyncio.sleep(0)
    assert await directory.listing("forest") == ([], directory.index("forest")) and stored() == []
    assert await removing
    await directory.close()


async def test_kill_without_close_loses_nothing_acknowledged(tmp_path: Path) -> None:
    directory = await opened(tmp_path / "registry.db")
    await directory.register("forest", ONE)
    rows = sqlite3.connect(f"file:{tmp_path / 'registry.db'}?immutable=1", uri=True).execute("SELECT name FROM nodes")
    assert rows.fetchall() == [("one",)]
    await directory.close()


async def test_a_damaged_file_is_put_aside_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"this is no database" * 500)
    directory = await opened(path)
    assert "damaged" in caplog.text and str(path) in caplog.text
    (aside,) = [tmp_path / name for name in os.listdir(tmp_path) if name.startswith("registry.db.damaged-")]
    assert aside.read_bytes().startswith(b"this is no database")
    await directory.register("forest", ONE)
    with pytest.raises(UnknownNodeError):
        directory.heartbeat("forest", "two")
    await directory.close()


async def test_a_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE precious (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(RegistryStoreError, match="is not a registry database"):
        await opened(path)
    assert path.read_bytes() == before


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    await (await opened(path)).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(RegistryStoreError, match="newer version"):
        await opened(path)


async def test_two_servers_on_one_file(tmp_path: Path) -> None:
    directory = await opened(tmp_path / "registry.db")
    with pytest.raises(RegistryStoreError, match="in use by another process"):
        await opened(tmp_path / "registry.db")
    await directory.close()


async def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = RegistryServer(Runtime.real(), data_dir=tmp_path / "file" / "below")
    with pytest.raises(RegistryStoreError, match="cannot create"):
        await server.start("127.0.0.1:0")
    await server.stop()


async def test_a_disk_that_refuses_costs_persistence_not_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    directory = await opened(tmp_path / "registry.db")
    assert directory.persistent
    database = directory._store._database  # type: ignore[union-attr]
    await database.execute("PRAGMA query_only = ON")  # type: ignore[union-attr]
    for port in (1, 2, 3):
        await directory.register("forest", NodeInfo("one", "10.0.0.1", port))
    assert directory.nodes("forest")[0][0].port == 3
    assert not directory.persistent
    assert caplog.text.count("going on in memory") == 1
    await database.execute("PRAGMA query_only = OFF")  # type: ignore[union-attr]
    await directory.register("forest", TWO)
    assert directory.persistent
    await directory.close()
    later = await opened(tmp_path / "registry.db")
    assert [info.port for info in later.nodes("forest")[0]] == [3, TWO.port], "what was refused is written, too"
    await later.close()


@pytest.mark.errors_inside
async def test_an_error_of_ours_in_the_middle_of_a_write_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = await opened(tmp_path / "registry.db")

    def broken(service: str, info: NodeInfo) -> object:
        raise ValueError(info)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_row", broken)
        await directory.register("forest", ONE)
    assert not directory.persistent
    await directory.register("forest", TWO)
    assert directory.persistent
    await directory.close()
    later = await opened(tmp_path / "registry.db")
    assert [info.name for info in later.nodes("forest")[0]] == ["one", "two"]
    await later.close()


async def test_a_registry_whose_disk_refuses_is_no_witness(tmp_path: Path) -> None:
    runtime = ManualRuntime()
    server = RegistryServer(runtime, ttl=3, data_dir=tmp_path)
    await server.start("127.0.0.1:0")
    node = MorpheusRegistry(server.url, "forest", runtime=runtime)
    await node.register(ONE)
    lease, database = node.lease, server.directory._store._database  # type: ignore[union-attr]
    assert lease.unbroken(runtime.boot_time_ns())
    await database.execute("PRAGMA query_only = ON")  # type: ignore[union-attr]
    await server.directory.register("forest", TWO)
    await node.heartbeat()
    assert not lease.unbroken(runtime.boot_time_ns()) and shortcoming(ONE, lease, None)
    assert node._pause() == 1, "it is still expired after the TTL that it was told"
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/health") as answer:
        health = await answer.json()
    assert (answer.status, health["status"], health["persistent"]) == (200, "degraded", False) and health["error"]
    lapses = lease.lapses
    await database.execute("PRAGMA query_only = OFF")  # type: ignore[union-attr]
    for _ in range(6):
        await runtime.advance(1)
        await node.heartbeat()
    await until(lambda: server.directory.persistent)
    await node.heartbeat()
    assert lease.unbroken(runtime.boot_time_ns()) and lease.lapses > lapses
    await node.close()
    await server.stop()


async def test_a_bad_row_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "registry.db"
    directory = await opened(path)
    await directory.register("forest", ONE)
    await directory.close()
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO nodes VALUES ('forest', 'bad', '', -5, '', '', '')")
    database.close()
    directory = await opened(path)
    assert [node.name for node in directory.nodes("forest")[0]] == ["one"]
    assert "skipped" in caplog.text
    await directory.close()
