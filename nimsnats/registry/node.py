"""What a registry knows of a node, and the JSON it is written in.

Owns: `NodeInfo` and the only validation of node entries: the registry server refuses with it what nodes send, and the
registry client skips with it what a registry answers. Pure values; never touches network, disk or clock.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

from nimsnats.registry.errors import InvalidNodeError

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:@+-]{0,251}[A-Za-z0-9_])?")
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_SCOPE: Final = re.compile(r"[A-Za-z0-9_.-]{0,15}")
"""Of an IPv6 address: the name or number of an interface, empty where there is none."""
_INSTANCE: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")
_HTTP: Final = re.compile(r"https?://[!-~]{1,500}")
_KINDS: Final = {
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "str": "a string",
    "list": "an array",
    "dict": "an object",
}
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node as the registry lists it.

    `name` is unique in a cluster; `address` (IP or host name, no brackets) and `port` are where its routes listen;
    `registered_at` is UTC and stamped by the registry; `instance` names the data directory behind the node, so that a
    node which comes back with an empty disk is told apart from the old one; `http` is the base URL of its HTTP port.
    """

    name: str
    address: str
    port: int
    registered_at: datetime = _EPOCH
    instance: str = ""
    http: str = ""

    @property
    def cluster_addr(self) -> str:
        """`host:port` for routes, IPv6 in brackets."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def same_endpoint(self, other: NodeInfo) -> bool:
        """Whether a peer that knows `other` need not be told of `self`: everything but the time is equal."""
        return (self.name, self.address, self.port, self.instance, self.http) == (
            other.name,
            other.address,
            other.port,
            other.instance,
            other.http,
        )

    def to_json(self) -> dict[str, str | int]:
        """The object of the registry's HTTP API; `instance` and `http` only where they are known."""
        body: dict[str, str | int] = {"name": self.name, "address": self.address, "port": self.port}
        if self.registered_at != _EPOCH:
            body["registered_at"] = self.registered_at.isoformat().replace("+00:00", "Z")
        if self.instance:
            body["instance"] = self.instance
        if self.http:
            body["http"] = self.http
        return body

    @classmethod
    def from_json(cls, value: object) -> NodeInfo:
        """Check and read one entry. Unknown keys are ignored. Raises `InvalidNodeError` naming the key at fault."""
        if not isinstance(value, Mapping):
            raise InvalidNodeError(f"a node must be a JSON object, not {_kind(value)}")
        entry = cast("Mapping[str, object]", value)
        return cls(
            name=check_name(entry.get("name"), "name"),
            address=_check_address(entry.get("address")),
            port=_check_port(entry.get("port")),
            registered_at=_check_time(entry.get("registered_at")),
            instance=_check_text(entry.get("instance"), "instance", _INSTANCE, "letters, digits, - and _, up to 64"),
            http=_check_text(entry.get("http"), "http", _HTTP, "an http:// or https:// URL"),
        )


def check_name(value: object, key: str) -> str:
    """A node or service name: 1 to 253 letters, digits and `_.:@+-`. Raises `InvalidNodeError`."""
    if not isinstance(value, str):
        raise InvalidNodeError(f"{key!r} must be a string, not {_kind(value)}")
    if not _NAME.fullmatch(value):
        raise InvalidNodeError(f"{key!r} must be 1 to 253 letters, digits and any of _.:@+- inside, got {value[:64]!r}")
    return value


def _check_address(value: object) -> str:
    """An IP address that can be dialled, or a host name (RFC 1123, underscores tolerated)."""
    if not isinstance(value, str):
        raise InvalidNodeError(f"'address' must be a string, not {_kind(value)}")
    try:
        ip = ipaddress.ip_address(value)
    except ValueError:
        labels = value.removesuffix(".").split(".")
        is_host = len(value) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
        if not is_host or labels[-1].isdigit():
            raise InvalidNodeError(f"'address' must be an IP address or a host name, got {value[:64]!r}") from None
        return value
    if ip.is_unspecified or ip.is_multicast or not _SCOPE.fullmatch(value.partition("%")[2]):
        raise InvalidNodeError(f"'address' {value} is not an address that peers can connect to")
    return value


def _check_port(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidNodeError(f"'port' must be a number, not {_kind(value)}")
    if not 1 <= value <= 65535:
        raise InvalidNodeError("'port' must be between 1 and 65535")
    return value


def _check_time(value: object) -> datetime:
    """`registered_at` is information: a registry that leaves it out or writes it oddly loses only that."""
    if not isinstance(value, str) or len(value) > 40:
        return _EPOCH
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return _EPOCH
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return _EPOCH


def _check_text(value: object, key: str, pattern: re.Pattern[str], wanted: str) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidNodeError(f"{key!r} must be {wanted}")
    return value


def _kind(value: object) -> str:
    """How JSON calls the type of a value."""
    if value is None:
        return "missing"
    return _KINDS.get(type(value).__name__, type(value).__name__)
