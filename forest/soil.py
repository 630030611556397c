"""Soil: the current state, a key-value bucket with optimistic locking.

Owns: bucket SOIL (history 10, file), an ordinary NATS KV bucket that any client can read. The revision of a key is
the sequence of its last message; a write names the revision it has seen and loses with `RevisionConflict` if somebody
was faster. Entries that the decomposer writes carry two more headers: `Forest-Slot` (the place in the humus of the
change that made this state) and `Forest-Origin` (the identity of the compost that created the key); they survive in
delete markers and are what makes a replay recognisable. Reads go to the stream's leader, never to a replica that may
be behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from forest.errors import ForestError, KeyMissing, RevisionConflict
from forest.jet import Jet, Record

BUCKET = "SOIL"
STREAM = f"KV_{BUCKET}"
_SLOT = "Forest-Slot"
_ORIGIN = "Forest-Origin"
_KEY = re.compile(r"^[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*$")
_LONGEST_KEY = 256


def is_key(text: str) -> bool:
    """True if `text` can be a key of the soil (NATS KV's alphabet, at most 256 characters)."""
    return len(text) <= _LONGEST_KEY and _KEY.match(text) is not None


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's last state. `slot` is 0 and `origin` empty for what was not written by the decomposer."""

    key: str
    data: bytes
    revision: int
    deleted: bool
    slot: int = 0
    origin: str = ""


class Soil:
    """The bucket SOIL."""

    def __init__(self, jet: Jet, *, replicas: int = 1) -> None:
        self._jet = jet
        self._replicas = replicas

    async def open(self) -> None:
        """Make sure that the bucket exists, made like any KV client makes one (ADR-8)."""
        await self._jet.ensure_stream(
            StreamConfig(
                name=STREAM,
                description="Current state of the forest",
                subjects=[f"$KV.{BUCKET}.>"],
                retention=RetentionPolicy.LIMITS,
                storage=StorageType.FILE,
                discard=DiscardPolicy.NEW,
                max_consumers=-1,
                max_msgs=-1,
                max_bytes=-1,
                max_msgs_per_subject=10,
                allow_rollup_hdrs=True,
                allow_direct=True,
                deny_delete=True,
                duplicate_window=120,
                num_replicas=self._replicas,
            )
        )

    async def look(self, key: str) -> Entry | None:
        """The key's last entry, a delete marker included; None if it has never been written."""
        record = await self._jet.last(STREAM, _subject(key))
        return None if record is None else _entry(key, record)

    async def dig(self, key: str) -> Entry:
        """The key's current value and revision. Raises KeyMissing, Unavailable."""
        entry = await self.look(key)
        if entry is None or entry.deleted:
            raise KeyMissing(key)
        return entry

    async def bury(self, key: str, data: bytes, revision: int) -> int:
        """Write if the key still has `revision` (0: it must not exist); returns the new revision.

        Raises RevisionConflict, Unavailable, Refused.
        """
        if revision:
            return await self.write(key, data, revision)
        try:
            return await self.write(key, data, 0)
        except RevisionConflict:
            entry = await self.look(key)
            if entry is None or not entry.deleted:
                raise RevisionConflict(key, 0, entry and entry.revision) from None
            return await self.write(key, data, entry.revision)

    async def put(self, key: str, data: bytes) -> int:
        """Write whatever is there; returns the new revision."""
        return (await self._jet.publish(_subject(key), data)).seq

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Delete the key, if it still has `revision` when one is given. A key that does not exist stays so."""
        entry = await self.look(key)
        if revision is not None and (entry is None or entry.deleted):
            raise RevisionConflict(key, revision)
        if entry is not None and not entry.deleted:
            await self.write(key, b"", revision or entry.revision, deleted=True, slot=entry.slot, origin=entry.origin)

    async def write(
        self,
        key: str,
        data: bytes,
        revision: int,
        *,
        deleted: bool = False,
        slot: int = 0,
        origin: str = "",
    ) -> int:
        """One guarded write of a value or a delete marker, with its place in the humus. Raises RevisionConflict."""
        headers: dict[str, str] = {}
        if deleted:
            headers["KV-Operation"] = "DEL"
        if slot:
            headers[_SLOT] = str(slot)
        if origin:
            headers[_ORIGIN] = origin
        try:
            stored = await self._jet.publish(_subject(key), data, headers=headers, expected_revision=revision)
        except RevisionConflict:
            raise RevisionConflict(key, revision) from None
        return stored.seq

    async def adjust_replicas(self, replicas: int) -> bool:
        """Give the bucket `replicas` copies; False if nothing had to change."""
        if replicas < 1:
            raise ForestError(f"a bucket cannot have {replicas} replicas")
        self._replicas = replicas
        return await self._jet.set_replicas(STREAM, replicas)


def _subject(key: str) -> str:
    if not is_key(key):
        raise ValueError(f"{key!r} is not a key of the soil")
    return f"$KV.{BUCKET}.{key}"


def _entry(key: str, record: Record) -> Entry:
    gone = record.headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in record.headers
    slot = record.headers.get(_SLOT, "")
    return Entry(
        key,
        record.data,
        record.seq,
        gone,
        int(slot) if slot.isdigit() else 0,
        record.headers.get(_ORIGIN, ""),
    )
