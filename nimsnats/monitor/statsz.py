"""What servers say about themselves on the wire: the `server` object of every reply, and `statsz`."""

from __future__ import annotations

from nimsnats.broker.route import RouteConnection
from nimsnats.broker.stats import BrokerStats
from nimsnats.jetstream.clock import format_time
from nimsnats.monitor.format import JsonObject, number, present
from nimsnats.monitor.process import cores, resident_bytes
from nimsnats.monitor.varz import jetstream_block
from nimsnats.monitor.view import NodeView
from nimsnats.version import NATS_VERSION

_JETSTREAM_ENABLED = 1


def server_object(view: NodeView, sequence: int) -> JsonObject:
    """Who answers; `sequence` counts this server's replies."""
    broker = view.broker
    domain = view.jetstream.options.domain if view.jetstream is not None else ""
    return {
        "name": broker.server_name,
        "host": broker.options.host,
        "id": broker.server_id,
        **present({"cluster": broker.options.cluster_name, "domain": domain}),
        "ver": NATS_VERSION,
        **present({"tags": broker.options.tags}),
        "jetstream": view.jetstream is not None,
        "flags": _JETSTREAM_ENABLED if view.jetstream is not None else 0,
        "seq": sequence,
        "time": format_time(view.now_ns()),
    }


def statsz(view: NodeView) -> JsonObject:
    """The figures that `nats server list` shows."""
    broker, stats = view.broker, view.broker.stats
    table = broker.routes
    routed = table.stats if table is not None else BrokerStats()
    routes = list(table.routes.values()) if table is not None else []
    return {
        "start": format_time(view.started_ns),
        "mem": resident_bytes(),
        "cores": cores(),
        "cpu": number(view.cpu.percent()),
        "connections": len(broker.clients),
        "total_connections": stats.total_connections,
        "active_accounts": sum(bool(account.clients) for account in broker.accounts.values()),
        "subscriptions": view.subscriptions(),
        "sent": _traffic(stats.out_msgs, stats.out_bytes),
        "sent_to_clients": _traffic(stats.out_msgs - routed.out_msgs, stats.out_bytes - routed.out_bytes),
        "received": _traffic(stats.in_msgs, stats.in_bytes),
        "received_from_clients": _traffic(stats.in_msgs - routed.in_msgs, stats.in_bytes - routed.in_bytes),
        "slow_consumers": stats.slow_consumers,
        **present({"stale_connections": stats.stale_connections, "stalled_clients": stats.stalled_clients}),
        **present({"routes": [_route(route) for route in routes]}),
        "active_servers": max(view.cluster().size, 1 + len(routes)),
        **present({"jetstream": jetstream_block(view, store_dir=False)}),
        "gomaxprocs": 1,
    }


def _route(route: RouteConnection) -> JsonObject:
    return {
        "rid": route.cid,
        "name": route.name,
        "sent": _traffic(route.out_msgs, route.out_bytes),
        "received": _traffic(route.in_msgs, route.in_bytes),
        "pending": route.pending,
    }


def _traffic(messages: int, size: int) -> JsonObject:
    return {"msgs": messages, "bytes": size}
