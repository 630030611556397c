"""How JetStream's own subscriptions are shared with other servers."""

from __future__ import annotations


def nodes_group(what: str) -> bytes:
    """The queue group of nodes that listen for the same: one takes each message, the publisher's own if it can.

    Every kind of subject, and every stream, has a group of its own: overlapping ones must not compete.
    """
    return b"$JS." + what.encode()


def publishers_group(stream: str) -> bytes:
    """The group in which nodes listen for what is published to a stream."""
    return nodes_group(f"S.{stream}")
