"""How long, without a gap, the registry can have believed that this node is alive.

Owns: the times of acknowledged heartbeats. The rule for two nodes and a witness needs to know for certain that this
node has *not* been expired in the meantime. A heartbeat reached the registry at some moment between its sending and
its acknowledgement; so if the next one is acknowledged within a TTL of the *sending* of this one, that left the
registry no moment to expire the node in between. Comparing two sent times is not enough: the later heartbeat may have
arrived after an expiry that the registry has undone since (a database restored after a crash). Pure values: the
caller passes boot-time nanoseconds (a clock that goes on while the machine sleeps).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Lease:
    """The unbroken run of acknowledged heartbeats up to now.

    `ttl_ns` is the registry's TTL as far as it is known (0: unknown, then nothing can be proven). `since_ns` and
    `renewed_ns` are the sent times of the first and the latest acknowledged request of the run, 0 if there is none.
    `lapses` counts the runs that broke: a gap of a TTL or more, or a registry that no longer knew this node.
    """

    ttl_ns: int = 0
    since_ns: int = 0
    renewed_ns: int = 0
    lapses: int = 0

    def renew(self, sent_ns: int, ttl_ns: int, answered_ns: int) -> None:
        """A heartbeat or registration sent at `sent_ns` was acknowledged, which was received at `answered_ns`.

        `ttl_ns` is the TTL it was granted. A registry that tells it after it did not may have let this node expire
        before: that begins another run.
        """
        if self.since_ns and (self.ttl_ns or ttl_ns) and self._gap(answered_ns):
            self.lapse()
        if not self.since_ns:
            self.since_ns = sent_ns
        self.renewed_ns = sent_ns
        self.ttl_ns = ttl_ns

    def lapse(self) -> None:
        """The registry said, or let us infer, that it may have listed its nodes without this one."""
        if self.since_ns:
            self.lapses += 1
        self.since_ns = self.renewed_ns = 0

    def unbroken(self, now_ns: int) -> bool:
        """Whether the registry cannot have expired this node at any moment from `since_ns` to `now_ns`."""
        return bool(self.since_ns) and not self._gap(now_ns)

    def _gap(self, now_ns: int) -> bool:
        return self.ttl_ns == 0 or now_ns - self.renewed_ns >= self.ttl_ns
