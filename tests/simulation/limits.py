"""Small limits, so that a history of seconds meets what production meets after hours: snapshots, chunks, split votes.

Owns which constants of the product are changed for a history, and how.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from unittest.mock import patch

from nimsnats.jetstream import compaction
from nimsnats.raft import group, host, recovery, replica, transfer
from nimsnats.raft.core import Settings


@contextmanager
def small_limits(random: Random) -> Iterator[None]:
    """While this is entered, limits are what the dice say."""
    choices = (
        (group, "COMPACT_ENTRIES", [15, 60, 8192]),
        (replica, "_KEEP_ENTRIES", [3, 128]),
        (replica, "_CAUGHT_UP", [5, 256]),
        (transfer, "_CHUNK_BYTES", [150, 1 << 20]),
        (transfer, "_BLOCKS_ASKED", [2, 64]),
        (recovery, "_CHUNK_BYTES", [500, 4 << 20]),
        (compaction, "FULL_MESSAGES", [40, 4096]),
    )
    with ExitStack() as stack:
        for module, name, values in choices:
            assert hasattr(module, name), f"{module.__name__} has no {name} any more"
            stack.enter_context(patch.object(module, name, random.choice(values)))
        settings = Settings(
            election_ticks=random.choice([10, 10, 3]),
            max_message_bytes=random.choice([1 << 20, 300]),
            max_inflight_messages=random.choice([64, 2]),
        )
        stack.enter_context(patch.object(host, "Settings", lambda: settings))
        yield
