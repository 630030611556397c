"""Routes, gateways, leaf nodes and queues, in nats-server's shapes.

There are no gateways and leaf nodes: their shapes are empty, and clients that look at them find what they expect.
"""

from __future__ import annotations

from nimsnats.broker.route import RouteConnection
from nimsnats.jetstream.clock import format_duration, format_time
from nimsnats.monitor.format import JsonObject, present, uptime
from nimsnats.monitor.subsz import detail
from nimsnats.monitor.view import NodeView


def routez(view: NodeView, *, subscriptions: bool = False, subscriptions_detail: bool = False) -> JsonObject:
    """Connections to other servers of the cluster."""
    head = _head(view)
    table = view.broker.routes
    routes = sorted(table.routes.values(), key=lambda route: route.cid) if table is not None else []
    return {
        "server_id": head["server_id"],
        "server_name": view.broker.server_name,
        "now": head["now"],
        "num_routes": len(routes),
        "routes": [
            _route(view, route, subscriptions=subscriptions, subscriptions_detail=subscriptions_detail)
            for route in routes
        ],
    }


def _route(view: NodeView, route: RouteConnection, *, subscriptions: bool, subscriptions_detail: bool) -> JsonObject:
    peer, now = route.peer, view.now_ns()
    assert peer is not None, "a registered route knows its peer"
    subs = list(route.subs.values())
    shown: JsonObject = {}
    if subscriptions_detail:
        shown["subscriptions_list_detail"] = [detail(sub) for sub in subs]
    elif subscriptions:
        shown["subscriptions_list"] = [sub.subject.decode("utf-8", "replace") for sub in subs]
    return {
        "rid": route.cid,
        "remote_id": peer.server_id,
        "remote_name": peer.server_name,
        "did_solicit": route.dial is not None,
        "is_configured": route.dial is not None and route.dial.explicit,
        "ip": route.ip,
        "port": route.port,
        "start": format_time(route.start_ns),
        "last_activity": format_time(route.last_ns),
        **present({"rtt": format_duration(round(route.rtt * 1e9)) if route.rtt else ""}),
        "uptime": uptime(now - route.start_ns),
        "idle": uptime(now - route.last_ns),
        "pending_size": route.pending,
        "in_msgs": route.in_msgs,
        "out_msgs": route.out_msgs,
        "in_bytes": route.in_bytes,
        "out_bytes": route.out_bytes,
        "subscriptions": len(subs),
        **shown,
        "compression": "off",
    }


def gatewayz(
    view: NodeView,
    *,
    name: str = "",
    accounts: bool = False,
    account_name: str = "",
    subscriptions: bool = False,
    subscriptions_detail: bool = False,
) -> JsonObject:
    """Connections to other clusters."""
    return {**_head(view), "outbound_gateways": {}, "inbound_gateways": {}}


def leafz(view: NodeView, *, subscriptions: bool = False, account: str = "") -> JsonObject:
    """Leaf node connections."""
    return {**_head(view), "leafnodes": 0, "leafs": []}


def ipqueuesz(view: NodeView, *, all: bool = False, filter: str = "") -> JsonObject:
    """Internal queues: this server hands work over within one turn of its loop and has none."""
    return {}


def _head(view: NodeView) -> JsonObject:
    return {"server_id": view.broker.server_id, "now": format_time(view.now_ns())}
