"""Brings a group back from storage: snapshot, blocks, then the log, and says what is lost.

Owns the replay. It yields to the loop while a long log is applied.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from nimsnats.raft.core import HardState
from nimsnats.raft.group import HostedGroup
from nimsnats.raft.machine import Entry, LogDamage, StoredBlock
from nimsnats.storage.interface import Storage, StoredEntry, StoredGroup

_CHUNK_BYTES: Final = 4 * 1024 * 1024


async def recover(group: HostedGroup, stored: StoredGroup, storage: Storage, log: logging.Logger) -> bool:
    """Make the group's machine what it was; returns whether entries were lost on the way.

    Raises Corrupt, StorageFailed.
    """
    if stored.snapshot_index:
        blocks = [
            StoredBlock(index, note, load=partial(storage.read_block_now, stored.id, index))
            for index, note in stored.blocks
        ]
        group.machine.restore(stored.state or b"", blocks)
    state = HardState(stored.term, stored.vote)
    group.position(state, stored.snapshot_index, stored.snapshot_term, stored.snapshot_total)
    replay = Replay(group, stored, log)
    if stored.damage:
        log.error("Group %s: %s", stored.name, "; ".join(stored.damage))
        group.damaged(LogDamage({}, "; ".join(stored.damage)))
        replay.lost_any = True
    while replay.next <= stored.last:
        entries = await storage.read_log(stored.id, replay.next, stored.last, _CHUNK_BYTES)
        if not entries:
            break
        for found in entries:
            replay.take(found)
        await asyncio.sleep(0)
    replay.finish()
    return replay.lost_any


class Replay:
    """Applies a log in order, gathering runs of lost entries."""

    def __init__(self, group: HostedGroup, stored: StoredGroup, log: logging.Logger) -> None:
        self.next = stored.snapshot_index + 1
        self.lost_any = False
        self._group = group
        self._stored = stored
        self._log = log
        self._lost: dict[int, int] = {}
        self._unknown: list[int] = []

    def take(self, found: StoredEntry) -> None:
        """The next entry that storage still has a row of."""
        while self.next < found.index:
            self._lose(None)
        if found.data is None:
            self._lose(found)
            return
        if self._lost:
            self._name_unknown(found.total - found.messages)
            self._tell()
        entry = Entry(found.index, found.term, found.kind, found.data, None, found.messages)
        self._group.replay(entry, found.total)
        self.next += 1

    def finish(self) -> None:
        """The log ends here."""
        while self.next <= self._stored.last:
            self._lose(None)
        if self._lost:
            self._tell()

    def _lose(self, found: StoredEntry | None) -> None:
        index = self.next
        self.next += 1
        messages = self._stored.witnessed.get(index)
        if messages is None and found is not None and found.placeholder:
            messages = found.messages
        if messages is None:
            self._unknown.append(index)
        self._lost[index] = messages or 0

    def _name_unknown(self, total_before: int) -> None:
        """The entry behind a run of lost ones tells how many messages the run held in all."""
        if self._unknown:
            missing = total_before - self._group.total - sum(self._lost.values())
            self._lost[self._unknown[0]] += max(0, missing)

    def _tell(self) -> None:
        lost, self._lost, self._unknown, self.lost_any = self._lost, {}, [], True
        low, high, messages = min(lost), max(lost), sum(lost.values())
        self._log.error("Group %s lost log entries %d to %d with %d messages", self._stored.name, low, high, messages)
        self._group.damaged(LogDamage(lost, "checksum failed or missing"))
