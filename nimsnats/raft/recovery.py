"""Brings a group back from storage: snapshot, blocks, then the log, and says what is lost.

Owns the replay. It yields to the loop while a long log is applied.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from nimsnats.raft.group import HostedGroup
from nimsnats.raft.machine import Entry, LogDamage, StoredBlock
from nimsnats.storage.interface import Storage, StoredGroup

_CHUNK_BYTES: Final = 4 * 1024 * 1024


async def recover(group: HostedGroup, stored: StoredGroup, storage: Storage, log: logging.Logger) -> None:
    """Make the group's machine what it was. Raises Corrupt, StorageFailed."""
    if stored.state is not None:
        blocks = [
            StoredBlock(index, note, load=partial(storage.read_block_now, stored.id, index))
            for index, note in stored.blocks
        ]
        group.machine.restore(stored.state, blocks)
    group.term_now = stored.term
    group.last = group.applied_index = group.snapshot_index = stored.snapshot_index
    group.total = group.applied_total = stored.snapshot_total
    group.applied_term = stored.snapshot_term
    while group.last < stored.last:
        entries = await storage.read_log(stored.id, group.last + 1, stored.last, _CHUNK_BYTES)
        if not entries:
            break
        for found in entries:
            if found.data is None:
                damage = LogDamage({found.index: found.messages}, "checksum failed")
                log.error("Group %s lost entry %d", stored.name, found.index)
                group.machine.damaged(damage)
                continue
            group.apply(Entry(found.index, found.term, found.kind, found.data, None, found.messages))
            group.last, group.total = found.index, found.total
        await asyncio.sleep(0)
