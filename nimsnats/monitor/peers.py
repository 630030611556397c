"""Routes, gateways, leaf nodes, queues and Raft groups, in nats-server's shapes.

A node that stands alone has none of them: the shapes are empty, and clients that look at them find what they expect.
"""

from __future__ import annotations

from nimsnats.jetstream.clock import format_time
from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.view import NodeView


def routez(view: NodeView, *, subscriptions: bool = False, subscriptions_detail: bool = False) -> JsonObject:
    """Connections to other servers of the cluster."""
    head = _head(view)
    return {
        "server_id": head["server_id"],
        "server_name": view.broker.server_name,
        "now": head["now"],
        "num_routes": 0,
        "routes": [],
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


def raftz(view: NodeView, *, account: str = "", group: str = "") -> JsonObject | None:
    """Raft groups with peers; None while the node stands alone, as nats-server without a cluster."""
    return None


def _head(view: NodeView) -> JsonObject:
    return {"server_id": view.broker.server_id, "now": format_time(view.now_ns())}
