"""What the catalogue adds up to: every account's streams, the subjects that are taken, the replicas of each member.

Owns the sums and indexes over the catalogue's records, kept as streams come, change and go: looking at all of them for
one would make the thousandth stream dearer than the first. `meta.py` tells it what has changed; it changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from nimsnats.protocol.overlap import Overlap

if TYPE_CHECKING:
    from nimsnats.jetstream.meta import StreamRecord

_FILE: Final = "file"


class AccountCensus:
    """One account's streams."""

    def __init__(self) -> None:
        self.records: dict[str, StreamRecord] = {}
        """Streams by name."""
        self.reserved: Counter[str] = Counter()
        """Bytes that streams have reserved (`max_bytes`), by kind of storage."""
        self._taken = Overlap()
        self._takers: Counter[bytes] = Counter()
        """How many streams have a subject; several only where an older version let them."""
        self._subjects: dict[str, tuple[bytes, ...]] = {}

    def enter(self, name: str, config: dict[str, Any]) -> None:
        """A stream that was not counted has this configuration."""
        self.reserved[config.get("storage", _FILE)] += max(config.get("max_bytes", -1), 0)
        self._subjects[name] = subjects = tuple({subject.encode() for subject in config.get("subjects") or ()})
        for subject in subjects:
            self._takers[subject] += 1
            if self._takers[subject] == 1:
                self._taken.add(subject)

    def strike(self, name: str, config: dict[str, Any]) -> None:
        """A stream that was counted with this configuration is not any more."""
        self.reserved[config.get("storage", _FILE)] -= max(config.get("max_bytes", -1), 0)
        for subject in self._subjects.pop(name):
            self._takers[subject] -= 1
            if not self._takers[subject]:
                del self._takers[subject]
                self._taken.remove(subject)

    def taken(self, subjects: Iterable[bytes], but: str) -> bool:
        """Whether some literal subject matches one of these and a subject of another stream than `but`."""
        own = [subject for subject in self._subjects.get(but, ()) if self._takers[subject] == 1]
        for subject in own:
            self._taken.remove(subject)
        try:
            return any(map(self._taken.collides, subjects))
        finally:
            for subject in own:
                self._taken.add(subject)


class Census:
    """All accounts' streams, and who holds them."""

    def __init__(self) -> None:
        self.replicas: Counter[str] = Counter()
        """Replicas by member."""
        self._accounts: dict[str, AccountCensus] = {}
        self._counted: dict[tuple[str, str], tuple[dict[str, Any], tuple[str, ...]]] = {}
        """What each stream was counted with."""

    def account(self, name: str) -> AccountCensus:
        """The streams of an account, perhaps none."""
        return self._accounts.get(name) or AccountCensus()

    def count(self, record: StreamRecord) -> None:
        """A stream is new, or something else than it was."""
        self.forget(record)
        account = self._accounts.setdefault(record.account, AccountCensus())
        account.records[record.name] = record
        account.enter(record.name, record.config)
        self.replicas.update(record.members)
        self._counted[record.key] = (record.config, tuple(record.members))

    def forget(self, record: StreamRecord) -> None:
        """A stream is gone; nothing happens when it was not counted."""
        before = self._counted.pop(record.key, None)
        if before is None:
            return
        config, members = before
        account = self._accounts[record.account]
        account.strike(record.name, config)
        del account.records[record.name]
        if not account.records:
            del self._accounts[record.account]
        self.replicas.subtract(members)
