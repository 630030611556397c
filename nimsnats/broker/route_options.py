"""What can be set about routes. Durations in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from nimsnats.broker.tls import TlsOptions


@dataclass(slots=True)
class RouteOptions:
    """Settings of the connections to other servers. A `port` of -1 means any free port.

    `advertise` is what peers are told to dial (host or host:port; empty: where they see us coming from).
    `routes` are URLs to dial for ever. With a `user` or `password`, peers must know both: servers of our kind prove it,
    and it is never sent to them; a nats-server says it when it dials us, and hears from us only what its own URL in
    `routes` has. `node` marks this server as one that runs this software (see `RouteInfo.node`).
    """

    name: str
    host: str = "0.0.0.0"
    port: int = 6222
    advertise: str = ""
    no_advertise: bool = False
    routes: list[str] = field(default_factory=list[str])
    connect_retries: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    auth_timeout: float = 2.0
    tls: TlsOptions | None = None
    node: dict[str, str] = field(default_factory=dict[str, str])

    dial_timeout: float = 1.0
    redial: float = 1.0
    """Between two attempts, from the beginning of one that nobody answers; while a peer refuses us it doubles up to
    `redial_refused`."""
    redial_refused: float = 8.0
    cut_after: float = 3.0
    """Seconds that a peer's machine may acknowledge nothing of what was sent to it; an election takes less. A process
    that is only slow does not matter: its kernel answers."""
    doubt: float = 5.0
    """For the answer of a peer that also seems to connect anew; without it, its route gives way."""
    ping_interval: float = 5.0
    """Or the clients' ping interval, if that is shorter. A peer that leaves `ping_max` PINGs unanswered is cut."""

    @property
    def auth_required(self) -> bool:
        """Whether peers must authenticate."""
        return bool(self.user or self.password)

    @property
    def secret(self) -> str:
        """What servers of our kind prove to each other; empty where everybody is let in."""
        return secret_of(self.user, self.password)


def secret_of(user: str, password: str) -> str:
    """The secret that is made of a user and a password; empty when there is neither."""
    return f"{user}:{password}" if user or password else ""
