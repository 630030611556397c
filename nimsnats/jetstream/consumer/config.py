"""What a consumer is configured to be: the record, how a request body becomes one, how it is echoed.

Owns the field list and its JSON form. Defaults and the rules about combinations live in `rules.py`. Durations are
nanoseconds, as on the wire; times are kept as the text that the client sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final

from nimsnats.jetstream import typed
from nimsnats.jetstream.api.decode import (
    BOOL,
    DURATION,
    INT,
    METADATA,
    STRING,
    STRINGS,
    TIME,
    UINT64,
    Enum,
    JsonObject,
    Listed,
    Struct,
    literal,
)
from nimsnats.jetstream.clock import ZERO_TIME
from nimsnats.jetstream.source import Filters
from nimsnats.version import API_LEVEL, NATS_VERSION

DELIVER_POLICIES: Final = ("all", "last", "new", "by_start_sequence", "by_start_time", "last_per_subject")

CONFIG: Final = Struct(
    "ConsumerConfig",
    {
        "durable_name": STRING,
        "name": STRING,
        "description": STRING,
        "deliver_policy": Enum(DELIVER_POLICIES, {"undefined": "all"}),
        "opt_start_seq": UINT64,
        "opt_start_time": TIME,
        "ack_policy": Enum(("none", "all", "explicit", "flow_control")),
        "ack_wait": DURATION,
        "max_deliver": INT,
        "backoff": Listed(DURATION, "[]time.Duration"),
        "filter_subject": STRING,
        "filter_subjects": STRINGS,
        "replay_policy": Enum(("instant", "original")),
        "rate_limit_bps": UINT64,
        "sample_freq": STRING,
        "max_waiting": INT,
        "max_ack_pending": INT,
        "flow_control": BOOL,
        "headers_only": BOOL,
        "max_batch": INT,
        "max_expires": DURATION,
        "max_bytes": INT,
        "deliver_subject": STRING,
        "deliver_group": STRING,
        "idle_heartbeat": DURATION,
        "inactive_threshold": DURATION,
        "num_replicas": INT,
        "mem_storage": BOOL,
        "direct": BOOL,
        "sourcing": BOOL,
        "metadata": METADATA,
        "pause_until": TIME,
        "priority_groups": STRINGS,
        "priority_policy": Enum(
            ("none", "overflow", "pinned_client", "prioritized"),
            error=lambda value: f"unknown priority policy: {literal(value)}",
        ),
        "priority_timeout": DURATION,
    },
)
"""The wire form of a consumer's configuration."""

CREATE_REQUEST: Final = Struct(
    "CreateConsumerRequest",
    {
        "stream_name": STRING,
        "config": CONFIG,
        "action": Enum(("", "create", "update"), error=lambda value: f"unknown consumer action: {literal(value)}"),
        "pedantic": BOOL,
    },
)

_ALWAYS: Final = frozenset({"deliver_policy", "ack_policy", "replay_policy", "num_replicas"})
"""Fields that are echoed even when they are zero."""

_LEVEL_KEYS: Final = ("_nats.ver", "_nats.level")


@dataclass(slots=True)
class ConsumerConfig:
    """One consumer's configuration, named as on the wire. Zero, empty and false mean "not set"."""

    durable_name: str = ""
    name: str = ""
    description: str = ""
    deliver_policy: str = "all"
    opt_start_seq: int = 0
    opt_start_time: str = ""
    ack_policy: str = "none"
    ack_wait: int = 0
    max_deliver: int = 0
    backoff: list[int] = field(default_factory=list[int])
    filter_subject: str = ""
    filter_subjects: list[str] = field(default_factory=list[str])
    replay_policy: str = "instant"
    rate_limit_bps: int = 0
    sample_freq: str = ""
    max_waiting: int = 0
    max_ack_pending: int = 0
    flow_control: bool = False
    headers_only: bool = False
    max_batch: int = 0
    max_expires: int = 0
    max_bytes: int = 0
    deliver_subject: str = ""
    deliver_group: str = ""
    idle_heartbeat: int = 0
    inactive_threshold: int = 0
    num_replicas: int = 0
    mem_storage: bool = False
    direct: bool = False
    sourcing: bool = False
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    pause_until: str = ""
    priority_groups: list[str] = field(default_factory=list[str])
    priority_policy: str = "none"
    priority_timeout: int = 0

    @classmethod
    def from_json(cls, body: JsonObject) -> ConsumerConfig:
        """The configuration of a decoded body (or of what `to_json` wrote); absent fields are not set."""
        config = cls(**body)
        config.metadata = {k: v for k, v in config.metadata.items() if k not in _LEVEL_KEYS}
        return config

    @classmethod
    def of_entry(cls, body: Any) -> ConsumerConfig:
        """The configuration out of an entry or a snapshot, whose bytes nobody vouches for. Raises BadEntry."""
        return cls.from_json(typed.settings(cls, body, _STORED, later=False))

    def to_json(self) -> JsonObject:
        """Every field that is set, and those that nats-server always shows."""
        body: JsonObject = {}
        for name in _NAMES:
            value: Any = getattr(self, name)
            if name in _ALWAYS or (value and not (name == "priority_policy" and value == "none")):
                body[name] = value
        return body

    def echo(self, *, generated_name: bool = False, dynamic: bool = True) -> JsonObject:
        """As shown in responses: with the version keys (unless in a list), without a name that the server drew."""
        body = self.to_json()
        if generated_name:
            body.pop("name", None)
        metadata = dict(self.metadata)
        if dynamic:
            metadata["_nats.ver"] = NATS_VERSION
            metadata["_nats.level"] = str(API_LEVEL)
        body["metadata"] = metadata
        return body

    @property
    def pauses(self) -> bool:
        """Whether `pause_until` names a time (Go clients send the zero time for none)."""
        return self.pause_until not in ("", ZERO_TIME)

    @property
    def durable(self) -> bool:
        """Whether the consumer outlives its clients."""
        return self.durable_name != ""

    @property
    def push(self) -> bool:
        """Whether messages go to a fixed subject instead of to requests."""
        return self.deliver_subject != ""

    @property
    def filters(self) -> Filters:
        """The subjects that the consumer wants, as bytes; empty for all."""
        if self.filter_subject:
            return (self.filter_subject.encode(),)
        return tuple(subject.encode() for subject in self.filter_subjects)


_NAMES: Final = tuple(f.name for f in fields(ConsumerConfig))
_STORED: Final[dict[str, typed.Test]] = {
    "opt_start_seq": typed.natural,
    "filter_subject": lambda value: value == "" or typed.subject(value),
    "filter_subjects": typed.listed(typed.subject),
}
"""What the stored form must be beyond its types."""
