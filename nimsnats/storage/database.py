"""The database of a node: one writer with group commit, a few readers, own checkpoints.

Owns the connections, the queue of writes and the life of a commit. Checksums and row formats are `layout`,
the transaction itself is `batch`, the data directory is `directory`.

A commit's life: callers queue writes and `sync`; if no commit runs, one starts at once, otherwise the writes
gather and go together into the next. When a commit is done the next one is handed to the thread *before* the
callbacks of the first run, so the disk works while the loop applies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from nimsnats.runtime import Runtime
from nimsnats.storage import layout, opening
from nimsnats.storage.batch import INSERT_ENTRIES, REWRITE, Batch, Disk, RealDisk
from nimsnats.storage.checkpoint import WAL_BYTES, Checkpointer
from nimsnats.storage.directory import Identity
from nimsnats.storage.errors import Corrupt, StorageError, StorageFailed
from nimsnats.storage.failure import classify
from nimsnats.storage.interface import CompactionPoint, StoredEntry, StoredGroup, Synced
from nimsnats.storage.layout import INDEX_MASK, GroupRow, row_id
from nimsnats.storage.opening import Opened
from nimsnats.storage.reaper import Reaper
from nimsnats.storage.runway import Runway
from nimsnats.storage.scrub import RATE, REST, Scrub
from nimsnats.storage.witness import entry_item, name_items, removed_item, term_item, truncate_item

_BLOCK: Final = 0x80
_DELETE_FROM: Final = "DELETE FROM entries WHERE id >= ? AND id <= ?"
_DELETE_LOG: Final = f"DELETE FROM entries WHERE id > ? AND id <= ? AND kind < {_BLOCK}"
_SELECT: Final = "SELECT id, crc, term, kind, messages, total, data FROM entries"


@dataclass(slots=True)
class CommitReport:
    """One commit, for metrics. `size` is in bytes of entry data and snapshots."""

    seconds: float
    entries: int
    messages: int
    size: int


async def open_database(
    path: Path,
    runtime: Runtime,
    node_name: str = "",
    *,
    log: logging.Logger | None = None,
    sync_always: bool = True,
    sync_interval: float = 0.1,
    disk: Disk | None = None,
    wal_bytes: int = WAL_BYTES,
    scrub_rate: float = RATE,
    scrub_rest: float = REST,
) -> Database:
    """Open or create the data directory at `path`, repairing what is damaged (`Database.damage` tells).

    `scrub_rate` is in bytes a second (0: no scrub), `scrub_rest` in seconds between passes.
    `sync_always=False` acknowledges before fsync and syncs every `sync_interval` seconds; `wal_bytes` is the
    amount written between two checkpoints.
    Raises InUse, Foreign, Unwritable, NewerVersion, Corrupt; each text is one line for the operator.
    """
    log = log or logging.getLogger("nimsnats.storage")
    opened = await _not_halfway(opening.open_directory(path, runtime, node_name, log, sync_always), runtime)
    database = Database(opened, runtime, log, disk or RealDisk(), wal_bytes)
    if scrub_rate > 0:
        database.start_scrub(scrub_rate, scrub_rest)
    if not sync_always:
        log.warning("Storage sync is not 'always': a power failure loses what was acknowledged in the last moments")
        database.sync_every(sync_interval)
    return database


async def _not_halfway(work: Coroutine[Any, Any, Opened], runtime: Runtime) -> Opened:
    """Open it; cancelled, close it once it is open: a thread that is at work in the directory needs the lock."""
    task = runtime.spawn(work, "open storage")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await (await task).close()
        raise


class Database:
    """Implements `Storage` on SQLite. Create it with `open_database`; end it with `close`."""

    def __init__(
        self,
        opened: Opened,
        runtime: Runtime,
        log: logging.Logger,
        disk: Disk,
        wal_bytes: int,
    ) -> None:
        directory, contents, connections = opened.directory, opened.contents, opened.connections
        assert directory.identity is not None
        self.path: Path = directory.path
        self.identity = directory.identity
        self.observers: list[Callable[[CommitReport], None]] = []
        """Called after each commit, on the loop."""
        self.failure: StorageFailed | None = None
        """Why nothing is acknowledged any more, once that is so."""
        self.full = False
        """Whether the latest write was refused for want of space."""
        self.damage: list[str] = contents.damage
        """What was found damaged at start, one line each."""
        self.damaged_reads = 0
        """Reads since start that met a bad checksum or page."""
        self.scrub: Scrub | None = None
        self._opened = opened
        self._runtime = runtime
        self._log = log
        self._contents = contents
        self._witness = opened.witness
        self._witness_blind = False
        self._connections = connections
        self._connections.writer.disk = disk
        self._turn = 0
        self._groups: dict[int, GroupRow] = dict(contents.groups)
        self._committed: dict[int, GroupRow] = dict(contents.groups)
        self._newest_group = max(contents.groups, default=0)
        self._gathering = Batch()
        self._reaper = Reaper()
        for row in contents.groups.values():
            if not row[2]:
                self._reaper.add_group(row[0])
        self._checkpointer = Checkpointer(connections.checkpointing, connections.writing, wal_bytes)
        wal = directory.database.with_name(directory.database.name + "-wal")
        self._runway = Runway(wal, wal_bytes)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="storage")
        """What blocks runs here, for the loop's own threads may all be busy with something else."""
        self._checkpoint: asyncio.Task[None] | None = None
        self._finish_checkpoint = False
        self._syncing: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._committing = False
        self._reaping_rests = False
        """The disk refused; deleting waits for the next commit that goes well instead of trying all the
        time."""
        self._task = runtime.spawn(self._write_loop(), "storage writer")

    def start_scrub(self, rate: float, rest: float) -> None:
        """Check all stored entries in the background."""
        self.scrub = Scrub(self._read, self._runtime, self._log, rate, rest)
        self.scrub.start()

    async def idle(self) -> None:
        """Wait until nothing is being written, deleted or folded in."""
        while self._reaper or self._gathering.done or self._committing or self._checkpointer.running:
            done = asyncio.Event()
            self._runtime.call_later(0.001, done.set)
            await done.wait()

    async def close(self) -> None:
        """Commit what is queued and close. Afterwards reads raise and writes are refused."""
        if self._closing:
            return
        if self.scrub is not None:
            await self.scrub.stop()
        self._closing = True
        self._wake.set()
        await self._task
        for task in (self._checkpoint, self._syncing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)  # the last commit's callbacks are still on their way
        self.failure = self.failure or StorageFailed(f"{self.path} is closed")
        await self._opened.close()
        self._threads.shutdown(wait=False)  # nothing is left to run there

    async def _blocking(self, work: Callable[[], None]) -> None:
        await self._runtime.loop.run_in_executor(self._threads, work)

    # Queueing -------------------------------------------------------------------------------------

    def group_names(self) -> list[str]:
        """Names of the groups that exist now, in order of creation."""
        return [row[2] for row in self._groups.values() if row[2]]

    def create_group(self, name: str, term: int, vote: str, members: bytes) -> int:
        """Queue a new group and return its id. Ids are never used twice: old rows cannot come back as its
        own."""
        group = self._newest_group + 1
        assert group <= layout.MAX_GROUP and name and name not in self.group_names()
        self._newest_group = group
        self._put_group(layout.group_row(group, name, term, vote, 0, 0, 0, members))
        self._gathering.witness.append(term_item(group, term) + name_items(group, name))
        return group

    def remove_group(self, group: int) -> None:
        """Queue the removal of a group. Its row stays as a nameless tombstone until its entries are gone."""
        self._put_group(layout.group_row(group, "", 0, "", 0, 0, 0, b""))
        low, high = row_id(group, 0), row_id(group, INDEX_MASK)
        for suffix in ("", "_mirror"):
            self._gathering.add(f"DELETE FROM snapshots{suffix} WHERE id = ?", (group,))
            self._gathering.add(f"DELETE FROM blocks{suffix} WHERE id >= ? AND id <= ?", (low, high))
        self._gathering.witness.append(removed_item(group))
        self._reaper.add_group(group)

    def rename_group(self, group: int, name: str) -> None:
        """Queue another name for a group."""
        row = self._groups[group]
        self._put_group(layout.group_row(group, name, *row[3:]))

    def set_members(self, group: int, members: bytes) -> None:
        """Queue another membership as of a group's snapshot."""
        row = self._groups[group]
        self._put_group(layout.group_row(group, *row[2:8], members))

    def set_hard_state(self, group: int, term: int, vote: str) -> None:
        """Queue term and vote."""
        row = self._groups[group]
        self._put_group(layout.group_row(group, row[2], term, vote, *row[5:]))
        self._gathering.witness.append(term_item(group, term))

    def append(self, group: int, index: int, term: int, kind: int, messages: int, total: int, data: bytes) -> None:
        """Queue one log entry."""
        row = group << layout.INDEX_BITS | index
        crc = layout.entry_crc(row, term, kind, messages, total, data)
        batch = self._gathering
        batch.add(INSERT_ENTRIES, (row, crc, term, kind, messages, total, data))
        batch.witness.append(entry_item(group, index, messages))
        batch.entries += 1
        batch.messages += messages
        batch.size += len(data)

    def truncate(self, group: int, index: int) -> None:
        """Queue the removal of all entries from `index` on."""
        self._gathering.add(_DELETE_FROM, (row_id(group, index), row_id(group, INDEX_MASK)))
        self._gathering.witness.append(truncate_item(group, index))

    def compact(self, group: int, point: CompactionPoint) -> None:
        """Queue a snapshot and the end of the log before it. Dropped blocks are deleted later, in small
        bites."""
        row, batch = self._groups[group], self._gathering
        before = row_id(group, row[5])
        notes = [layout.block_row(row_id(group, index), note) for index, note in point.notes]
        gone = [layout.block_row(row_id(group, index), None) for index in point.dropped]
        self._put_group(
            layout.group_row(group, row[2], row[3], row[4], point.index, point.term, point.total, point.members)
        )
        state = layout.snapshot_row(group, point.index, point.state)
        for suffix in ("", "_mirror"):
            batch.add(layout.UPSERTS[f"snapshots{suffix}"], state)
            for block in (*notes, *gone):
                batch.add(layout.UPSERTS[f"blocks{suffix}"], block)
        batch.add(_DELETE_LOG, (before, row_id(group, point.index)))
        batch.size += 2 * len(point.state)
        for block in gone:
            self._reaper.add_block(block[0])

    def rewrite(self, group: int, index: int, data: bytes) -> None:
        """Queue other bytes for a block; ignored when the block is gone by then."""
        self._gathering.add(REWRITE, (row_id(group, index), data))
        self._gathering.size += len(data)

    def sync(self, done: Synced) -> None:
        """Have `done` called on the loop when everything queued so far is durable, or is refused."""
        self._gathering.done.append(done)
        self._wake.set()

    async def change_instance(self, instance: str) -> None:
        """Become another instance, in one transaction with everything that is queued: all of it is so afterwards, or
        none. Raises StorageFull, StorageFailed, Unwritable."""
        before = self.identity
        for table in layout.copies("meta"):
            self._gathering.add(layout.UPSERTS[table], layout.meta_row(instance, before.node))
        # The file and the database must never contradict each other; while there is no file they cannot.
        self._opened.directory.forget_identity()
        done: asyncio.Future[Exception | None] = self._runtime.loop.create_future()
        self.sync(done.set_result)
        error = await done
        self.identity = before if error is not None else Identity(instance, before.node)
        self._opened.directory.write_identity(self.identity)
        if error is not None:
            raise error

    def _put_group(self, row: GroupRow) -> None:
        self._groups[row[0]] = self._gathering.groups[row[0]] = row
        self._gathering.add(layout.UPSERTS["groups"], row)
        self._gathering.add(layout.UPSERTS["groups_mirror"], row)

    # Committing -----------------------------------------------------------------------------------

    async def _write_loop(self) -> None:
        try:
            await self._write_batches()
        except Exception as error:
            # Whatever this is, it is our bug: nobody may wait for ever, and nothing may be acknowledged.
            self._log.exception("Storage writer stopped")
            self._stop_for_good(StorageFailed(f"storage writer stopped: {error!r}"))
            await self._write_batches()

    async def _write_batches(self) -> None:
        while not self._closing or self._gathering.done:
            if self._finish_checkpoint:
                await self._end_checkpoint()
            elif self._gathering.done:
                batch, self._gathering = self._gathering, Batch()
                self._committing = True
                await self._commit(batch)
                self._committing = False
            elif self._reaper and not self._reaping_rests and self.failure is None and not self._closing:
                self._reaper.bite(self._gathering, self._newest_group)
            elif self._runway.short(self._checkpointer.written) and self.failure is None and not self._closing:
                await self._blocking(self._runway.extend)
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _commit(self, batch: Batch) -> None:
        if self.failure is not None:
            self._refuse(batch, self.failure)
            return
        started = self._runtime.boot_time_ns()  # uvloop's own clock counts milliseconds only
        self._connections.writer.staged = batch
        try:
            await self._connections.writing.commit()
        except (sqlite3.Error, StorageError) as error:
            self._fail(batch, classify(error, self.path))
            return
        except Exception as error:  # ours: whoever waits for this batch hears so, the loop says the rest
            self._fail(batch, StorageFailed(f"storage writer stopped: {error!r}"))
            raise
        seconds = (self._runtime.boot_time_ns() - started) / 1e9
        report = CommitReport(seconds, batch.entries, batch.messages, batch.size)
        self._runtime.call_soon(self._finish, batch, report)
        self._checkpointer.written += batch.size + batch.entries * layout.PAGE_SIZE
        if self._checkpointer.due():
            self._checkpointer.running = True
            self._checkpoint = self._runtime.spawn(self._begin_checkpoint(), "storage checkpoint")

    def _finish(self, batch: Batch, report: CommitReport) -> None:
        """A commit is on disk: tell the witness, then everybody who waits."""
        self._committed.update(batch.groups)
        self._reaping_rests = False
        if self.full:
            self.full = False
            self._log.info("Storage has space again, writes are accepted")
        if batch.witness:
            try:
                self._witness.names.update((row[0], row[2]) for row in batch.groups.values() if row[2])
                self._witness.write(batch.witness)
                self._witness_blind = False
            except OSError as error:
                if not self._witness_blind:
                    self._witness_blind = True
                    self._log.warning("Storage witness cannot be written (%s): losses could go unnoticed", error)
        for observe in self.observers:
            try:
                observe(report)
            except Exception as error:
                self._runtime.fence.caught(observe, error)
        for done in batch.done:
            try:
                done(None)
            except Exception as error:  # the others have waited for the same commit
                self._runtime.fence.caught(done, error)
        if self._reaper:
            self._wake.set()

    def _fail(self, batch: Batch, error: StorageError) -> None:
        """Refuse a batch that was rolled back, and with it all that gathered behind: a log must not have
        holes."""
        if isinstance(error, StorageFailed):
            self._stop_for_good(error)
        elif not self.full:
            self.full = True
            self._log.error("Storage is full, writes are refused until there is space: %s", error)
        self._reaping_rests = True
        behind, self._gathering = self._gathering, Batch()
        self._groups = dict(self._committed)
        self._refuse(batch, error)
        self._refuse(behind, error)

    def _refuse(self, batch: Batch, error: StorageError) -> None:
        for done in batch.done:
            self._runtime.call_soon(done, error)

    async def _begin_checkpoint(self) -> None:
        try:
            await self._checkpointer.bulk()
        except sqlite3.Error as error:
            self._checkpoint_failed(error)
        except Exception as error:  # the next one is due when as much was written again
            self._checkpointer.written = 0
            self._runtime.fence.caught(self._checkpointer.bulk, error)
        self._finish_checkpoint = True
        self._wake.set()

    async def _end_checkpoint(self) -> None:
        self._finish_checkpoint = False
        try:
            if self.failure is None:
                await self._checkpointer.finish()
        except sqlite3.Error as error:
            self._checkpoint_failed(error)
        finally:
            self._checkpointer.running = False

    def _checkpoint_failed(self, error: sqlite3.Error) -> None:
        """A full disk can wait: the WAL keeps everything. A failed sync cannot: the WAL would be given up for
        pages that may never have arrived."""
        self._checkpointer.written = 0
        kind = classify(error, self.path)
        if isinstance(kind, StorageFailed):
            self._stop_for_good(kind)
        else:
            self._log.warning("Checkpoint put off: %s", kind)

    def sync_every(self, interval: float) -> None:
        """Sync the WAL every `interval` seconds instead of at each commit."""
        self._syncing = self._runtime.spawn(self._sync_loop(interval), "storage sync")

    async def _sync_loop(self, interval: float) -> None:
        while True:
            await self._runtime.sleep(interval)
            try:
                await self._blocking(partial(os.fdatasync, self._opened.wal))
            except OSError as error:
                self._stop_for_good(StorageFailed(f"syncing {self.path} failed: {error.strerror}"))
                return
            except Exception as error:  # our bug: what is not synced any more must not be acknowledged either
                self._runtime.fence.caught(self._sync_loop, error)
                self._stop_for_good(StorageFailed(f"syncing {self.path} failed: {error!r}"))
                return

    def _stop_for_good(self, error: StorageFailed) -> None:
        if self.failure is None:
            self.failure = error
            self._log.error("Storage failed, nothing is acknowledged any more: %s", error)

    # Reading --------------------------------------------------------------------------------------

    async def load_group(self, name: str) -> StoredGroup | None:
        """The group's state, or None when there is no such group. Raises StorageFailed."""
        row = next((row for row in self._groups.values() if row[2] == name), None)
        if row is None:
            return None
        group = StoredGroup(row[0], name, row[3], row[4], *row[5:])
        low, high = row_id(group.id, 0), row_id(group.id, INDEX_MASK)
        notes: dict[int, bytes | None] = {}
        for table in ("blocks_mirror", "blocks"):
            for row in await self._read(f"SELECT * FROM {table} WHERE id >= ? AND id <= ?", (low, high)):
                if layout.holds(layout.block_crc, row):
                    notes[row[0]] = row[2]
        for block, note in sorted(notes.items()):
            if note is None:
                self._reaper.add_block(block)
            else:
                group.blocks.append((block & INDEX_MASK, note))
        if group.snapshot_index:
            group.state = await self._load_state(group)
        group.last = self._witness.last.get(group.id, 0)
        seen = self._contents.testimony.get(group.id)
        if seen is not None:
            group.witnessed = seen.entries
        return group

    async def _load_state(self, group: StoredGroup) -> bytes | None:
        for table in ("snapshots", "snapshots_mirror"):
            for row in await self._read(f"SELECT * FROM {table} WHERE id = ?", (group.id,)):
                if row[2] == group.snapshot_index and layout.holds(layout.snapshot_crc, row):
                    return row[3]
        group.damage.append("both copies of the snapshot are damaged")
        return None

    async def read_log(self, group: int, first: int, last: int, max_bytes: int) -> list[StoredEntry]:
        """Entries from `first` to `last` in order; missing ones are left out."""
        entries: list[StoredEntry] = []
        size, step = 0, 8
        while first <= last and (not entries or size < max_bytes):
            query = f"{_SELECT} WHERE id >= ? AND id <= ? ORDER BY id LIMIT ?"
            rows = await self._read(query, (row_id(group, first), row_id(group, last), step))
            for found in rows:
                index, known = found[0] & INDEX_MASK, found[1] == layout.LOST
                if layout.holds(layout.entry_crc, found):
                    _, _, term, kind, messages, total, data = found
                    entries.append(StoredEntry(index, term, kind, messages, total, data))
                    size += len(data)
                else:
                    self.damaged_reads += not known
                    entries.append(StoredEntry(index, 0, 0, found[4] if known else 0, 0, None, known))
            if len(rows) < step:
                break
            first = entries[-1].index + 1
            step = max(1, min(1024, (max_bytes - size) * len(entries) // max(size, 1)))
        return entries

    async def read_block(self, group: int, index: int) -> bytes:
        """The checked bytes of an entry. Raises Corrupt."""
        rows = await self._read(f"{_SELECT} WHERE id = ?", (row_id(group, index),))
        data = self._checked(rows)
        if data is None:
            self.damaged_reads += 1
            raise Corrupt(f"block {index} of group {group} is {'damaged' if rows else 'missing'}")
        return data

    def read_block_now(self, group: int, index: int) -> bytes | None:
        """The checked bytes of an entry, or None. Blocks the loop: for recovery only."""
        try:
            return self._checked(self._connections.direct.execute(f"{_SELECT} WHERE id = ?", (row_id(group, index),)))
        except sqlite3.DatabaseError:
            return None

    @staticmethod
    def _checked(rows: Iterable[Any]) -> bytes | None:
        for row in rows:
            if layout.holds(layout.entry_crc, row):
                return row[6]
        return None

    async def _read(self, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        """Run a query on the next reader. Raises StorageFailed when closed, Corrupt when pages are
        damaged."""
        if self._closing:
            raise StorageFailed(f"{self.path} is closed")
        self._turn = (self._turn + 1) % len(self._connections.reading)
        try:
            return list(await self._connections.reading[self._turn].execute_fetchall(sql, parameters))
        except sqlite3.DatabaseError as error:
            raise opening.translate(error, self.path) from error
