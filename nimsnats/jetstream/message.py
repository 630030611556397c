"""The stored message: the unit that streams keep and consumers deliver."""

from __future__ import annotations

from typing import NamedTuple


class StoredMessage(NamedTuple):
    """One message of a stream. `time`: nanoseconds since the epoch; `headers`: the raw `NATS/1.0…` block, or empty."""

    seq: int
    time: int
    subject: bytes
    headers: bytes
    payload: bytes
