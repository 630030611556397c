"""Who can join a cluster as it is configured, and what an operator is told about that.

Owns the rule: a cluster is closed by a secret that its nodes share, or by TLS between them with an authority of their
own.
"""

from __future__ import annotations

from nimsnats.config.settings import Settings
from nimsnats.registry.address import is_loopback


def is_closed(settings: Settings) -> bool:
    """Whether a stranger who reaches the cluster port is turned away. An authority that signs for the whole world turns
    nobody away, so `ca_file` has to name one."""
    tls = settings.cluster.tls
    return bool(settings.cluster.password) or (tls is not None and bool(tls.ca_file))


def exposure(settings: Settings, *, embeds_registry: bool) -> str:
    """The warning that a cluster is open to whoever reaches it; empty where it is closed, or on loopback alone.

    `embeds_registry`: the HTTP port has a registry, in which strangers can enter themselves unless it has a token.
    """
    cluster, monitor = settings.cluster, settings.monitor
    if not cluster.enabled or is_closed(settings) or is_loopback(cluster.host):
        return ""
    ports = f"port {cluster.port}" if cluster.port > 0 else "the cluster port"
    if embeds_registry and monitor.port and not settings.registry.token:
        ports += f" or {monitor.port}" if monitor.port > 0 else " or the HTTP port"
    return f"Whoever reaches {ports} can join this cluster: set NATS_CLUSTER_SECRET to the same value on all nodes"


def contradiction(settings: Settings) -> str:
    """Why this configuration is refused: it asks clients for what it lets servers in without. Empty where it is not."""
    cluster = settings.cluster
    if not _asks(settings) or not cluster.enabled or is_closed(settings) or is_loopback(cluster.host):
        return ""
    return (
        f"clients must authenticate, but whoever reaches the cluster port ({cluster.host}:{cluster.port}) would join "
        "without: set NATS_CLUSTER_SECRET (or cluster { authorization { user, password } }), or cluster { tls { … "
        'ca_file } }, or listen on loopback alone: cluster { listen: "127.0.0.1:6222" }'
    )


def _asks(settings: Settings) -> bool:
    """Whether there is an account for clients that nobody enters without credentials. Users of the system account alone
    ask nobody else for anything, nor does an account without users, which nobody enters (as in nats-server)."""
    broker = settings.broker
    default = next((user.account for user in broker.users if user.name == broker.no_auth_user), "")
    free = (broker.system_account, default)
    return bool(broker.token) or any(user.account not in free for user in broker.users)
