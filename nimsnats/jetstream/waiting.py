"""Messages that wait to be stored, in columns.

Owns how they are taken out in batches, put back, and dropped from the end. Who waits for what, and how many may wait,
is in `publish`.
"""

from __future__ import annotations

from typing import Final

MAX_BATCH: Final = 8192
"""Messages of one entry."""
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024


class Waiting:
    """Messages in columns; `size` is the sum of all their bytes."""

    __slots__ = ("headers", "payloads", "replies", "size", "subjects")

    def __init__(self) -> None:
        self.subjects: list[bytes] = []
        self.replies: list[bytes] = []
        self.headers: list[bytes] = []
        self.payloads: list[bytes] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self.payloads)

    def first(self, count: int) -> Waiting:
        """The first `count` of them, taken out."""
        taken = Waiting()
        taken.subjects, self.subjects = self.subjects[:count], self.subjects[count:]
        taken.replies, self.replies = self.replies[:count], self.replies[count:]
        taken.headers, self.headers = self.headers[:count], self.headers[count:]
        taken.payloads, self.payloads = self.payloads[:count], self.payloads[count:]
        taken.measure()
        self.size -= taken.size
        return taken

    def drop_last(self, count: int) -> list[bytes]:
        """Take the last `count` out, in as many steps; their replies."""
        refused = self.replies[-count:]
        for column in (self.subjects, self.replies, self.headers, self.payloads):
            self.size -= sum(map(len, column[-count:]))
            del column[-count:]
        return refused

    def measure(self) -> None:
        """Work out `size`."""
        self.size = sum(sum(map(len, column)) for column in (self.subjects, self.replies, self.headers, self.payloads))

    def extend(self, later: Waiting) -> None:
        """Put others behind these."""
        self.subjects += later.subjects
        self.replies += later.replies
        self.headers += later.headers
        self.payloads += later.payloads
        self.size += later.size

    def put_back(self, earlier: Waiting) -> None:
        """Put others in front of these again."""
        self.subjects[:0] = earlier.subjects
        self.replies[:0] = earlier.replies
        self.headers[:0] = earlier.headers
        self.payloads[:0] = earlier.payloads
        self.size += earlier.size

    def realign(self) -> None:
        """A message came half into the columns, because there was no memory: it is not one of these."""
        columns = self.subjects, self.replies, self.headers, self.payloads
        count = min(map(len, columns))
        for column in columns:
            del column[count:]
        self.measure()

    def cut(self) -> int:
        """How many of these one batch may take: at least one."""
        size = 0
        for at, (headers, payload) in enumerate(zip(self.headers, self.payloads, strict=True)):
            size += len(headers) + len(payload)
            if at >= MAX_BATCH or (at and size > MAX_BATCH_BYTES):
                return at
        return len(self)
