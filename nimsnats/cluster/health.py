"""What health pages say about the cluster and the registry, as plain dictionaries ready for JSON.

Owns: the shapes, not the pages: `monitor` serves them. `status` is "healthy", "degraded" (works, but somebody should
look) or "unhealthy" (the page answers 503). A registry that is away makes its own page unhealthy, never the cluster's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nimsnats.cluster.manager import ClusterManager
from nimsnats.registry import NodeInfo, Registry

Section = dict[str, Any]


def cluster_section(manager: ClusterManager) -> Section:
    """The `cluster` object of the overall health page."""
    state = manager.state
    return {"size": state.size, "peers": list(state.peers), "replication_factor": state.replication_factor}


def registry_section(registry: Registry) -> Section:
    """The `registry` object of the overall health page."""
    return {"connected": registry.status.connected, "url": registry.status.url}


def cluster_health(manager: ClusterManager, waiting: Mapping[str, Sequence[str]] | None = None) -> Section:
    """`GET /health/cluster`: the cluster with every peer that is a member or that the registry lists.

    `waiting`: why groups of two wait for their other member, by its name.
    """
    known = {peer.name: peer for peer in manager.known_peers}
    members = manager.members
    names = sorted(known.keys() | members.keys())
    nodes = [_peer(manager, name, known.get(name), members.get(name)) for name in names]
    strained = any(not node["connected"] for node in nodes)
    cluster: Section = {**cluster_section(manager), "address": manager.info.cluster_addr, "nodes": nodes}
    if waiting:
        cluster["waiting"] = {name: list(reasons) for name, reasons in waiting.items()}
    return {
        "status": "degraded" if strained or waiting else "healthy",
        "node": manager.info.name,
        "cluster": cluster,
    }


def registry_health(registry: Registry) -> Section:
    """`GET /health/registry`: the connection to the registry and what it knows of this node."""
    status = registry.status
    answering = "healthy" if status.registered else "degraded"
    return {
        "status": answering if status.connected else "unhealthy",
        "registry": {
            **registry_section(registry),
            "registered": status.registered,
            "watch": status.watch,
            "last_success": _moment(status.last_success),
            "last_error": status.last_error,
            "failures": status.failures,
            "lapses": registry.lease.lapses,
        },
    }


def _peer(manager: ClusterManager, name: str, info: NodeInfo | None, address: str | None) -> Section:
    return {
        "name": name,
        "address": info.cluster_addr if info else address,
        "member": address is not None,
        "connected": manager.is_connected(name),
        "registered": info is not None,
    }


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat().replace("+00:00", "Z") if moment else None
