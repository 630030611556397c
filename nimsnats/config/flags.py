"""What can be said on the command line, as plain values: None (or empty) where nothing was said.

Owns: the two sets of flags, our own for a node and nats-server's for a server alone. Parsing them is the command
line's business, applying them is `load`'s.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class NodeFlags:
    """The flags of `nimsnats`."""

    config: str | None = None
    registry_url: str | None = None
    registry_service: str | None = None
    registry_token: str | None = None
    heartbeat_interval: str | None = None
    node_name: str | None = None
    data_dir: str | None = None
    client_port: int | None = None
    cluster_port: int | None = None
    monitor_port: int | None = None
    cluster_name: str | None = None
    advertise: str | None = None
    log_format: str | None = None
    demo: bool = False
    debug: bool = False
    trace: bool = False


@dataclass(slots=True)
class ServerFlags:
    """The flags of `nimsnats server`, which are nats-server's."""

    host: str | None = None
    port: int | None = None
    server_name: str | None = None
    pid_file: str | None = None
    http_port: int | None = None
    https_port: int | None = None
    config: str | None = None
    test: bool = False
    signal: str | None = None
    client_advertise: str | None = None
    ports_file_dir: str | None = None

    log_file: str | None = None
    logtime: bool | None = None
    logtime_utc: bool | None = None
    syslog: bool = False
    remote_syslog: str | None = None
    debug: bool | None = None
    trace: bool | None = None
    trace_verbose: bool = False
    debug_trace: bool = False
    debug_trace_verbose: bool = False
    log_size_limit: int | None = None
    max_traced_msg_len: int | None = None

    jetstream: bool | None = None
    store_dir: str | None = None

    user: str | None = None
    password: str | None = None
    token: str | None = None

    tls: bool = False
    tls_verify: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None

    routes: str | None = None
    cluster: str | None = None
    cluster_listen: str | None = None
    cluster_name: str | None = None
    cluster_advertise: str | None = None
    no_advertise: bool | None = None
    connect_retries: int | None = None

    profile: int | None = None
    help: bool = False
    version: bool = False
    help_tls: bool = False
