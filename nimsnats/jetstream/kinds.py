"""Kinds of entries in a stream's log and in the meta log. Numbers are written to disk: append only, never renumber."""

from typing import Final

from nimsnats.raft.machine import BLOCK

# Stream group: messages
MESSAGES: Final = BLOCK | 1
"""A batch of published messages (`batch.py` codec)."""
RESTORED: Final = BLOCK | 2
"""A batch out of an archive, which brings its sequences and times along."""

# Stream group: stream operations (msgpack maps)
STREAM_CONFIG: Final = 2
STREAM_DELETE_MESSAGE: Final = 3
STREAM_PURGE: Final = 4
STREAM_EXPIRE: Final = 5
"""Leader's decision that messages up to a time are expired; carries the leader's `now`."""
STREAM_LOST: Final = 6
"""Messages that were found damaged when they were read: a group of one gives them up."""
STREAM_RESTORED: Final = 7
"""All messages of an archive are there: what the stream was beside them."""
STREAM_TOLD: Final = 8
"""What became of the last batches (`outcomes.py`), where no other batch came to tell it."""

# Stream group: consumer operations (msgpack, owned by `jetstream.consumer`)
CONSUMER_CREATE: Final = 32
CONSUMER_DELETE: Final = 33
CONSUMER_DELIVERED: Final = 34
CONSUMER_ACKS: Final = 35
CONSUMER_RESET: Final = 36
CONSUMER_PAUSE: Final = 37
CONSUMER_RESTORED: Final = 38
"""A consumer of an archive, with its state."""
CONSUMER_FIRST: Final = 32
CONSUMER_LAST: Final = 63

# Meta group
META_STREAM_ADD: Final = 64
META_STREAM_UPDATE: Final = 65
META_STREAM_REMOVE: Final = 66
META_GIVE_UP: Final = 67
"""The cluster, which holds nothing, is given up in favour of another one."""


def name_of(kind: int) -> str:
    """What a kind is called in the lines that people read."""
    return _NAMES.get(kind, f"unknown kind {kind}")


_RANGES: Final = ("BLOCK", "CONSUMER_FIRST", "CONSUMER_LAST")
_NAMES: Final = {value: name for name, value in globals().items() if type(value) is int and name not in _RANGES}
