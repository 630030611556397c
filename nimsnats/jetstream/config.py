"""A stream's configuration: its fields, its JSON in both directions, its stored form.

Owns `StreamConfig` and the schema of requests that carry one. What is allowed is decided in `config_rules.py`.
Durations are nanoseconds, sizes bytes, -1 is unlimited.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from nimsnats.jetstream import typed
from nimsnats.jetstream.api.decode import (
    BOOL,
    DURATION,
    INT,
    INT64,
    METADATA,
    STRING,
    STRINGS,
    TIME,
    UINT64,
    Enum,
    JsonObject,
    Kind,
    Listed,
    Scalar,
    Struct,
)
from nimsnats.jetstream.clock import SECOND
from nimsnats.version import API_LEVEL, NATS_VERSION

DEFAULT_DUPLICATE_WINDOW: Final = 120 * SECOND
_DYNAMIC_METADATA: Final = ("_nats.ver", "_nats.level")
_REQUIRED_LEVEL: Final = "_nats.req.level"


@dataclass(slots=True)
class StreamConfig:
    """One stream's settings, defaults filled in. Field names and order are those of the JSON."""

    name: str
    description: str = ""
    subjects: list[str] = field(default_factory=list[str])
    retention: str = "limits"
    max_consumers: int = -1
    max_msgs: int = -1
    max_bytes: int = -1
    max_age: int = 0
    max_msgs_per_subject: int = -1
    max_msg_size: int = -1
    discard: str = "old"
    storage: str = "file"
    num_replicas: int = 1
    no_ack: bool = False
    duplicate_window: int = 0
    placement: JsonObject = field(default_factory=JsonObject)
    compression: str = "none"
    first_seq: int = 0
    allow_direct: bool = False
    mirror_direct: bool = False
    discard_new_per_subject: bool = False
    sealed: bool = False
    deny_delete: bool = False
    deny_purge: bool = False
    allow_rollup_hdrs: bool = False
    consumer_limits: JsonObject = field(default_factory=JsonObject)
    allow_msg_ttl: bool = False
    subject_delete_marker_ttl: int = 0
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def from_request(cls, params: JsonObject) -> StreamConfig:
        """The configuration that a decoded request asks for, before defaults and checks."""
        known: JsonObject = {key: value for key, value in params.items() if key in _NAMES}
        known.setdefault("name", "")
        return cls(**known)

    @classmethod
    def from_stored(cls, stored: JsonObject) -> StreamConfig:
        """The configuration out of its stored form; fields of a later version are ignored."""
        return cls(**{key: value for key, value in stored.items() if key in _NAMES})

    @classmethod
    def of_entry(cls, stored: Any) -> StreamConfig:
        """The same out of an entry, whose bytes nobody vouches for. Raises BadEntry."""
        return cls(**typed.settings(cls, stored, _STORED, later=True))

    def to_stored(self) -> JsonObject:
        """A msgpack-able form with every field."""
        return {name: getattr(self, name) for name in _NAMES}

    def to_json(self, *, dynamic: bool = True) -> JsonObject:
        """As nats-server echoes it. `dynamic` adds the metadata about the server that answers."""
        body: JsonObject = {}
        for name in _NAMES:
            value = getattr(self, name)
            if name == "metadata":
                value = self._shown_metadata(dynamic)
            if value or name in _ALWAYS:
                body[name] = value
        return body

    def _shown_metadata(self, dynamic: bool) -> dict[str, str]:
        shown = dict(self.metadata)
        if dynamic:
            shown.update({"_nats.ver": NATS_VERSION, "_nats.level": str(API_LEVEL)})
        return dict(sorted(shown.items()))

    def with_level(self) -> StreamConfig:
        """A copy whose metadata holds what is stored about API levels and nothing about the server (ADR-44)."""
        metadata = {key: value for key, value in self.metadata.items() if key not in _DYNAMIC_METADATA}
        metadata[_REQUIRED_LEVEL] = "1" if self.allow_msg_ttl or self.subject_delete_marker_ttl > 0 else "0"
        return replace(self, metadata=metadata)

    @property
    def subject_bytes(self) -> list[bytes]:
        """The subjects as they stand on the wire."""
        return [subject.encode() for subject in self.subjects]


_NAMES: Final = tuple(f.name for f in fields(StreamConfig))
_STORED: Final[dict[str, typed.Test]] = {
    "name": typed.name,
    "subjects": typed.listed(typed.subject),
    "first_seq": typed.natural,
    "consumer_limits": lambda limits: all(map(typed.integer, limits.values())),
}
"""What the stored form must be beyond its types."""
_ALWAYS: Final = frozenset(
    (
        *("name", "retention", "max_consumers", "max_msgs", "max_bytes", "max_age", "max_msgs_per_subject"),
        *("max_msg_size", "discard", "storage", "num_replicas", "compression", "allow_direct", "mirror_direct"),
        *("sealed", "deny_delete", "deny_purge", "allow_rollup_hdrs", "consumer_limits", "allow_msg_ttl"),
    )
)


def _unknown_compression(value: Any) -> str:
    del value
    return "unknown compression algorithm"


_TRANSFORM: Final = Struct("SubjectTransformConfig", {"src": STRING, "dest": STRING})
_SOURCE: Final = Struct(
    "StreamSource",
    {
        "name": STRING,
        "opt_start_seq": UINT64,
        "opt_start_time": TIME,
        "filter_subject": STRING,
        "subject_transforms": Listed(_TRANSFORM, "[]server.SubjectTransformConfig"),
        "external": Struct("ExternalStream", {"api": STRING, "deliver": STRING}),
        "consumer": Struct("StreamConsumerSource", {"name": STRING, "deliver_subject": STRING}),
    },
)

UNSUPPORTED: Final[dict[str, str]] = {
    "mirror": "stream mirrors are not supported by this server",
    "sources": "stream sources are not supported by this server",
    "republish": "republish is not supported by this server",
    "subject_transform": "subject transforms are not supported by this server",
    "allow_msg_counter": "message counters are not supported by this server",
    "allow_atomic": "atomic batch publish is not supported by this server",
    "allow_msg_schedules": "message schedules are not supported by this server",
    "allow_batched": "batch publish is not supported by this server",
    "persist_mode": "async persist mode is not supported by this server",
}
"""Fields of later or other servers that are understood and refused, with what is said about them."""

FIELDS: Final[dict[str, Kind]] = {
    "name": STRING,
    "description": STRING,
    "subjects": STRINGS,
    "retention": Enum(("limits", "interest", "workqueue")),
    "max_consumers": INT,
    "max_msgs": INT64,
    "max_bytes": INT64,
    "max_age": DURATION,
    "max_msgs_per_subject": INT64,
    "max_msg_size": Scalar("int32"),
    "discard": Enum(("old", "new")),
    "storage": Enum(("file", "memory")),
    "num_replicas": INT,
    "no_ack": BOOL,
    "duplicate_window": DURATION,
    "placement": Struct("Placement", {"cluster": STRING, "tags": STRINGS, "preferred": STRING}),
    "mirror": _SOURCE,
    "sources": Listed(_SOURCE, "[]*server.StreamSource"),
    "compression": Enum(("none", "s2"), error=_unknown_compression),
    "first_seq": UINT64,
    "subject_transform": _TRANSFORM,
    "republish": Struct("RePublish", {"src": STRING, "dest": STRING, "headers_only": BOOL}),
    "allow_direct": BOOL,
    "mirror_direct": BOOL,
    "discard_new_per_subject": BOOL,
    "sealed": BOOL,
    "deny_delete": BOOL,
    "deny_purge": BOOL,
    "allow_rollup_hdrs": BOOL,
    "consumer_limits": Struct("StreamConsumerLimits", {"inactive_threshold": DURATION, "max_ack_pending": INT}),
    "allow_msg_ttl": BOOL,
    "subject_delete_marker_ttl": DURATION,
    "allow_msg_counter": BOOL,
    "allow_atomic": BOOL,
    "allow_msg_schedules": BOOL,
    "persist_mode": Enum(("", "default", "async")),
    "allow_batched": BOOL,
    "metadata": METADATA,
}

REQUEST: Final = Struct("StreamConfigRequest", {**FIELDS, "pedantic": BOOL})
"""Body of STREAM.CREATE and STREAM.UPDATE."""


def asks_for_unsupported(params: JsonObject) -> str | None:
    """What a request wants and this server cannot, in words; None when there is nothing."""
    for name, complaint in UNSUPPORTED.items():
        value = params.get(name)
        if (value and value != "default") or (name == "mirror" and value is not None):  # an empty one is a mirror, too
            return complaint
    return None


def placement_of(config: StreamConfig) -> JsonObject:
    """The placement without empty parts, as Go drops them."""
    return {key: value for key, value in config.placement.items() if value}
