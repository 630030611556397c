"""Raft's frames on their way: lost, repeated, overtaken, as their transport is allowed to have it.

Owns the seam between Raft and the routes. The connection itself stays in order, as TCP is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from unittest.mock import patch

from nimsnats.jetstream.mail import RaftMail
from tests.simulation.world import World


class Weather:
    """Probabilities for each frame: `loss`, `repeat`, `late`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = Random(world.random.getrandbits(64))
        self.loss = self.repeat = self.late = 0.0

    def clear(self) -> None:
        """All frames arrive in order."""
        self.loss = self.repeat = self.late = 0.0

    @contextmanager
    def over(self) -> Iterator[None]:
        """While this is entered, frames of all nodes go through this weather."""
        send, later, dice = RaftMail.send, self.world.loop.call_later, self.random.random

        def sending(mail: RaftMail, peer: str, frame: bytes) -> None:
            if self.loss and dice() < self.loss:
                return
            if self.repeat and dice() < self.repeat:
                later(0.2 * dice() ** 3, send, mail, peer, frame)
            if self.late and dice() < self.late:
                later(0.3 * dice() ** 3, send, mail, peer, frame)
            else:
                send(mail, peer, frame)

        with patch.object(RaftMail, "send", sending):
            yield
