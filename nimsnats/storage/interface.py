"""What Raft needs from a disk. `Database` is the real one; a simulator may hand in another.

Owns the `Storage` protocol and the values it returns. Writes are queued without waiting; `sync` tells when
everything queued before it is durable. Order is kept, and a failed batch takes everything queued behind it
along, so a log never has a hole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Synced = Callable[[Exception | None], None]
"""Called on the loop: None when durable, else StorageFull or StorageFailed."""


@dataclass(slots=True)
class StoredEntry:
    """A log entry as read back. `data` is None when its checksum failed (then the other numbers are untrusted
    too)."""

    index: int
    term: int
    kind: int
    messages: int
    total: int
    data: bytes | None
    placeholder: bool = False
    """The loss was already known at start, and `messages` can be trusted."""


@dataclass(slots=True)
class StoredGroup:
    """What storage knows of a group when it is opened, without its log."""

    id: int
    name: str
    term: int
    vote: str
    snapshot_index: int
    snapshot_term: int
    snapshot_total: int
    """Messages of the log up to the snapshot."""
    members: bytes
    """Membership at the snapshot, as Raft encoded it."""
    state: bytes | None = None
    """The machine's state; None when there is no snapshot or it is damaged (`damage` tells)."""
    blocks: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    """(index, note) of every block, ascending."""
    last: int = 0
    """Highest index that is stored or was ever acknowledged; the next entry must be beyond it."""
    witnessed: dict[int, int] = field(default_factory=dict[int, int])
    """Messages of entries which the witness has seen acknowledged, by index: names what is lost."""
    damage: list[str] = field(default_factory=list[str])
    """What was found damaged when the directory was opened, in words; empty when all is well."""


class Storage(Protocol):
    """Durable logs, snapshots and blocks of many groups."""

    def group_names(self) -> list[str]:
        """Names of the groups that exist now, in order of creation."""
        ...

    def create_group(self, name: str, term: int, vote: str, members: bytes) -> int:
        """Queue a new group and return its id."""
        ...

    def remove_group(self, group: int) -> None:
        """Queue the removal of a group with all that it stored."""
        ...

    def rename_group(self, group: int, name: str) -> None:
        """Queue another name for a group. Together with `remove_group` in the same turn of the loop, one group
        takes another's place in one transaction."""
        ...

    def set_hard_state(self, group: int, term: int, vote: str) -> None:
        """Queue term and vote."""
        ...

    def append(self, group: int, index: int, term: int, kind: int, messages: int, total: int, data: bytes) -> None:
        """Queue one log entry; an entry of the same index is replaced."""
        ...

    def truncate(self, group: int, index: int) -> None:
        """Queue the removal of all entries from `index` on."""
        ...

    def compact(self, group: int, point: CompactionPoint) -> None:
        """Queue a snapshot and, in the same transaction, the end of the log before it."""
        ...

    def rewrite(self, group: int, index: int, data: bytes) -> None:
        """Queue other bytes for a block."""
        ...

    def sync(self, done: Synced) -> None:
        """Have `done` called when everything queued so far is durable, or is refused."""
        ...

    async def load_group(self, name: str) -> StoredGroup | None:
        """The group's state, or None when there is no such group. Raises Corrupt, StorageFailed."""
        ...

    async def read_log(self, group: int, first: int, last: int, max_bytes: int) -> list[StoredEntry]:
        """Entries from `first` to `last` in order, missing ones left out; at least one when any exists, then
        up to about `max_bytes` of data."""
        ...

    async def read_block(self, group: int, index: int) -> bytes:
        """The checked bytes of an entry. Raises Corrupt when they are damaged or missing."""
        ...

    def read_block_now(self, group: int, index: int) -> bytes | None:
        """The same without waiting, for `StateMachine.restore`; None when damaged or missing. Blocks the
        loop."""
        ...


@dataclass(slots=True)
class CompactionPoint:
    """Everything that changes when the log is cut at `index`: entries up to it go, except blocks."""

    index: int
    term: int
    total: int
    members: bytes
    state: bytes
    notes: Sequence[tuple[int, bytes]]
    """New or changed block notes."""
    dropped: Sequence[int]
    """Blocks that nobody needs any more."""
