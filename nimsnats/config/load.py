"""From flags, environment, file and defaults, in this order of precedence, to `Settings`.

Owns: the precedence, the names of the environment variables, and the checks across settings with nats-server's texts.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

from nimsnats.broker.options import User
from nimsnats.config.blocks import check_advertise, check_registry_url, check_route
from nimsnats.config.data_dir import default_data_dir, explicit_data_dir
from nimsnats.config.durations import format_duration, parse_duration
from nimsnats.config.exposure import contradiction
from nimsnats.config.fields import ConfigError, FieldError, check_port, split_address
from nimsnats.config.file import apply_file
from nimsnats.config.flags import NodeFlags, ServerFlags
from nimsnats.config.settings import (
    CLUSTER_USER,
    DEFAULT_DATA_DIR,
    Settings,
    WebhookSettings,
    for_node,
    for_server,
)
from nimsnats.config.tls import clients_tls, routes_tls
from nimsnats.version import __version__

_Setting = TypeVar("_Setting")

_WEBHOOK_SECRETS: Final = "FOREST_WEBHOOK_"
"""`FOREST_WEBHOOK_STRIPE=new,old`: the secrets of the webhook `stripe`, kept out of files."""
VARIABLES: Final = frozenset(
    {
        *(f"REGISTRY_{name}" for name in ("URL", "SERVICE_NAME", "TOKEN", "HEARTBEAT_INTERVAL")),
        *(f"NATS_{name}" for name in ("NODE_NAME", "DATA_DIR", "CLIENT_PORT", "CLUSTER_PORT", "MONITOR_PORT")),
        *(f"NATS_CLUSTER_{name}" for name in ("SECRET", "TLS_CERT", "TLS_KEY", "TLS_CA")),
    }
)
"""Environment variables that a node reads, beside `FOREST_WEBHOOK_<NAME>`."""
_UNSET: Final = Path()
"""Nobody has named a data directory."""


def load_node(
    flags: NodeFlags,
    environ: Mapping[str, str] = os.environ,
    *,
    default_dir: Path = DEFAULT_DATA_DIR,
    warn: Callable[[str], None] = lambda _line: None,
) -> Settings:
    """The settings of a whole node. `warn` receives warnings about the file, one line each.

    Raises ConfigError with every reason when something is wrong, StartError when the data directory is.
    """
    settings = for_node()
    settings.data_dir = _UNSET
    if flags.config:
        for line in apply_file(settings, flags.config, environ):
            warn(line)
    _apply_environment(settings, environ)
    _apply_node_flags(settings, flags)
    settings.node_name = settings.node_name or socket.gethostname()
    if settings.data_dir is _UNSET:
        settings.data_dir = default_data_dir(default_dir, environ, _home(environ), settings.notes)
    else:
        settings.data_dir = explicit_data_dir(settings.data_dir.absolute())
    _finish(settings)
    settings.reload = lambda: load_node(flags, environ, default_dir=default_dir, warn=warn)
    return settings


def load_server(
    flags: ServerFlags,
    environ: Mapping[str, str] = os.environ,
    *,
    warn: Callable[[str], None] = lambda _line: None,
) -> Settings:
    """The settings of a server alone, which knows no environment variables of its own, as nats-server does not.

    Raises ConfigError with every reason when something is wrong, StartError when the data directory is.
    """
    _refuse_unsupported(flags)
    settings = for_server()
    settings.data_dir = _UNSET
    if flags.config:
        for line in apply_file(settings, flags.config, environ):
            warn(line)
    _apply_server_flags(settings, flags)
    if settings.data_dir is _UNSET:
        settings.data_dir = Path(tempfile.gettempdir()) / "nats" / "jetstream"
        if settings.broker.jetstream:
            text = "Temporary storage directory used, data could be lost on system reboot"
            settings.notes.append((logging.WARNING, text))
    elif settings.broker.jetstream:
        settings.data_dir = explicit_data_dir(settings.data_dir.absolute())
    _finish(settings)
    settings.reload = lambda: load_server(flags, environ, warn=warn)
    return settings


def check_file(path: str, environ: Mapping[str, str] = os.environ) -> tuple[str, list[str]]:
    """The digest of a valid file, and what nats-server would warn of. Raises ConfigError with all errors."""
    settings = for_server()
    warnings = apply_file(settings, path, environ)
    return settings.config_digest, warnings


def _apply_environment(settings: Settings, environ: Mapping[str, str]) -> None:
    """Take over the variables of the specification; empty ones count as not set."""
    errors: list[str] = []

    def number(name: str, store: Callable[[int], None]) -> None:
        text = environ.get(name, "").strip()
        if not text:
            return
        try:
            store(check_port(int(text), name))
        except ValueError:
            errors.append(f'{name}="{text}" is not a port number')
        except FieldError as error:
            errors.append(str(error))

    number("NATS_CLIENT_PORT", lambda port: setattr(settings.broker, "port", port))
    number("NATS_CLUSTER_PORT", lambda port: setattr(settings.cluster, "port", port))
    number("NATS_MONITOR_PORT", lambda port: setattr(settings.monitor, "port", port))
    registry = settings.registry
    try:
        settings.node_name = _node_name(environ.get("NATS_NODE_NAME", "")) or settings.node_name
    except FieldError as error:
        errors.append(str(error))
    registry.service = environ.get("REGISTRY_SERVICE_NAME") or registry.service
    registry.token = environ.get("REGISTRY_TOKEN") or registry.token
    if environ.get("NATS_CLUSTER_SECRET"):
        settings.cluster.password = environ["NATS_CLUSTER_SECRET"]
        settings.cluster.user = settings.cluster.user or CLUSTER_USER
    try:
        settings.cluster.tls = routes_tls(settings.cluster.tls, environ)
    except FieldError as error:
        errors.append(str(error))
    if environ.get("NATS_DATA_DIR"):
        settings.data_dir = Path(environ["NATS_DATA_DIR"])
    try:
        registry.url = check_registry_url(environ.get("REGISTRY_URL", "")) or registry.url
    except FieldError as error:
        errors.append(f"REGISTRY_URL: {error}")
    interval = environ.get("REGISTRY_HEARTBEAT_INTERVAL", "")
    if interval:
        try:
            registry.heartbeat_interval = _interval(interval)
        except ValueError as error:
            errors.append(f"REGISTRY_HEARTBEAT_INTERVAL: {error}")
    for name, secrets in environ.items():
        if name.startswith(_WEBHOOK_SECRETS) and secrets.strip():
            given = [secret.strip() for secret in secrets.split(",") if secret.strip()]
            settings.forest.webhooks[name.removeprefix(_WEBHOOK_SECRETS).lower()] = WebhookSettings(given)
    if errors:
        raise ConfigError(*errors)


def _node_name(text: str) -> str:
    """A node's name as an environment file has it, where nobody expands variables: `${HOSTNAME}` is the host's name.

    Raises FieldError for any other variable: all nodes would get the same strange name.
    """
    name = text.strip()
    if name in ("${HOSTNAME}", "$HOSTNAME"):
        return socket.gethostname()
    if "$" in name:
        raise FieldError(f'NATS_NODE_NAME="{name}": variables are not expanded here; only ${{HOSTNAME}} is known')
    return name


def _apply_node_flags(settings: Settings, flags: NodeFlags) -> None:
    registry, cluster = settings.registry, settings.cluster
    try:
        if flags.registry_url is not None:
            registry.url = check_registry_url(flags.registry_url)
        if flags.heartbeat_interval is not None:
            registry.heartbeat_interval = _interval(flags.heartbeat_interval)
        settings.broker.port = _given(flags.client_port, settings.broker.port)
        cluster.port = _given(flags.cluster_port, cluster.port)
        settings.monitor.port = _given(flags.monitor_port, settings.monitor.port)
    except (FieldError, ValueError) as error:
        raise ConfigError(str(error)) from None
    registry.service = _given(flags.registry_service, registry.service)
    registry.token = _given(flags.registry_token, registry.token)
    settings.node_name = _given(flags.node_name, settings.node_name)
    cluster.name = _given(flags.cluster_name, cluster.name)
    cluster.advertise = _given(flags.advertise, cluster.advertise)
    if flags.data_dir:
        settings.data_dir = Path(flags.data_dir)
    if flags.log_format == "json" or flags.log_format == "text":
        settings.log.format = flags.log_format
    settings.forest.demo |= flags.demo
    settings.log.debug |= flags.debug
    settings.log.trace |= flags.trace


def _apply_server_flags(settings: Settings, flags: ServerFlags) -> None:
    broker, log, cluster = settings.broker, settings.log, settings.cluster
    broker.host = _given(flags.host, broker.host)
    broker.port = _given(flags.port, broker.port)
    broker.client_advertise = _given(flags.client_advertise, broker.client_advertise)
    broker.jetstream = _given(flags.jetstream, broker.jetstream)
    settings.node_name = _given(flags.server_name, settings.node_name)
    settings.monitor.port = _given(flags.http_port, settings.monitor.port)
    settings.pid_file = _given(flags.pid_file, settings.pid_file)
    settings.ports_file_dir = _given(flags.ports_file_dir, settings.ports_file_dir)
    if flags.store_dir:
        settings.data_dir = Path(flags.store_dir) / "jetstream"
    if flags.user:
        user = User(flags.user, flags.password or "")
        broker.users = [*(other for other in broker.users if other.name != user.name), user]
    broker.token = _given(flags.token, broker.token)

    both = flags.debug_trace or flags.debug_trace_verbose
    log.debug = _given(flags.debug, log.debug) or both
    log.trace_verbose |= flags.trace_verbose or flags.debug_trace_verbose
    log.trace = _given(flags.trace, log.trace) or both or log.trace_verbose
    log.file = _given(flags.log_file, log.file)
    log.logtime = _given(flags.logtime, log.logtime)
    log.utc = _given(flags.logtime_utc, log.utc)
    log.size_limit = _given(flags.log_size_limit, log.size_limit)

    try:
        broker.tls = clients_tls(broker.tls, flags)
    except FieldError as error:
        raise ConfigError(str(error)) from None
    cluster.name = _given(flags.cluster_name, cluster.name)
    cluster.advertise = _given(flags.cluster_advertise, cluster.advertise)
    cluster.no_advertise = _given(flags.no_advertise, cluster.no_advertise)
    cluster.connect_retries = _given(flags.connect_retries, cluster.connect_retries)
    try:
        for url in (flags.cluster, flags.cluster_listen):
            if url:
                _apply_cluster_url(settings, url)
        if flags.routes:
            cluster.routes = [check_route(url.strip()) for url in flags.routes.split(",")]
    except FieldError as error:
        raise ConfigError(str(error)) from None


def _apply_cluster_url(settings: Settings, url: str) -> None:
    """`--cluster nats://[user:pass@]host:port`: where this server listens for routes."""
    cluster = settings.cluster
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    address = parts.netloc.rpartition("@")[2]
    if ":" not in address:
        raise FieldError(f"address {address}: missing port in address")
    cluster.enabled = True
    cluster.host, cluster.port = split_address(address)
    if parts.username is not None:
        if parts.password is None:
            raise FieldError("expected cluster password to be set")
        cluster.user, cluster.password = unquote(parts.username), unquote(parts.password)


def _refuse_unsupported(flags: ServerFlags) -> None:
    """What nats-server can and we cannot yet is an error, not a silent skip."""
    wanted = {
        "--https_port": flags.https_port,
        "--syslog": flags.syslog,
        "--remote_syslog": flags.remote_syslog,
        "--profile": flags.profile,
        "--max_traced_msg_len": flags.max_traced_msg_len,
    }
    refused = [f"flag {name} is not supported by nimsnats {__version__} yet" for name, value in wanted.items() if value]
    if refused:
        raise ConfigError(*refused)


def _finish(settings: Settings) -> None:
    """Check what concerns several settings, and copy what several parts need."""
    broker, cluster = settings.broker, settings.cluster
    broker.port = broker.port or 4222  # nats-server takes 0 as "not given"
    if not cluster.port:
        if cluster.enabled and cluster.name:
            cluster.port = 6222
        else:
            cluster.enabled = False
    reasons = list(_contradictions(settings))
    if reasons:
        raise ConfigError(*reasons)
    broker.server_name = settings.node_name
    broker.cluster_name = cluster.name if cluster.enabled else ""
    broker.debug, broker.trace = settings.log.debug, settings.log.trace
    settings.monitor.host = settings.monitor.host or broker.host
    settings.jetstream = replace(settings.jetstream, store_dir=settings.data_dir)
    if any(not user.password.startswith("$2") for user in broker.users):
        settings.notes.append((logging.WARNING, "Plaintext passwords detected, use nkeys or bcrypt"))
    if not settings.jetstream.sync_always and broker.jetstream:
        interval = format_duration(settings.jetstream.sync_interval)
        text = f"Publishes are acknowledged before they are on disk (sync every {interval}): a crash can lose them"
        settings.notes.append((logging.WARNING, text))


def _contradictions(settings: Settings) -> list[str]:
    broker, cluster = settings.broker, settings.cluster
    reasons: list[str] = []
    ports = (("client port", broker.port), ("cluster port", cluster.port), ("monitor port", settings.monitor.port))
    for name, port in ports:
        try:
            check_port(port, name)
        except FieldError as error:
            reasons.append(str(error))
    try:
        check_advertise(cluster.advertise)
    except FieldError as error:
        reasons.append(str(error))
    if broker.max_payload > broker.max_pending:
        reasons.append(f"max_payload ({broker.max_payload}) cannot be higher than max_pending ({broker.max_pending})")
    if broker.lame_duck_grace_period >= broker.lame_duck_duration:
        grace, total = format_duration(broker.lame_duck_grace_period), format_duration(broker.lame_duck_duration)
        reasons.append(f"lame duck grace period ({grace}) should be strictly lower than lame duck duration ({total})")
    if " " in settings.node_name:
        reasons.append("server name cannot contain spaces")
    if " " in cluster.name:
        reasons.append("cluster name cannot contain spaces")
    names = {user.name for user in broker.users}
    if broker.no_auth_user and not names:
        reasons.append(f'no_auth_user: "{broker.no_auth_user}" present, but users/nkeys are not defined')
    elif broker.no_auth_user and broker.no_auth_user not in names:
        reasons.append(
            f'no_auth_user: "{broker.no_auth_user}" not present as user or nkey in authorization block or '
            "account configuration"
        )
    if broker.system_account not in ("$SYS", *(account.name for account in settings.accounts)):
        reasons.append("error resolving system account: account missing")
    if cluster.tls is None and any(url.startswith("tls://") for url in cluster.routes):
        reasons.append("a route's URL asks for TLS, but the cluster block has no tls")
    if reason := contradiction(settings):
        reasons.append(reason)
    if cluster.routes and not cluster.enabled:
        reasons.append("solicited routes require cluster capabilities, e.g. --cluster")
    return reasons


def _interval(text: str) -> float:
    """A heartbeat interval: a duration longer than zero. Raises ValueError."""
    seconds = parse_duration(text.strip())
    if seconds <= 0:
        raise ValueError(f"heartbeat interval must be longer than zero, got {text}")
    return seconds


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def _given(flag: _Setting | None, setting: _Setting) -> _Setting:
    """The flag where it was given."""
    return setting if flag is None else flag
