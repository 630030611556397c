"""INFO and CONNECT between servers: what they carry, read as nats-server reads them, written as it writes them.

Owns names and types of the fields. Who may connect, and what is done with an address, is `broker`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from nimsnats.protocol.connect import BadConnect, parse_object

PROTOCOL = 3
"""`proto` of our INFO: peers below 3 report no traces of messages."""
AUTH = "nimsnats_auth"
"""The field that carries the proof of a shared secret; see `broker.route_proof`."""

TAGS_GROUPS = "nimsnats_groups"
"""The field of a node that gives core peers other names of the server's queue groups; see `broker.route_groups`."""


@dataclass(slots=True)
class RouteInfo:
    """What a server tells its peers about itself, or another one about a newcomer (`ip` is where that is).

    `node` is set for servers that run this software: `instance` (the data behind it) and `http` (its HTTP port).
    `tags_groups` is set for those that keep the names of their queue groups from core peers. `auth` is its part of a
    proof.
    `raw` is the object as it came, for passing it on.
    """

    server_id: str
    server_name: str = ""
    version: str = ""
    proto: int = 0
    host: str = ""
    port: int = 0
    ip: str = ""
    cluster: str = ""
    headers: bool = False
    auth_required: bool = False
    connect_urls: list[str] = field(default_factory=list[str])
    lame_duck: bool = False
    route_account: str = ""
    gossip_mode: int = 0
    node: dict[str, str] | None = None
    tags_groups: bool = False
    auth: dict[str, str] = field(default_factory=dict[str, str])
    raw: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def parse(cls, arg: bytes) -> RouteInfo:
        """Read the argument of an INFO line. Raises BadConnect."""
        raw = parse_object(arg)
        fields = _Fields(raw)
        node: object = raw.get("nimsnats")
        auth: object = raw.get(AUTH)
        return cls(
            server_id=fields.text("server_id"),
            server_name=fields.text("server_name"),
            version=fields.text("version"),
            proto=fields.number("proto"),
            host=fields.text("host"),
            port=fields.number("port"),
            ip=fields.text("ip"),
            cluster=fields.text("cluster"),
            headers=fields.flag("headers"),
            auth_required=fields.flag("auth_required"),
            connect_urls=fields.texts("connect_urls"),
            lame_duck=fields.flag("ldm"),
            route_account=fields.text("route_account"),
            gossip_mode=fields.number("gossip_mode"),
            node=_texts(cast("dict[object, object]", node)) if isinstance(node, dict) else None,
            tags_groups=fields.flag(TAGS_GROUPS),
            auth=_texts(cast("dict[object, object]", auth)) if isinstance(auth, dict) else {},
            raw=raw,
        )


@dataclass(slots=True)
class RouteConnect:
    """CONNECT of a server that has dialled us."""

    name: str = ""
    cluster: str = ""
    user: str = ""
    password: str = ""
    lang: str = ""
    gateway: str = ""
    auth: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def parse(cls, arg: bytes) -> RouteConnect:
        """Read the argument of a CONNECT line. Raises BadConnect."""
        raw = parse_object(arg)
        fields = _Fields(raw)
        auth: object = raw.get(AUTH)
        return cls(
            name=fields.text("name"),
            cluster=fields.text("cluster"),
            user=fields.text("user"),
            password=fields.text("pass"),
            lang=fields.text("lang"),
            gateway=fields.text("gateway"),
            auth=_texts(cast("dict[object, object]", auth)) if isinstance(auth, dict) else {},
        )


def encode_info(fields: Mapping[str, object]) -> bytes:
    """The INFO line of these fields; those without a value are left out."""
    return b"INFO " + _json({key: value for key, value in fields.items() if value not in ("", None, False, [], 0)})


def encode_connect(
    server_id: str,
    cluster: str,
    user: str,
    password: str,
    *,
    tls_required: bool = False,
    auth: Mapping[str, str] | None = None,
) -> bytes:
    """The CONNECT line of a server that dials a peer."""
    fields: dict[str, object] = {"echo": True, "verbose": False, "pedantic": False}
    if user or password:
        fields.update({"user": user, "pass": password})
    fields.update({"tls_required": tls_required, "headers": True, "name": server_id, "cluster": cluster})
    if auth:
        fields[AUTH] = auth
    return b"CONNECT " + _json(fields)


def _json(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace") + b"\r\n"


def _texts(value: Mapping[object, object]) -> dict[str, str]:
    return {key: text for key, text in value.items() if isinstance(key, str) and isinstance(text, str)}


class _Fields:
    """Typed access; `null` is an absent field, a wrong type is an error for the whole line."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw

    def _get(self, key: str, kind: type, default: object) -> Any:
        value: object = self._raw.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BadConnect(f"field {key!r} is not of type {kind.__name__}")
        return value

    def text(self, key: str) -> str:
        return self._get(key, str, "")

    def number(self, key: str) -> int:
        return self._get(key, int, 0)

    def flag(self, key: str) -> bool:
        return self._get(key, bool, False)

    def texts(self, key: str) -> list[str]:
        values: list[object] = self._get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise BadConnect(f"field {key!r} is not a list of strings")
        return cast("list[str]", values)
