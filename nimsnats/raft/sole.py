"""Makes a stopped node the only member of a group: an operator's last resort when the others never return.

Owns what changes in a group's record, so that the next start finds a group of one (`recovery.py`): every membership in
its log gives way to an entry that says nothing, the one beside the snapshot names this member alone, and the log goes
on in a new term. A note of a loss that the others were to make good goes, too: what is missing counts as lost from now
on, as in any group of one. Nothing is asked; that the others are gone for good is the caller's to know.

Two steps, because storage must get all groups in one transaction: `read_log` collects, `make_sole` queues.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from nimsnats.raft.core import MEMBERSHIP, NOOP
from nimsnats.raft.membership import Membership
from nimsnats.storage import Database, StoredGroup
from nimsnats.storage.interface import StoredEntry

_CHUNK_BYTES: Final = 4 * 1024 * 1024


@dataclass(slots=True)
class StoredLog:
    """What `make_sole` needs of a group. `total` counts the messages of the whole log; `entries` are those of the kinds
    that were asked for."""

    group: StoredGroup
    total: int
    changes: list[StoredEntry] = field(default_factory=list[StoredEntry])
    entries: list[StoredEntry] = field(default_factory=list[StoredEntry])

    @property
    def empty(self) -> bool:
        """Whether nothing of the group has ever come here."""
        return not self.group.snapshot_index and not self.group.last

    @property
    def membership(self) -> Membership:
        """The newest membership; empty where it cannot be read."""
        for data in (*(change.data for change in reversed(self.changes)), self.group.members):
            try:
                return Membership.decode(data or b"")
            except ValueError:
                continue
        return Membership()


async def read_log(database: Database, name: str, *, keep: bool = False) -> StoredLog:
    """Read a group's record; with `keep` the entries of its log, too. Raises Corrupt, StorageFailed."""
    stored = await database.load_group(name)
    assert stored is not None
    log = StoredLog(stored, stored.snapshot_total)
    at = stored.snapshot_index + 1
    while entries := await database.read_log(stored.id, at, stored.last, _CHUNK_BYTES):
        for entry in entries:
            log.total = entry.total if entry.data is not None else log.total + entry.messages
            if entry.data is not None and entry.kind == MEMBERSHIP:
                log.changes.append(entry)
            elif keep and entry.data is not None:
                log.entries.append(entry)
        at = entries[-1].index + 1
    return log


def make_sole(database: Database, log: StoredLog, member: str, more: list[tuple[int, bytes]]) -> None:
    """Queue what makes `member` the only one of a group, and `more` entries, (kind, data) each, without messages."""
    group, term = log.group, log.group.term + 1
    for change in log.changes:
        database.append(group.id, change.index, change.term, NOOP, 0, change.total, b"")
    last = max(group.last, group.snapshot_index)
    for index, (kind, data) in enumerate([(NOOP, b""), *more], last + 1):
        database.append(group.id, index, term, kind, 0, log.total, data)
    number = log.membership.number + 1
    database.set_members(group.id, Membership(frozenset({member}), number=number).encode())
    database.set_hard_state(group.id, term, member)
