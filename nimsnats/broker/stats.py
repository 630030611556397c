"""What a broker counts. Plain numbers; monitoring reads them, the hot path adds to them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class BrokerStats:
    """Totals since start. Bytes are payload bytes (headers included), as nats-server counts."""

    in_msgs: int = 0
    in_bytes: int = 0
    out_msgs: int = 0
    out_bytes: int = 0
    slow_consumers: int = 0
    stale_connections: int = 0
    stalled_clients: int = 0
    slowed: int = 0
    """How often a client is not read from now because it fills a queue; twice for one that fills two."""
    slowed_total: int = 0
    """How often that has begun."""
    slowed_seconds: float = 0.0
    """How long those took together that have ended."""
    total_connections: int = 0
