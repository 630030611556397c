"""A configuration file's top level: every key that nats-server knows, and what it does here.

Owns: the table of top-level keys and `apply_file`. Reads files through `read_text` only.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from nimsnats import files
from nimsnats.broker.options import BrokerOptions
from nimsnats.config.auth import accounts, authorization
from nimsnats.config.blocks import cluster, forest, jetstream, no_spaces, registry, store_dir
from nimsnats.config.durations import format_duration
from nimsnats.config.fields import (
    Block,
    ConfigError,
    FieldError,
    Reader,
    Report,
    as_int,
    as_listen,
    as_seconds,
    as_string,
    as_strings,
    duration,
    integer,
    into,
    known,
    listen,
    not_supported,
    port,
    read_block,
    string,
    switch,
    switched_off,
)
from nimsnats.config.settings import Settings
from nimsnats.config.tls import tls_block
from nimsnats.protocol import conf
from nimsnats.protocol.conf import Item

_INT32_MAX: Final = 2**31 - 1
_MIN_LAME_DUCK: Final = 30.0
_MOST_BYTES: Final = 8 << 20
"""Of a configuration file; thousands of users fit into one."""


def apply_file(settings: Settings, path: str, environ: Mapping[str, str]) -> list[str]:
    """Take over what the file at `path` says; returns warnings. Raises ConfigError with all errors."""
    try:
        tree = conf.parse(read_text(path), path, read=read_text, environ=environ)
    except OSError as error:
        raise ConfigError(conf.unreadable(path, error)) from None
    except conf.ConfError as error:
        raise ConfigError(str(error)) from None
    settings.config_file = path
    settings.config_digest = conf.digest(tree)
    if not tree:
        return [f"{path}: config has no values or is empty"]
    report = Report()
    read_block(tree, _top_level(settings), report)
    errors = report.errors()
    if errors:
        raise ConfigError(*errors)
    return report.warnings


def read_text(path: str) -> str:
    """The text of a file. Raises OSError."""
    try:
        return files.read(path, _MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, f"it is not UTF-8 text (byte {error.start})", path) from None


def _top_level(settings: Settings) -> Block:
    store = store_dir(settings)
    return {
        **_network(settings),
        **_limits(settings),
        **_logging(settings),
        **_monitoring(settings),
        **known("pid_file pidfile", string(into(settings, "pid_file"))),
        **known("ports_file_dir", string(into(settings, "ports_file_dir"))),
        **known("authorization", authorization(settings)),
        **known("accounts", accounts(settings)),
        **known("tls", tls_block(into(settings.broker, "tls"))),
        **known("no_auth_user", string(into(settings.broker, "no_auth_user"))),
        **known("system_account system", string(into(settings.broker, "system_account"))),
        **known("cluster", cluster(settings)),
        **known("jetstream", jetstream(settings, store)),
        **known("store_dir storedir", store),
        **known("data_dir", _data_dir(settings)),
        **known("registry", registry(settings)),
        **known("forest", forest(settings)),
        **_unsupported(),
    }


def _unsupported() -> Block:
    """What nats-server 2.15 can and we cannot yet."""
    return {
        **not_supported("ocsp ocsp_cache gateway leafnodes leaf websocket ws mqtt proxies"),
        **not_supported("operator operators root_operator root_operators root roots trusted trusted_keys"),
        **not_supported("resolver account_resolver accounts_resolver resolver_tls resolver_preload"),
        **not_supported("resolver_pinned_accounts default_sentinel default_js_domain"),
        **not_supported("mappings maps server_metadata feature_flags"),
        **not_supported("connect_error_reports reconnect_error_reports"),
        **switched_off("no_system_account no_system no_sys_acc allow_non_tls proxy_protocol"),
        **switched_off("no_fast_producer_stall"),
    }


def _tags(options: BrokerOptions) -> Reader:
    def read(item: Item, key: str, _report: Report) -> None:
        words = (tag.strip().lower() for tag in as_strings(item, key))
        options.tags = [tag for tag in dict.fromkeys(words) if tag]

    return read


def _network(settings: Settings) -> Block:
    options = settings.broker
    return {
        **known("listen", listen(options)),
        **known("host net", string(into(options, "host"))),
        **known("port", port(into(options, "port"))),
        **known("client_advertise", string(into(options, "client_advertise"))),
        **known("server_name", no_spaces("server", string(into(settings, "node_name")))),
        **known("server_tags", _tags(options)),
        **known("no_header_support", switch(lambda off: into(options, "headers")(not off))),
    }


def _limits(settings: Settings) -> Block:
    options = settings.broker
    return {
        **known("max_connections max_conn", integer(into(options, "max_connections"))),
        **known("max_subscriptions max_subs", integer(into(options, "max_subscriptions"))),
        **known("max_control_line", _int32(options, "max_control_line")),
        **known("max_payload", _int32(options, "max_payload")),
        **known("max_pending", integer(into(options, "max_pending"))),
        **known("max_closed_clients", integer(into(options, "max_closed_clients"))),
        **known("ping_interval", duration(into(options, "ping_interval"))),
        **known("ping_max", integer(into(options, "ping_max"))),
        **known("write_deadline", duration(into(options, "write_deadline"))),
        **known("lame_duck_duration", _lame_duck(settings)),
        **known("lame_duck_grace_period", _grace_period(settings)),
        **not_supported("max_sub_tokens max_traced_msg_len", 0),
        **not_supported("write_timeout", "default", "close"),
        **known("disable_sublist_cache no_sublist_cache", switch(_no_effect)),
    }


def _logging(settings: Settings) -> Block:
    options = settings.log
    return {
        **known("debug", switch(into(options, "debug"))),
        **known("trace", switch(into(options, "trace"))),
        **known("trace_verbose", switch(_trace_verbose(settings))),
        **known("trace_headers", switch(_no_effect)),
        **known("logtime", switch(into(options, "logtime"))),
        **known("logtime_utc", switch(into(options, "utc"))),
        **known("log_file logfile", string(into(options, "file"))),
        **known("log_format", _log_format(settings)),
        **known("log_size_limit logfile_size_limit", integer(into(options, "size_limit"))),
        **known("log_max_num logfile_max_num", integer(into(options, "max_files"))),
        **switched_off("syslog"),
        **not_supported("remote_syslog", ""),
    }


def _monitoring(settings: Settings) -> Block:
    options = settings.monitor

    def http(item: conf.Item, _key: str, _report: Report) -> None:
        host, number = as_listen(item)
        options.port = number
        options.host = host or options.host

    return {
        **known("http", http),
        **known("http_port monitor_port", port(into(options, "port"))),
        **known("http_base_path", string(into(options, "base_path"))),
        **not_supported("https"),
        **not_supported("https_port prof_port prof_block_rate", 0),
    }


def _no_effect(_value: object) -> None:
    """For hints about how to do something that we do in our own way."""


def _trace_verbose(settings: Settings) -> Callable[[bool], None]:
    def store(value: bool) -> None:
        settings.log.trace_verbose = value
        settings.log.trace = settings.log.trace or value

    return store


def _int32(target: object, attribute: str) -> Reader:
    def read(item: conf.Item, key: str, _report: Report) -> None:
        value = as_int(item)
        if value > _INT32_MAX:
            raise FieldError(f"{key} value is too big")
        into(target, attribute)(value)

    return read


def _lame_duck(settings: Settings) -> Reader:
    def read(item: conf.Item, key: str, report: Report) -> None:
        seconds = as_seconds(item, key, report)
        if seconds < _MIN_LAME_DUCK:
            raise FieldError(f"invalid lame_duck_duration of {format_duration(seconds)}, minimum is 30 seconds")
        settings.broker.lame_duck_duration = seconds

    return read


def _grace_period(settings: Settings) -> Reader:
    def read(item: conf.Item, key: str, report: Report) -> None:
        seconds = as_seconds(item, key, report)
        if seconds < 0:
            raise FieldError("invalid lame_duck_grace_period, needs to be positive")
        settings.broker.lame_duck_grace_period = seconds

    return read


def _log_format(settings: Settings) -> Reader:
    def read(item: conf.Item, _key: str, _report: Report) -> None:
        value = as_string(item)
        if value not in ("text", "json"):
            raise FieldError(f'log_format must be text or json, got "{value}"')
        settings.log.format = value

    return read


def _data_dir(settings: Settings) -> Reader:
    def read(item: conf.Item, _key: str, _report: Report) -> None:
        settings.data_dir = Path(as_string(item))

    return read
