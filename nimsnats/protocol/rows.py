"""Requests in columns: publishes that follow each other and differ in the last token of their reply only.

Owns the regular expression that cuts such a run into its replies and its payloads. Everything happens in C: measured,
a message costs a tenth of what it costs to look at its control line in Python. A client that publishes to a stream
without waiting for each acknowledgement sends nothing else, as long as its payloads are of one size.
"""

from __future__ import annotations

import re
from typing import Final

_LONGEST_TOKEN: Final = 128


class Rows:
    """One kind of request: `PUB <subject> <family><token> <size>`, in its usual form.

    `reply` is one of the replies; its family is what comes before its last token. Raises ValueError when the control
    lines could become longer than `longest`.
    """

    __slots__ = ("_fixed", "_split", "head", "least", "size", "subject")

    def __init__(self, subject: bytes, reply: bytes, digits: bytes, longest: int) -> None:
        family = reply[: reply.rfind(b".") + 1]
        self.subject = subject
        self.head: Final = b"PUB " + subject + b" " + family
        self.size = int(digits)
        room = min(longest - len(self.head) - len(digits) - 2, _LONGEST_TOKEN)
        if room < len(reply) - len(family):
            raise ValueError("replies are too long")
        self._fixed = len(self.head) - len(family) + len(digits) + self.size + 5
        self.least: Final = 2 * (self._fixed + len(family))
        """Fewer bytes are not worth the look."""
        kind = rb"%b(%b[^ \t\r\n.]{1,%d}) %b\r\n(.{%d})\r\n" % (
            re.escape(self.head[: len(self.head) - len(family)]),
            re.escape(family),
            room,
            digits,
            self.size,
        )
        # Whatever is not of this kind is matched to the end, so that no later message can be taken before it.
        self._split = re.compile(rb"%b|.+" % kind, re.DOTALL).split

    def take(self, data: bytes, pos: int) -> tuple[list[bytes], list[bytes], int]:
        """Replies and payloads of the messages of this kind at `pos`, and the position behind the last."""
        cut = self._split(memoryview(data)[pos:])
        replies, payloads = cut[1::3], cut[2::3]
        if replies[-1] is None:
            del replies[-1], payloads[-1]
        return replies, payloads, pos + self._fixed * len(replies) + sum(map(len, replies))


class RowsWatch:
    """Notices when it is worth to look for rows.

    Making a `Rows` costs about as much as a hundred messages by the usual way. So the first is made after `_FIRST`
    requests of one kind in a row, later ones after `_LATER`; kinds that were met before are kept.
    """

    __slots__ = ("_digits", "_kept", "_patience", "_repeats", "_subject")

    _FIRST: Final = 32
    _LATER: Final = 512
    _AGAIN: Final = 8
    _KEPT: Final = 32

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, bytes, bytes], Rows | None] = {}
        self._patience = self._FIRST
        self._repeats = 0
        self._subject = self._digits = b""

    def seen(self, subject: bytes, digits: bytes) -> bool:
        """A request has gone the usual way; whether it is time to call `rows`."""
        if subject == self._subject and digits == self._digits:
            self._repeats += 1
            return self._repeats >= self._AGAIN
        self._subject, self._digits, self._repeats = subject, digits, 0
        return False

    def rows(self, reply: bytes, longest: int) -> Rows | None:
        """The rows of the kind seen last, if they are known or it is time to make them."""
        key = (self._subject, self._digits, reply[: reply.rfind(b".") + 1])
        rows = self._kept.get(key)
        if rows is None and self._repeats >= self._patience and key not in self._kept:
            if len(self._kept) >= self._KEPT:
                self._kept.clear()
            self._patience = self._LATER
            try:
                rows = Rows(self._subject, reply, self._digits, longest)
            except ValueError:
                rows = None
            self._kept[key] = rows
        return rows
