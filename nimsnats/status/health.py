"""A running node's `GET /health` in a few lines for people, and its `GET /statusz`.

Owns: asking, and the wording of the few lines. Knows of a node only what its HTTP port says.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Final, TypeAlias, cast

from nimsnats.monitor.format import JsonObject

Health: TypeAlias = Mapping[str, object]

_TIMEOUT: Final = 5.0


class NoAnswer(Exception):
    """Nobody answers, or it is not a node that does; one line."""


def ask(url: str) -> Health:
    """The health of the node whose HTTP port is at `url`, healthy or not. Raises NoAnswer."""
    url = _complete(url)
    address = url.rstrip("/") + "/health"
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        body = error.read()  # 503 is how an unhealthy node answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise NoAnswer(f"no node answers at {url}: {getattr(reason, 'strerror', None) or reason}") from None
    try:
        health: object = json.loads(body)
    except ValueError:
        health = None
    if not isinstance(health, dict) or "status" not in health:
        raise NoAnswer(f"what answers at {url} is not a nimsnats node")
    return cast("Health", health)


def ask_overview(url: str) -> JsonObject | None:
    """What the node at `url` sees of its cluster; None where there is no such answer. See `monitor.page.merge`."""
    try:
        with urllib.request.urlopen(_complete(url).rstrip("/") + "/statusz", timeout=_TIMEOUT) as answer:
            overview: object = json.loads(answer.read())
    except (OSError, ValueError, HTTPException):
        return None
    return cast("JsonObject", overview) if isinstance(overview, dict) else None


def _complete(url: str) -> str:
    return url if url.startswith(("http://", "https://")) else f"http://{url}"


def summary(health: Health) -> str:
    """A line for the node, its cluster, its registry and its streams."""
    cluster, registry, jetstream = (_part(health, name) for name in ("cluster", "registry", "jetstream"))
    lines = [f"{health.get('node', 'node')}: {health.get('status')}"]
    if cluster:
        peers = ", ".join(_names(cluster.get("peers"))) or "none"
        factor = cluster.get("replication_factor", "?")
        lines.append(f"  cluster    size {cluster.get('size', '?')}, replication factor {factor}, peers: {peers}")
    if registry:
        state = "connected" if registry.get("connected") else "NOT CONNECTED"
        lines.append(f"  registry   {state} {registry.get('url', '')}".rstrip())
    if jetstream:
        streams, buckets = (", ".join(_names(jetstream.get(name))) or "none" for name in ("streams", "kv_buckets"))
        lines.append(f"  jetstream  streams: {streams}; buckets: {buckets}")
    lines += [f"  problem    {problem}" for problem in _names(health.get("problems"))]
    lines += [f"  note       {note}" for note in _names(health.get("notes"))]
    return "\n".join(lines)


def _part(health: Health, name: str) -> Health:
    part = health.get(name)
    return cast("Health", part) if isinstance(part, dict) else {}


def _names(value: object) -> list[str]:
    return [str(name) for name in cast("list[object]", value)] if isinstance(value, list) else []
