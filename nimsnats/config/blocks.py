"""The blocks that set up whole parts of a node: `cluster`, `jetstream`, and our own `registry` and `forest`.

Owns: their keys and how they fill their settings. Own keys inside nats-server's blocks: `jetstream.sync: interval` and
`jetstream.cache_size`.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from nimsnats.config.auth import Login, login_block
from nimsnats.config.fields import (
    FieldError,
    Reader,
    Report,
    as_map,
    as_seconds,
    as_size,
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
    split_address,
    string,
    strings,
    switch,
    switched_off,
    type_name,
)
from nimsnats.config.settings import Settings, WebhookSettings
from nimsnats.config.tls import tls_block
from nimsnats.protocol.conf import Item

_LEAST_SYNC_INTERVAL: Final = 0.001
"""Seconds; a disk is not asked more often."""
_MOST_TOLERANCE: Final = 6 * 3600.0


def no_spaces(what: str, store_name: Reader) -> Reader:
    """Reader of a name that may not contain spaces."""

    def read(item: Item, key: str, report: Report) -> None:
        if " " in as_string(item):
            raise FieldError(f"{what} name cannot contain spaces")
        store_name(item, key, report)

    return read


def cluster(settings: Settings) -> Reader:
    """Reader of the `cluster` block. Its presence makes a server alone listen for routes."""
    options = settings.cluster

    def auth(item: Item, _key: str, report: Report) -> None:
        login = Login()

        def refuse(reason: str) -> Reader:
            return lambda inner, _name, report: report.error(item.at, reason)

        read_block(
            as_map(item),
            {
                **login_block(login, "cluster authorization"),
                **known("token", refuse("Cluster authorization does not support tokens")),
                **known("users", refuse("Cluster authorization does not allow multiple users")),
            },
            report,
        )
        options.user, options.password = login.user, login.password
        if login.timeout is not None:
            options.auth_timeout = login.timeout

    def routes(item: Item, key: str, _report: Report) -> None:
        options.routes = [check_route(url) for url in as_strings(item, key)]

    def read(item: Item, _key: str, report: Report) -> None:
        if not isinstance(item.value, dict):
            raise FieldError(f"Expected map to define cluster, got {type_name(item.value)}")
        options.enabled = True
        block = {
            **known("name", no_spaces("cluster", string(into(options, "name")))),
            **known("listen", listen(options)),
            **known("host net", string(into(options, "host"))),
            **known("port", port(into(options, "port"))),
            **known("advertise cluster_advertise", string(into(options, "advertise"))),
            **known("no_advertise", switch(into(options, "no_advertise"))),
            **known("connect_retries", integer(into(options, "connect_retries"))),
            **known("authorization", auth),
            **known("routes", routes),
            **known("tls", tls_block(into(options, "tls"), between_servers=True)),
            **not_supported("permissions accounts ping_interval ping_max write_deadline"),
            **not_supported("pool_size", -1),
            **not_supported("compression", "off", "disabled", "accept", False),
            **not_supported("write_timeout", "default"),
            **switched_off("connect_backoff"),
        }
        read_block(item.value, block, report)

    return read


def check_route(url: str) -> str:
    """A route's URL; a bare `host:port` is one, too. Raises FieldError."""
    full = url if "://" in url else f"nats://{url}"
    try:
        parts = urlsplit(full)
        valid = parts.scheme in ("nats", "nats-route", "tls") and parts.hostname and parts.port is not None
    except ValueError:
        valid = False
    if not valid:
        raise FieldError(f'error parsing route url ["{url}"]')
    return full


def check_advertise(text: str) -> None:
    """`host`, `host:port`, `[ipv6]:port` or an IPv6 address: what other nodes are told to dial. Raises FieldError."""
    host = text
    try:
        if text.count(":") == 1 or "]:" in text:
            host, port = split_address(text)
            if not 0 < port < 65536:
                raise FieldError("its port is no port")
        elif ":" in text:
            ipaddress.IPv6Address(text.strip("[]"))
    except (FieldError, ValueError):
        host = ""
    if text and (not host or any(character in host for character in "/@ ")):
        raise FieldError(f'cannot advertise "{text}": it must be a host, or host:port, that other nodes can dial')


def store_dir(settings: Settings) -> Reader:
    """Reader of the storage parent directory, at top level or in the `jetstream` block but not in both."""
    given: list[Item] = []

    def read(item: Item, _key: str, _report: Report) -> None:
        if given:
            raise FieldError("Duplicate 'store_dir' configuration")
        given.append(item)
        settings.data_dir = Path(as_string(item)) / "jetstream"

    return read


def jetstream(settings: Settings, store: Reader) -> Reader:
    """Reader of `jetstream`: a switch, or a block that switches it on."""
    options = settings.jetstream

    def size(attribute: str, called: str) -> Reader:
        return lambda item, _key, _report: into(options, attribute)(as_size(item, called))

    def sync(item: Item, key: str, report: Report) -> None:
        word = item.value.lower() if isinstance(item.value, str) else ""
        options.sync_always = word == "always"
        if word not in ("always", "interval"):
            options.sync_interval = as_seconds(item, key, report)
            if options.sync_interval < _LEAST_SYNC_INTERVAL:
                raise FieldError(f"{key} must be at least 1ms; {key}: always syncs before each ack")

    def limits(item: Item, _key: str, report: Report) -> None:
        block = {
            **known("max_ack_pending", integer(into(options, "max_ack_pending"))),
            **known("max_request_batch", integer(into(options, "max_request_batch"))),
            **known("duplicate_window", duration(into(options, "duplicate_window"))),
            **not_supported("max_ha_assets default_max_consumers batch"),
        }
        read_block(as_map(item), block, report)

    def read(item: Item, _key: str, report: Report) -> None:
        if isinstance(item.value, dict):
            settings.broker.jetstream = True
            read_block(item.value, block, report)
        elif isinstance(item.value, bool):
            settings.broker.jetstream = item.value
        elif isinstance(item.value, str):
            word = item.value.lower()
            if word not in ("enabled", "enable", "disabled", "disable"):
                raise FieldError(f"Expected 'enabled' or 'disabled' for string value, got '{item.value}'")
            settings.broker.jetstream = word.startswith("enable")
        else:
            raise FieldError(f"Expected map, bool or string to define JetStream, got {type_name(item.value)}")

    block = {
        **known("enabled enable", switch(into(settings.broker, "jetstream"))),
        **known("store_dir storedir store", store),
        **known("max_memory_store max_mem_store max_mem", size("max_memory", "max_mem_store")),
        **known("max_file_store max_file", size("max_file", "max_file_store")),
        **known("sync_interval sync", sync),
        **known("domain", string(into(options, "domain"))),
        **known("strict", switch(into(options, "strict"))),
        **known("cache_size", size("cache_bytes", "cache_size")),
        **known("limits", limits),
        **not_supported("encryption_key key ek prev_encryption_key cipher tpm extension_hint"),
        **not_supported("max_outstanding_catchup max_buffered_size max_buffered_msgs request_queue_limit"),
        **not_supported("info_queue_limit meta_compact meta_compact_size max_concurrent_io"),
        **known("unique_tag", lambda item, _key, _report: into(options, "unique_tag")(as_string(item).strip().lower())),
        **known("strict_replicas", switch(into(options, "strict_replicas"))),
        **switched_off("meta_compact_sync"),
    }
    return read


def registry(settings: Settings) -> Reader:
    """Reader of our `registry` block."""
    options = settings.registry

    def positive(attribute: str) -> Reader:
        def read(item: Item, key: str, report: Report) -> None:
            seconds = as_seconds(item, key, report)
            if seconds <= 0:
                raise FieldError(f"{key} must be longer than zero")
            into(options, attribute)(seconds)

        return read

    def url(item: Item, _key: str, _report: Report) -> None:
        options.url = check_registry_url(as_string(item))

    def tls(item: Item, _key: str, report: Report) -> None:
        files = ("ca_file", "cert_file", "key_file")
        read_block(as_map(item), {name: string(into(options, name)) for name in files}, report)

    block = {
        **known("url", url),
        **known("service", string(into(options, "service"))),
        **known("token", string(into(options, "token"))),
        **known("heartbeat_interval", positive("heartbeat_interval")),
        **known("ttl", positive("ttl")),
        **known("tls", tls),
    }
    return lambda item, _key, report: read_block(as_map(item), block, report)


def check_registry_url(url: str) -> str:
    """The URL of a registry, or empty for the node's own. Raises FieldError."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if url and not valid:
        raise FieldError(f'"{url}" is not a registry URL: it must look like http://host:8500')
    return url.rstrip("/")


def forest(settings: Settings) -> Reader:
    """Reader of our `forest` block, or of a switch for the whole forest."""
    options = settings.forest

    def classes(attribute: str) -> Reader:
        def read(item: Item, key: str, _report: Report) -> None:
            names = as_strings(item, key)
            for name in names:
                module, _, cls = name.partition(":")
                if not all(part.isidentifier() for part in (*module.split("."), *cls.split("."))):
                    raise FieldError(f'"{name}" does not name a class: it must look like package.module:Class')
            into(options, attribute)(names)

        return read

    def max_size(item: Item, key: str, _report: Report) -> None:
        options.webhook_max_size = as_size(item, key)

    def tolerance(item: Item, key: str, report: Report) -> None:
        seconds = as_seconds(item, key, report)
        if not 1.0 <= seconds <= _MOST_TOLERANCE:
            raise FieldError(f'"{key}" must be between 1s and 6h: for twice as long deliveries are remembered')
        options.webhook_tolerance = seconds

    block = {
        **known("enabled", switch(into(options, "enabled"))),
        **known("builtin", switch(into(options, "builtin"))),
        **known("trees", classes("trees")),
        **known("nims", classes("nims")),
        **known("wind_subjects", strings(into(options, "wind_subjects"))),
        **known("webhooks", _webhooks(settings)),
        **known("webhook_max_size", max_size),
        **known("webhook_tolerance", tolerance),
        **known("demo", switch(into(options, "demo"))),
    }

    def read(item: Item, _key: str, report: Report) -> None:
        if isinstance(item.value, bool):
            options.enabled = item.value
        else:
            read_block(as_map(item), block, report)

    return read


def _webhooks(settings: Settings) -> Reader:
    """Reader of `webhooks { stripe { secret: $STRIPE_SECRET } }`; `stripe: $STRIPE_SECRET` says the same."""

    def read(item: Item, _key: str, report: Report) -> None:
        for name, inner in as_map(item).items():
            hook = WebhookSettings()
            if isinstance(inner.value, dict):
                block = {
                    **known("secret secrets", strings(into(hook, "secrets"))),
                    **known("unsigned", switch(into(hook, "unsigned"))),
                }
                read_block(inner.value, block, report)
            else:
                hook.secrets = as_strings(inner, name)
            if not any(hook.secrets) and not hook.unsigned:
                reason = f'webhook "{name}" needs a secret, or unsigned: true to accept what anybody sends'
                report.error(inner.at, reason)
            settings.forest.webhooks[name] = hook

    return read
