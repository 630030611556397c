"""What this software calls itself, and which NATS it claims to be on the wire.

Clients switch features on by the `version` of the INFO line and by `api_lvl`, so the two constants below promise no
more than the server keeps: NATS 2.11 without the JetStream additions of 2.12 and later.
"""

from typing import Final

__version__: Final = "0.2.0"

RELEASED_NS: Final = 1_767_225_600 * 10**9
"""2026-01-01, in nanoseconds since the epoch: no clock of a machine that runs this is right before it."""

NATS_VERSION: Final = "2.11.9"
"""Version announced in INFO, varz and system replies."""

API_LEVEL: Final = 1
"""JetStream API level (ADR-44): 1 is NATS 2.11 (per-message TTL, consumer pause, priority groups)."""
