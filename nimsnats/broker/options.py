"""What can be set about the broker. Durations in seconds, sizes in bytes; defaults are nats-server's."""

from __future__ import annotations

from dataclasses import dataclass, field

from nimsnats.broker.tls import TlsOptions


@dataclass(slots=True, frozen=True)
class User:
    """A configured user; `password` may be a bcrypt hash (`$2a$…`), compared with the clear text a client sends."""

    name: str
    password: str
    account: str = "$G"


@dataclass(slots=True)
class BrokerOptions:
    """Settings of the client side of a node. A `port` of -1 means any free port."""

    host: str = "0.0.0.0"
    port: int = 4222
    server_name: str = ""
    tags: list[str] = field(default_factory=list[str])
    """What operators say about this server, for placement; lower case."""
    client_advertise: str = ""
    cluster_name: str = ""
    jetstream: bool = False

    token: str = ""
    users: list[User] = field(default_factory=list[User])
    no_auth_user: str = ""
    auth_timeout: float = 2.0
    system_account: str = "$SYS"
    tls: TlsOptions | None = None

    max_connections: int = 65536
    max_subscriptions: int = 0
    max_payload: int = 1024 * 1024
    max_pending: int = 64 * 1024 * 1024
    max_control_line: int = 4096
    max_closed_clients: int = 10000
    headers: bool = True

    ping_interval: float = 120.0
    ping_max: int = 2
    write_deadline: float = 10.0
    lame_duck_duration: float = 120.0
    lame_duck_grace_period: float = 10.0

    debug: bool = False
    trace: bool = False
