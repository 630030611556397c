"""Taking over a changed configuration while running (SIGHUP).

Owns the decision which settings of the broker may change under its clients. Either everything that changed is taken
over or nothing is: a setting that needs a restart refuses the whole reload, as in nats-server.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Final

from nimsnats.broker.auth import ConfiguredAuthenticator
from nimsnats.broker.server import Broker
from nimsnats.broker.tls import TlsContexts
from nimsnats.config.settings import Settings
from nimsnats.log import current_output
from nimsnats.runtime import StartError

_CHANGEABLE: Final = {
    "client_advertise",
    "lame_duck_duration",
    "lame_duck_grace_period",
    "max_connections",
    "max_control_line",
    "max_payload",
    "max_pending",
    "max_subscriptions",
    "ping_interval",
    "ping_max",
    "write_deadline",
    "debug",
    "trace",
}
_IDENTITY: Final = {"users", "token", "no_auth_user", "auth_timeout"}
_SECRET: Final = {"users", "token"}


def reload(broker: Broker, running: Settings, wanted: Settings) -> list[str]:
    """Apply what differs; one line for each change. Raises StartError, and changes nothing, for what cannot change."""
    old, new = broker.options, wanted.broker
    changed = [field.name for field in fields(old) if getattr(old, field.name) != getattr(new, field.name)]
    if "tls" in changed and old.tls is not None and new.tls is not None:
        changed.remove("tls")  # the files, and what is in them, may change; whether there is TLS may not
    for name in changed:
        if name not in _CHANGEABLE | _IDENTITY:
            title = name.title().replace("_", "")
            raise StartError(
                f"config reload not supported for {title}: old={getattr(old, name)}, new={getattr(new, name)}"
            )
    _renew_certificates(broker, wanted)
    for name in changed:
        setattr(old, name, getattr(new, name))
    lines = [f"{name} = {getattr(new, name)}" for name in changed if name not in _SECRET]
    lines += [f"authorization {name}" for name in changed if name in _SECRET]
    if _IDENTITY & set(changed):
        broker.authenticator = ConfiguredAuthenticator(old, broker.passwords)
    output = current_output()
    if wanted.log != running.log and output is not None:
        output.apply(wanted.log)
    running.log = wanted.log
    running.config_digest = wanted.config_digest
    return lines


def _renew_certificates(broker: Broker, wanted: Settings) -> None:
    """Read the certificates again: they are what changes most, and under the same names. Raises StartError, and changes
    nothing, when those of one port are no use."""
    routes, tls = broker.routes, wanted.cluster.tls
    if routes is not None and (routes.tls is None) != (tls is None):
        there = routes.tls is not None
        raise StartError(f"config reload not supported for Cluster TLS: old={there}, new={not there}")
    if routes is not None and tls is not None:
        TlsContexts.between_servers(tls)  # to be tried before the clients' are renewed
    if wanted.broker.tls is not None:
        broker.renew_tls(wanted.broker.tls)
    if routes is not None and tls is not None:
        routes.renew_tls(tls)
