"""Small limits, so that a history of seconds meets what production meets after hours: snapshots, chunks, split votes.

Owns which constants of the product are changed for a history, and how.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Final
from unittest.mock import patch

from nimsnats.jetstream import compaction, publish
from nimsnats.raft import group, host, recovery, replica, transfer
from nimsnats.raft.core import Settings

_FAR: Final = 0.01
"""Seconds of latency from which on the smallest windows cannot keep up with what is published meanwhile."""


@contextmanager
def small_limits(random: Random, latency: float) -> Iterator[None]:
    """While this is entered, limits are what the dice say, on a network of that latency in seconds."""
    choices = (
        (group, "COMPACT_ENTRIES", [15, 60, 8192]),
        (replica, "_KEEP_ENTRIES", [3, 128]),
        (replica, "_CAUGHT_UP", [5, 256]),
        (transfer, "_CHUNK_BYTES", [150, 1 << 20]),
        (transfer, "_BLOCKS_ASKED", [2, 64]),
        (recovery, "_CHUNK_BYTES", [500, 4 << 20]),
        (compaction, "FULL_MESSAGES", [40, 4096]),
        (publish, "FULL_MESSAGES", [0, 24 * 1024]),  # 0: every publisher is held until its message has left the queue
    )
    far = latency >= _FAR
    with ExitStack() as stack:
        for module, name, values in choices:
            assert hasattr(module, name), f"{module.__name__} has no {name} any more"
            value = random.choice(values)
            if far and name in ("_KEEP_ENTRIES", "_BLOCKS_ASKED", "_CHUNK_BYTES"):
                value = max(values)
            stack.enter_context(patch.object(module, name, value))
        settings = Settings(
            election_ticks=random.choice([10, 10, 3]),
            max_message_bytes=random.choice([1 << 20, 300]),
            max_inflight_messages=max(random.choice([64, 2]), 16 if far else 0),
        )
        stack.enter_context(patch.object(host, "Settings", lambda: settings))
        yield
