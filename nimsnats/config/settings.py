"""The settings of one node: a value, made by `load`, read by everybody who starts something.

Owns: the one `Settings` object and the parts of it that no room below has options for. Durations in seconds, sizes in
bytes; a port of -1 means any free port.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.tls import TlsOptions
from nimsnats.jetstream.options import JetStreamOptions
from nimsnats.log import LogSettings

DEFAULT_DATA_DIR: Final = Path("/var/lib/nimsforest/jetstream")
DEFAULT_CLUSTER_NAME: Final = "nimsforest"
CLUSTER_USER: Final = "nimsnats"
"""Whom a shared secret alone (`NATS_CLUSTER_SECRET`) lets in: other servers dial `nats://nimsnats:<secret>@host`."""


@dataclass(slots=True)
class RegistrySettings:
    """The registry that this node registers in; an empty `url` means its own embedded one."""

    url: str = ""
    service: str = "nimsforest"
    token: str = field(default="", repr=False)
    heartbeat_interval: float = 10.0
    ttl: float = 30.0
    """How long the embedded registry keeps a node that sends no heartbeats."""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


@dataclass(slots=True)
class ClusterSettings:
    """Where routes listen and what peers are told to dial (`advertise`: host or host:port; empty: found by itself)."""

    enabled: bool = True
    name: str = DEFAULT_CLUSTER_NAME
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


@dataclass(slots=True)
class MonitorSettings:
    """The HTTP port: monitoring, health, metrics, webhooks, embedded registry. Port 0 switches it off."""

    host: str = ""
    """Empty: where the clients' listener is."""
    port: int = 8222
    base_path: str = ""


@dataclass(slots=True)
class WebhookSettings:
    """One `/webhooks/<name>`: the secrets that may sign it (several while one is rotated), or `unsigned`."""

    secrets: list[str] = field(default_factory=list[str], repr=False)
    unsigned: bool = False


@dataclass(slots=True)
class ForestSettings:
    """The application on board; `trees` and `nims` are `package.module:Class`, beside the built-in ones."""

    enabled: bool = True
    builtin: bool = True
    trees: list[str] = field(default_factory=list[str])
    nims: list[str] = field(default_factory=list[str])
    wind_subjects: list[str] = field(default_factory=list[str])
    """Subjects of leaves to take over durably; empty: the forest's own defaults."""
    webhooks: dict[str, WebhookSettings] = field(default_factory=dict[str, WebhookSettings])
    webhook_max_size: int = 256 * 1024
    webhook_tolerance: float = 300.0
    """The age that a signature may have, in seconds."""
    demo: bool = False


@dataclass(slots=True)
class AccountSettings:
    """An account of the `accounts` block; its users are in `BrokerOptions.users`."""

    name: str
    jetstream: bool = False


@dataclass(slots=True)
class Settings:
    """Everything that can be set about a node.

    `node_name` is also `broker.server_name`, `data_dir` is also `jetstream.store_dir`, `cluster.name` is also
    `broker.cluster_name`; JetStream runs when `broker.jetstream` is set. `notes` are log lines (level, text) about how
    these settings came about, to be written at start. `reload` reads the same sources again (SIGHUP); it raises what
    loading raises.
    """

    node_name: str = ""
    data_dir: Path = DEFAULT_DATA_DIR
    broker: BrokerOptions = field(default_factory=BrokerOptions)
    jetstream: JetStreamOptions = field(default_factory=lambda: JetStreamOptions(DEFAULT_DATA_DIR))
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    monitor: MonitorSettings = field(default_factory=MonitorSettings)
    forest: ForestSettings = field(default_factory=ForestSettings)
    accounts: list[AccountSettings] = field(default_factory=list[AccountSettings])
    log: LogSettings = field(default_factory=LogSettings)
    pid_file: str = ""
    ports_file_dir: str = ""
    config_file: str = ""
    config_digest: str = ""
    notes: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    reload: Callable[[], Settings] | None = field(default=None, repr=False, compare=False)


def for_node() -> Settings:
    """The defaults of a node: a cluster of one with JetStream, monitoring and the forest."""
    settings = Settings()
    settings.broker.jetstream = True
    return settings


def for_server() -> Settings:
    """The defaults of a server alone, which are nats-server's: no JetStream, no monitoring, no cluster."""
    return Settings(
        cluster=ClusterSettings(enabled=False, name=""),
        monitor=MonitorSettings(port=0),
        forest=ForestSettings(enabled=False),
    )
