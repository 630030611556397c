"""What a consumer sees of its stream.

Owns the `MessageSource` interface only: `stream.py` implements it, `consumer/` programs against it, tests may stand in
for it. Filters are tuples of subjects (wildcards allowed); the empty tuple matches everything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from typing import Protocol

from nimsnats.jetstream.message import StoredMessage

Filters = tuple[bytes, ...]


class MessageSource(Protocol):
    """A stream as its consumers see it. Sequence arguments and results are stream sequences; 0 means none."""

    @property
    def name(self) -> str: ...

    @property
    def accepting(self) -> bool:
        """Whether messages may be delivered now: not while another member is about to take over, which could not write
        down what is delivered, and not in the middle of a change of the stream, which may take away what is still
        there."""
        ...

    @property
    def retention(self) -> str:
        """`limits`, `interest` or `workqueue`."""
        ...

    @property
    def first_seq(self) -> int: ...

    @property
    def last_seq(self) -> int: ...

    def next_match(self, filters: Filters, start: int) -> int:
        """Lowest live sequence >= `start` whose subject matches, or 0."""
        ...

    def last_match(self, filters: Filters) -> int:
        """Highest live sequence whose subject matches, or 0."""
        ...

    def sorting(self) -> Iterator[None]:
        """Have the subjects in order, in steps, so that what matches a wildcard is found at once."""
        ...

    def last_per_subject(self, filters: Filters) -> Iterator[list[int] | None]:
        """The newest live sequence of every matching subject, ascending, as the last of several steps: those before it
        are None."""
        ...

    def covers(self, filters: Filters) -> bool:
        """Whether the filters select all that the stream can hold."""
        ...

    def count(self, filters: Filters, start: int, looks: int) -> tuple[int, int]:
        """How many live messages match from `start` on, and up to which sequence (not with it) they are counted:
        beyond last_seq unless that takes more than about so many looks. Without filters every message counts."""
        ...

    def seek(self, filters: Filters, start: int, looks: int) -> tuple[int, int]:
        """The lowest live sequence from `start` on that matches, and where to go on when it is 0: beyond last_seq
        unless that takes more than about so many looks."""
        ...

    def upcoming(self, filters: Filters, start: int) -> tuple[Sequence[int], int] | None:
        """Live sequences from `start` on that match, ascending, and up to which (with it) these are all. None where
        `seek` is the shorter way."""
        ...

    def seq_at_time(self, time_ns: int) -> int:
        """Lowest live sequence stored at or after `time_ns`; last_seq + 1 when there is none."""
        ...

    def get(self, seq: int) -> StoredMessage | None:
        """The message if it is live and its block is in memory; None otherwise (see `live` and `load`)."""
        ...

    def subject(self, seq: int) -> bytes | None:
        """The subject of a live message; None when there is none."""
        ...

    def arrivals(self, first: int) -> list[tuple[int, bytes]]:
        """Which subjects were stored from sequence `first` on, the end of the stream: each once, with the lowest of its
        sequences, ascending."""
        ...

    def take_struck(self, more: bool) -> dict[int, bytes]:
        """Subjects of the messages that have been removed since the last call, as far as that asked for `more`."""
        ...

    def live(self, seq: int) -> bool:
        """Whether the stream still holds this sequence."""
        ...

    def load(self, seq: int) -> Awaitable[StoredMessage | None]:
        """The message, read from disk when needed (and read ahead); None when it is gone or damaged. Raises
        StorageError when it cannot be read now."""
        ...

    def propose(self, kind: int, data: bytes, context: object | None = None) -> None:
        """Propose a consumer entry in the stream's group; it comes back through `ConsumerSet.apply` or `.refuse`."""
        ...

    def settled(self, seqs: list[int]) -> None:
        """Called from `apply` only: consumers need these messages no more (interest and work-queue retention)."""
        ...
