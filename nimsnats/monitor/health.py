"""`/health`, `/health/cluster` and `/health/registry`: is this node fit to work, in the forest's own words.

A node is unhealthy (503) when it cannot serve or cannot keep what it acknowledges. What it can live with, a registry
that does not answer or damage that was found and named, makes it `degraded`, with status 200: load balancers must not
take a working node out because the registry is down. `/health/registry` itself says 503 in that case.
"""

from __future__ import annotations

from typing import Final

from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.view import NodeView

_BUCKET: Final = "KV_"


def overall(view: NodeView) -> JsonObject:
    """Everything at a glance."""
    broken = [*_broken(view), *view.problems(), *view.cluster().problems]
    worrying = _worrying(view)
    body: JsonObject = {
        "status": "unhealthy" if broken else "degraded" if worrying else "healthy",
        "node": view.broker.server_name,
        "cluster": _cluster(view),
        "registry": _registry(view),
        "jetstream": _jetstream(view),
    }
    if broken or worrying:
        body["problems"] = [*broken, *worrying]
    if notes := view.told():
        body["notes"] = notes
    body["status_code"] = 503 if broken else 200
    return body


def cluster(view: NodeView) -> JsonObject:
    """The cluster with its peers."""
    if view.cluster_page is not None:
        return _page(view.cluster_page())
    problems = list(view.cluster().problems)
    body: JsonObject = {
        "status": "unhealthy" if problems else "healthy",
        "node": view.broker.server_name,
        "cluster": _cluster(view),
    }
    if problems:
        body["problems"] = problems
    body["status_code"] = 503 if problems else 200
    return body


def registry(view: NodeView) -> JsonObject:
    """The connection to the registry."""
    if view.registry_page is not None:
        return _page(view.registry_page())
    status = view.registry()
    healthy = status is not None and status.connected
    return {
        "status": "healthy" if healthy else "unhealthy",
        "node": view.broker.server_name,
        "registry": _registry(view),
        "status_code": 200 if healthy else 503,
    }


def _page(body: JsonObject) -> JsonObject:
    """A page that another room has made."""
    return {**body, "status_code": 503 if body["status"] == "unhealthy" else 200}


def _cluster(view: NodeView) -> JsonObject:
    seen = view.cluster()
    return {"size": seen.size, "peers": list(seen.peers), "replication_factor": seen.replication_factor}


def _registry(view: NodeView) -> JsonObject:
    status = view.registry()
    if status is None:
        return {"connected": False, "url": ""}
    body: JsonObject = {"connected": status.connected, "url": status.url}
    if status.last_error and not status.connected:
        body["last_error"] = status.last_error
    return body


def _jetstream(view: NodeView) -> JsonObject:
    """Streams and KV buckets of the global account, where the forest lives."""
    account = view.jetstream.accounts.get("$G") if view.jetstream is not None else None
    names = sorted(account.streams) if account is not None else []
    return {
        "streams": [name for name in names if not name.startswith(_BUCKET)],
        "kv_buckets": [name.removeprefix(_BUCKET) for name in names if name.startswith(_BUCKET)],
    }


def _broken(view: NodeView) -> list[str]:
    problems: list[str] = []
    if view.storage is not None and view.storage.failure is not None:
        problems.append(f"storage: {view.storage.failure}")
    if view.storage is not None and view.storage.full:
        problems.append("storage: no space left, writes are refused")
    return problems + [f"raft: {text}" for text in view.failures()]


def _worrying(view: NodeView) -> list[str]:
    worries = [f"damage: {text}" for text in view.damage()]
    worries += [f"log: {text}" for text in view.refusals()]
    status = view.registry()
    if status is not None and not status.connected:
        worries.append(f"registry: {status.last_error or 'not connected'}")
    cluster = view.jetstream.cluster if view.jetstream is not None else None
    if cluster is not None:
        worries += [f"cluster: {name} is in another one, and both hold data" for name in sorted(cluster.conflicts)]
    return worries
