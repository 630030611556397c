"""The way between members: who they are, and what carries their frames.

Owns the names of members and the `Transport` protocol. What is in a frame is `wire.py`'s, when one is sent
`peers.py`'s. It opens no socket: whoever owns the host sets `Host.transport` and calls `Host.receive`.

A member is a node *with its disk*: its name is `node@instance`, and the instance id was created with the data
directory. A node that comes back with an empty disk is therefore another member, which no group counts.
"""

from __future__ import annotations

from typing import Protocol


def member_name(node: str, instance: str) -> str:
    """The member that a node is with this data directory; the node's bare name where there is no instance."""
    return f"{node}@{instance}" if instance else node


def node_of(member: str) -> str:
    """The name of the node that a member is, for people and for addresses."""
    return member.rpartition("@")[0] or member


class Transport(Protocol):
    """Carries frames to other nodes. Frames may be lost, late, repeated or overtaken."""

    def send(self, peer: str, frame: bytes) -> None:
        """Send a frame to a member (`node@instance`), or drop it. Neither waits nor raises."""
        ...
