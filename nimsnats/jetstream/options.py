"""What can be set about JetStream on this node. Durations in seconds, sizes in bytes, -1 is unlimited."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class JetStreamOptions:
    """Settings of the JetStream side of a node; defaults are nats-server's where it has them."""

    store_dir: Path
    accounts: frozenset[str] | None = None
    """Names of the accounts that have JetStream; None: every one but the system account."""
    max_memory: int = -1
    max_file: int = -1
    strict: bool = True
    domain: str = ""
    unique_tag: str = ""
    """Prefix of server tags: no two replicas of a stream on servers with the same such tag."""
    strict_replicas: bool = False
    """Refuse more replicas than there are nodes, instead of taking them for a wish."""
    max_ack_pending: int = -1
    max_request_batch: int = -1
    duplicate_window: float = 0.0
    sync_always: bool = True
    """False is `sync: interval`: acknowledge before fsync. The opt-out from durability; says so in the log."""
    sync_interval: float = 0.1
    cache_bytes: int = 64 * 1024 * 1024
    """Decoded message blocks kept in memory, per node."""
