"""The registry server's small database: which nodes were registered, so that a restart forgets nobody.

Owns: one SQLite file and the order of its writes. What is in it is soft state: nodes that it loses register again at
their next heartbeat. So damage is put aside and reported instead of keeping the registry down, and a full disk costs
persistence, not service; what it refused is written again until it has been taken. Heartbeats are not written; after a
restart every node has a full TTL to report again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Final

import aiosqlite

from nimsnats.files import PRIVATE, open_regular
from nimsnats.registry.errors import InvalidNodeError, RegistryStoreError
from nimsnats.registry.node import NodeInfo, check_name
from nimsnats.runtime import Runtime

_RETRY: Final = 5.0
"""Seconds until what the disk has refused is written again, unless something else is to be written before."""
_APPLICATION_ID: Final = 0x4E_52_45_47
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS nodes (
  service TEXT NOT NULL, name TEXT NOT NULL, address TEXT NOT NULL, port INTEGER NOT NULL,
  registered_at TEXT NOT NULL, instance TEXT NOT NULL, http TEXT NOT NULL,
  PRIMARY KEY (service, name)
) WITHOUT ROWID
"""

_OWNERS: Final = """
CREATE TABLE IF NOT EXISTS owners (
  service TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL, PRIMARY KEY (service, name)
) WITHOUT ROWID
"""
"""A table of its own: a program that knows of no owners reads the file all the same."""
_ALL: Final = "SELECT nodes.*, coalesce(owner, '') FROM nodes LEFT JOIN owners USING (service, name)"

_Row = tuple[str, str, str, int, str, str, str]
_Kept = tuple[NodeInfo, str]
"""A node, and the digest of its owner's key."""


class RegistryStore:
    """One database file, held exclusively while open. `put` and `delete` are written in the order they were called."""

    def __init__(self, path: Path, runtime: Runtime, log: logging.Logger) -> None:
        self._path = path
        self._runtime = runtime
        self._log = log
        self._database: aiosqlite.Connection | None = None
        self._pending: dict[tuple[str, str], _Kept | None] = {}
        """By service and name: what the node is now, None for gone."""
        self._retry: asyncio.TimerHandle | None = None
        self._flushed: asyncio.Future[None] | None = None
        """Of what is pending."""
        self._writing: asyncio.Future[None] | None = None
        """Of what is being written."""
        self._writer: asyncio.Task[None] | None = None
        self.error = ""
        """Why the latest write failed, "" while everything is on disk."""

    async def open(self) -> list[tuple[str, NodeInfo, str]]:
        """Open or create the file and return what it holds, as (service, node, digest of its owner's key).

        Raises `RegistryStoreError`.

        A damaged file is moved aside, kept for inspection, and an empty one takes its place.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RegistryStoreError(f"cannot create {self._path.parent}: {error.strerror}") from error
        try:
            handle = open_regular(self._path, os.O_RDWR | os.O_CREAT, follow=False)
            try:
                if os.fstat(handle).st_mode & 0o077:
                    os.fchmod(handle, PRIVATE)  # SQLite gives the files beside it the same mode
            finally:
                os.close(handle)
        except OSError as error:
            raise RegistryStoreError(f"cannot use the registry database {self._path}: {error.strerror}") from error
        try:
            return await self._open()
        except sqlite3.DatabaseError as error:
            await self.close()
            if isinstance(error, sqlite3.OperationalError):
                reason = "in use by another process" if "locked" in str(error) else str(error)
                raise RegistryStoreError(f"cannot use the registry database {self._path}: {reason}") from error
            aside = self._path.with_name(f"{self._path.name}.damaged-{self._runtime.time_ns()}")
            self._path.rename(aside)
            self._log.error(
                "Registry database %s is damaged (%s): moved to %s, nodes will register again",
                self._path, error, aside.name,
            )  # fmt: skip
            return await self._open()

    async def _open(self) -> list[tuple[str, NodeInfo, str]]:
        database = await aiosqlite.connect(self._path, isolation_level=None, timeout=0.5)
        self._database = database
        found = await _pragma(database, "application_id"), await _pragma(database, "user_version")
        tables = [row[0] async for row in await database.execute("SELECT name FROM sqlite_master")]
        if found[0] != _APPLICATION_ID and tables:
            await self.close()
            raise RegistryStoreError(f"{self._path} is not a registry database, and is left alone")
        if found[1] > _VERSION:
            await self.close()
            raise RegistryStoreError(f"{self._path} was written by a newer version (format {found[1]})")
        # Held for as long as it is open: two servers on one file would undo each other's nodes.
        await database.execute("PRAGMA locking_mode = EXCLUSIVE")
        await database.execute("BEGIN EXCLUSIVE")
        await database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        await database.execute(f"PRAGMA user_version = {_VERSION}")
        await database.execute(_SCHEMA)
        await database.execute(_OWNERS)
        await database.execute("COMMIT")
        return [entry async for row in await database.execute(_ALL) if (entry := self._read(row))]

    def _read(self, row: sqlite3.Row) -> tuple[str, NodeInfo, str] | None:
        service, name, address, port, registered_at, instance, http, owner = row
        body = {"name": name, "address": address, "port": port, "registered_at": registered_at}
        try:
            info = NodeInfo.from_json({**body, "instance": instance, "http": http})
            return check_name(service, "service"), info, str(owner)
        except InvalidNodeError as error:
            self._log.warning("Registry database %s: an entry is skipped: %s", self._path, error)
            return None

    def put(self, service: str, info: NodeInfo, owner: str = "") -> asyncio.Future[None]:
        """Queue a node; the future (shield it: a batch shares it) is done when it is on disk, or in `error`."""
        return self._enqueue(service, info.name, (info, owner))

    def delete(self, service: str, name: str) -> asyncio.Future[None]:
        """Queue the removal of a node; the future as for `put`."""
        return self._enqueue(service, name, None)

    async def written(self) -> None:
        """Wait until everything queued so far is on disk, or in `error`."""
        if self._flushed is not None:
            await asyncio.shield(self._flushed)
        elif self._writing is not None:
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Write what is pending and close the file. Idempotent."""
        if self._retry is not None:
            self._again()
        if self._writer is not None:
            await self._writer
        self._stop_waiting()
        if self._database is not None:
            await self._database.close()
            self._database = None

    def _enqueue(self, service: str, name: str, kept: _Kept | None) -> asyncio.Future[None]:
        self._pending[service, name] = kept
        if self._flushed is None:
            self._flushed = self._runtime.loop.create_future()
        self._begin()
        return self._flushed

    def _begin(self) -> None:
        self._stop_waiting()
        if self._writer is None:
            self._writer = self._runtime.spawn(self._write(), "registry-store")

    def _again(self) -> None:
        """Write what the disk has refused."""
        if self._database is not None:
            self._begin()

    def _stop_waiting(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    async def _write(self) -> None:
        """Write batches until nothing is pending: all that waits is one transaction, one fsync."""
        while self._pending:
            batch, self._pending = self._pending, {}
            self._writing = done = self._flushed
            self._flushed = None
            try:
                await self._commit(batch)
            except sqlite3.Error as error:
                if not self.error:
                    self._log.error(
                        "Registry database %s: %s; going on in memory, and no witness for two nodes", self._path, error
                    )
                self.error = str(error)
                self._pending = batch | self._pending
            except Exception as error:  # ours: tried again like what the disk refuses
                self._runtime.fence.caught(self._commit, error)
                self.error = str(error) or repr(error)
                self._pending = batch | self._pending
            else:
                if self.error:
                    self._log.info("Registry database %s takes everything again", self._path)
                self.error = ""
            if done is not None and not done.done():
                done.set_result(None)
            if self.error and self._flushed is None:
                self._retry = self._runtime.call_later(_RETRY, self._again)
                break
        self._writer = self._writing = None

    async def _commit(self, batch: dict[tuple[str, str], _Kept | None]) -> None:
        database = self._database
        assert database is not None, "write after close"
        await database.execute("BEGIN")
        try:
            for (service, name), kept in batch.items():
                if kept is None:
                    await database.execute("DELETE FROM nodes WHERE service = ? AND name = ?", (service, name))
                    await database.execute("DELETE FROM owners WHERE service = ? AND name = ?", (service, name))
                else:
                    await database.execute("REPLACE INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?)", _row(service, kept[0]))
                    await database.execute("REPLACE INTO owners VALUES (?, ?, ?)", (service, name, kept[1]))
            await database.execute("COMMIT")
        except Exception:  # whatever it was: what is left open would refuse every later attempt
            if database.in_transaction:
                await database.execute("ROLLBACK")
            raise


def _row(service: str, info: NodeInfo) -> _Row:
    registered: datetime = info.registered_at
    return service, info.name, info.address, info.port, registered.isoformat(), info.instance, info.http


async def _pragma(database: aiosqlite.Connection, name: str) -> int:
    cursor = await database.execute(f"PRAGMA {name}")
    row = await cursor.fetchone()
    return int(row[0]) if row else 0
