"""What members of a group say to each other.

Owns the message value and its one-line text form (used by transcripts and logs). How messages travel is the
transport's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from nimsnats.raft.machine import Entry


class Kind(IntEnum):
    """Kinds of messages. Numbers go over the wire: append only."""

    PRE_VOTE = 1
    PRE_VOTE_REPLY = 2
    VOTE = 3
    VOTE_REPLY = 4
    APPEND = 5
    APPEND_REPLY = 6
    HEARTBEAT = 7
    HEARTBEAT_REPLY = 8
    INSTALL = 9
    """The leader offers its snapshot at (`index`, `log_term`); the host moves the bytes."""
    TIMEOUT_NOW = 10
    """Leadership transfer: campaign at once (dissertation 3.10)."""


@dataclass(slots=True)
class Message:
    """One message. Which fields mean something depends on the kind.

    `index`/`log_term`: votes: the candidate's last entry; APPEND: the entry before `entries`; replies: what
    is acknowledged; INSTALL: the snapshot's position. `hint`: in a rejection, where the logs may agree (with
    `log_term`); in an answer to a heartbeat, the loss that impairs the member. `force`: this vote is a transfer,
    leases do not protect the leader.
    """

    kind: Kind
    to: str
    sender: str
    term: int
    index: int = 0
    log_term: int = 0
    commit: int = 0
    entries: Sequence[Entry] = ()
    reject: bool = False
    hint: int = 0
    force: bool = False
    members: bytes = b""

    def __str__(self) -> str:
        text = f"{self.sender}->{self.to} {self.kind.name} term:{self.term}"
        if self.index or self.log_term:
            text += f" at:{self.index}/{self.log_term}"
        if self.commit:
            text += f" commit:{self.commit}"
        if self.entries:
            text += " [" + " ".join(describe(entry) for entry in self.entries) + "]"
        if self.reject:
            text += f" reject hint:{self.hint}"
        return text + (" force" if self.force else "")


def describe(entry: Entry) -> str:
    """An entry in transcripts: index/term and its data when it is short text, its kind otherwise."""
    shown = entry.data.decode("ascii", "replace") if 0 < len(entry.data) <= 12 and entry.kind > 1 else f"#{entry.kind}"
    return f"{entry.index}/{entry.term}:{shown}"
