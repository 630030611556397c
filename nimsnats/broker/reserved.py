"""Names that are not for everybody: subjects and queue groups of the server itself.

Owns the lists. Clients are refused by `client`, peers that are no members of the cluster by `route`; `plan` sees to it
that a wildcard subscription is no way round. A member is a server of our kind that has proven the cluster's secret.
"""

from __future__ import annotations

from typing import Final

NODES: Final = b"$NIMS."
"""What nodes say to each other (`jetstream.mail`): Raft's frames, questions, batches on their way to a leader."""
PUBLISH: Final = (b"$NRG.", b"$GR.", b"_GR_.", NODES)
"""Beginnings of subjects that clients may not publish to, nor have a message's trace sent to."""
REPLY: Final = (b"_R_.", b"$JS.ACK.", b"_GR_.", NODES)
"""Beginnings of replies that clients may not ask for."""
JETSTREAM: Final = b"$JS."
"""Beginning of the queue groups in which nodes share the work (`jetstream.routed`): a member of one is sent publishes
and API requests instead of the server, and could answer them."""
_SYSTEM: Final = b"_sys_"


def is_ours(subject: bytes, queue: bytes) -> bool:
    """Whether only this server and other members may subscribe to that."""
    return subject.startswith(NODES) or (bool(queue) and (queue.startswith(JETSTREAM) or queue == _SYSTEM))
