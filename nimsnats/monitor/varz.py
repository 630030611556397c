"""`/varz`: the server at a glance, field by field as nats-server orders them."""

from __future__ import annotations

import platform
from typing import Final

from nimsnats.broker.route_dial import parse_route
from nimsnats.broker.stats import BrokerStats
from nimsnats.broker.tls import TIMEOUT, TlsOptions
from nimsnats.jetstream.clock import format_time
from nimsnats.monitor.clusterz import meta_block
from nimsnats.monitor.format import JsonObject, number, present, seconds_ns, uptime
from nimsnats.monitor.jsz import jetstream_config, jetstream_limits, jetstream_stats
from nimsnats.monitor.process import cores, resident_bytes
from nimsnats.monitor.view import NodeView
from nimsnats.version import NATS_VERSION

RUNTIME: Final = f"python{platform.python_version()}"
_NO_DETAIL: Final = {"clients": 0, "routes": 0, "gateways": 0, "leafs": 0}


def varz(view: NodeView) -> JsonObject:
    """Settings, blocks, process and traffic."""
    return {
        **_identity(view),
        **_limits(view),
        **_blocks(view),
        **_process(view),
        **_traffic(view),
        **_health(view),
    }


def _identity(view: NodeView) -> JsonObject:
    broker, options = view.broker, view.broker.options
    return {
        "server_id": broker.server_id,
        "server_name": broker.server_name,
        "version": NATS_VERSION,
        "proto": 1,
        "go": RUNTIME,
        "host": options.host,
        "port": broker.port,
        **present({"auth_required": bool(options.token or options.users)}),
        **present({"tls_required": broker.info.tls_required, "tls_verify": broker.info.tls_verify}),
        **present({"connect_urls": broker.info.connect_urls if _routes(view) else []}),
    }


def _limits(view: NodeView) -> JsonObject:
    options = view.broker.options
    return {
        "max_connections": view.broker.most_clients,
        **present({"max_subscriptions": options.max_subscriptions}),
        "ping_interval": seconds_ns(options.ping_interval),
        "ping_max": options.ping_max,
        "http_host": view.http_host,
        "http_port": view.http_port,
        "http_base_path": view.http_base_path,
        "https_port": 0,
        "auth_timeout": number(options.auth_timeout),
        "max_control_line": options.max_control_line,
        "max_payload": options.max_payload,
        "max_pending": options.max_pending,
    }


def _blocks(view: NodeView) -> JsonObject:
    cluster = _cluster(view)
    blocks: JsonObject = {"cluster": cluster, "gateway": {}, "leaf": {}, "mqtt": {}, "websocket": {}}
    blocks["jetstream"] = jetstream_block(view)
    return blocks


def _cluster(view: NodeView) -> JsonObject:
    routes = view.broker.routes
    named = present({"name": view.broker.options.cluster_name})
    if routes is None:
        return named
    options = routes.options
    urls = [f"{host}:{port}" for host, port, _, _ in map(parse_route, options.routes)]
    return {
        **named,
        "addr": options.host,
        "cluster_port": routes.port,
        "auth_timeout": number(options.auth_timeout),
        **present({"urls": urls or sorted(routes.connected().values())}),
        "tls_timeout": number(options.tls.timeout if options.tls is not None else TIMEOUT),
        **({"tls_required": True, "tls_verify": True, **_expiry(options.tls)} if options.tls is not None else {}),
    }


def _expiry(tls: TlsOptions | None) -> JsonObject:
    """When the certificate in a listener's file ends."""
    ends = tls.not_after() if tls is not None else None
    return {"tls_cert_not_after": format_time(round(ends.timestamp() * 1e9))} if ends is not None else {}


def jetstream_block(view: NodeView, *, store_dir: bool = True) -> JsonObject:
    """`jetstream` of varz and statsz; empty when JetStream is off."""
    if view.jetstream is None:
        return {}
    config = jetstream_config(view)
    if not store_dir:
        config.pop("store_dir", None)
    meta = present({"meta": meta_block(view, brief=not store_dir)})
    return {"config": config, "stats": jetstream_stats(view), **meta, "limits": jetstream_limits()}


def _process(view: NodeView) -> JsonObject:
    broker = view.broker
    started, now = view.started_ns, view.now_ns()
    routes = _routes(view)
    tls = broker.options.tls
    return {
        "tls_timeout": number(tls.timeout if tls is not None else TIMEOUT),
        "write_deadline": seconds_ns(broker.options.write_deadline),
        "start": format_time(started),
        "now": format_time(now),
        "uptime": uptime(now - started),
        "mem": resident_bytes(),
        "cores": cores(),
        "gomaxprocs": 1,
        "cpu": number(view.cpu.percent()),
        "connections": len(broker.clients),
        "total_connections": broker.stats.total_connections,
        "routes": routes,
        "remotes": routes,
        "leafnodes": 0,
    }


def _routes(view: NodeView) -> int:
    return len(view.broker.routes.routes) if view.broker.routes is not None else 0


def _traffic(view: NodeView) -> JsonObject:
    stats, routes = view.broker.stats, view.broker.routes
    routed = routes.stats if routes is not None else BrokerStats()
    return {
        "in_msgs": stats.in_msgs,
        "in_bytes": stats.in_bytes,
        "in_client_msgs": stats.in_msgs - routed.in_msgs,
        "in_client_bytes": stats.in_bytes - routed.in_bytes,
        "out_msgs": stats.out_msgs,
        "out_bytes": stats.out_bytes,
        "out_client_msgs": stats.out_msgs - routed.out_msgs,
        "out_client_bytes": stats.out_bytes - routed.out_bytes,
    }


def _health(view: NodeView) -> JsonObject:
    stats = view.broker.stats
    return {
        "slow_consumers": stats.slow_consumers,
        "stale_connections": stats.stale_connections,
        "stalled_clients": stats.stalled_clients,
        "subscriptions": view.subscriptions(),
        "http_req_stats": dict(sorted(view.http_requests.items())),
        "config_load_time": format_time(view.config_loaded_ns or view.started_ns),
        "config_digest": view.config_digest,
        **present({"tags": view.broker.options.tags}),
        "system_account": view.broker.system_account.name,
        "slow_consumer_stats": {**_NO_DETAIL, "clients": stats.slow_consumers},
        "stale_connection_stats": {**_NO_DETAIL, "clients": stats.stale_connections},
        **_expiry(view.broker.options.tls),
        "disk_io_wait_stats": {"waiters": 0, "waits": 0, "wait_time": 0, "max_wait_time": 0},
    }
