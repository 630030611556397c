"""Which consumer configurations are allowed, and what is filled in when the client left it open.

Owns defaults, checks and update rules, with nats-server's texts and codes, in nats-server's order. Pure: the stream and
the server appear as small records of the limits that matter here.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.clock import format_duration, format_time
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.consumer.config import ConsumerConfig
from nimsnats.jetstream.errors import ApiError
from nimsnats.protocol.gotext import quoted
from nimsnats.protocol.overlap import Overlap, first_overlap
from nimsnats.protocol.subject import collide, has_wildcard, is_configurable

MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000 * MILLISECOND

ACK_WAIT: Final = 30 * SECOND
MAX_WAITING: Final = 512
MAX_ACK_PENDING: Final = 1000
EPHEMERAL_THRESHOLD: Final = 5 * SECOND
PINNED_TIMEOUT: Final = 120 * SECOND
MIN_HEARTBEAT: Final = 100 * MILLISECOND
MAX_NAME: Final = 255
_COLLISIONS: Final = 256
"""Filters of other consumers that are looked at in one step."""
_DIGITS: Final = 18
"""Of the longest number that is taken as text."""
MAX_DESCRIPTION: Final = 4 * 1024
MAX_METADATA: Final = 128 * 1024

_PULL_LIMITS: Final = ("max_batch", "max_expires", "max_bytes")
_INTEGER: Final = re.compile(r"([+-]?)([0-9]++)")
GROUP_NAME: Final = re.compile(r"[a-zA-Z0-9/_=-]{1,16}")
_BAD_NAME: Final = re.compile(r"[ \t\r\n\f\0.*>/\\]")


@dataclass(slots=True)
class StreamTraits:
    """What a stream's configuration says about its consumers. Limits: 0 or -1 is none, durations in nanoseconds."""

    name: str
    retention: str = "limits"
    subjects: list[str] = field(default_factory=list[str])
    replicas: int = 1
    max_consumers: int = -1
    max_ack_pending: int = 0
    inactive_threshold: int = 0


def traits_of(config: StreamConfig) -> StreamTraits:
    """What a stream's configuration says about its consumers."""
    limits = config.consumer_limits
    return StreamTraits(
        config.name,
        config.retention,
        config.subjects,
        config.num_replicas,
        config.max_consumers,
        int(limits.get("max_ack_pending", 0)),
        int(limits.get("inactive_threshold", 0)),
    )


@dataclass(slots=True)
class ServerLimits:
    """Caps of this node; -1 is none."""

    max_ack_pending: int = -1
    max_request_batch: int = -1
    clustered: bool = False


def with_defaults(
    config: ConsumerConfig, stream: StreamTraits, server: ServerLimits, pedantic: bool = False
) -> ConsumerConfig:
    """A copy with everything filled in that the client left open, except an ephemeral's inactivity threshold.

    Raises ApiError 10157 when `pedantic` and a given value would have to be changed.
    """
    filled = replace(config)

    def adjust(text: str) -> None:
        if pedantic:
            raise errors.PEDANTIC(err=text)

    for name in ("idle_heartbeat", "inactive_threshold", "priority_timeout", "max_waiting", *_PULL_LIMITS):
        if getattr(filled, name) < 0:
            adjust(f"{name} must not be negative")
            setattr(filled, name, 0)
    if not filled.push and filled.max_waiting == 0:
        filled.max_waiting = MAX_WAITING
    acked = filled.ack_policy in ("explicit", "all")
    if filled.ack_wait == 0 and acked:
        filled.ack_wait = ACK_WAIT
    if filled.max_deliver == 0 or filled.max_deliver < -1:
        if filled.max_deliver < -1:
            adjust("max_deliver must be set to -1")
        filled.max_deliver = -1
    if filled.backoff:
        if config.ack_wait not in (0, filled.backoff[0]):
            adjust("first backoff value has to equal batch AckWait")
        filled.ack_wait = filled.backoff[0]
    if not filled.push and filled.max_batch == 0 and server.max_request_batch > 0:
        filled.max_batch = server.max_request_batch
    if filled.max_ack_pending < -1:
        adjust("max_ack_pending must be set to -1")
        filled.max_ack_pending = -1
    for name in ("max_ack_pending", "inactive_threshold"):
        if getattr(filled, name) == 0 and getattr(stream, name) > 0:
            adjust(f"{name} must be set if it's configured in stream limits")
            setattr(filled, name, getattr(stream, name))
    if filled.max_ack_pending == 0 and acked:
        filled.max_ack_pending = _default_ack_pending(server)
    if filled.priority_policy == "pinned_client" and filled.priority_timeout == 0:
        filled.priority_timeout = PINNED_TIMEOUT
    return with_level(filled)


def with_level(config: ConsumerConfig) -> ConsumerConfig:
    """A copy whose metadata tells the API level that the configuration needs (ADR-44)."""
    level = "1" if config.pauses or config.priority_policy != "none" or config.priority_groups else "0"
    return replace(config, metadata={**config.metadata, "_nats.req.level": level})


def paused(config: ConsumerConfig, until: int) -> ConsumerConfig:
    """A copy that is paused until a time (nanoseconds since the epoch; 0 goes on)."""
    return with_level(replace(config, pause_until=format_time(until) if until else ""))


def _default_ack_pending(server: ServerLimits) -> int:
    if server.max_ack_pending > 0:
        return min(MAX_ACK_PENDING, server.max_ack_pending)
    return MAX_ACK_PENDING


def check(config: ConsumerConfig, stream: StreamTraits, server: ServerLimits) -> None:
    """Refuse what may not be. Expects a configuration with defaults. Raises ApiError."""
    _check_names(config)
    _check_unsupported(config)
    _check_replicas(config, stream, server)
    _check_values(config)
    if config.push:
        _check_push(config, stream)
    else:
        _check_pull(config, stream, server)
    _check_caps(config, stream, server)
    _check_direct(config)
    _check_filters(config)
    _check_start(config)
    _check_sampling(config.sample_freq)
    if config.flow_control and config.idle_heartbeat == 0:
        raise errors.CONSUMER_WITH_FLOW_CONTROL_NEEDS_HEARTBEATS()
    if sum(len(k) + len(v) for k, v in config.metadata.items()) > MAX_METADATA:
        raise errors.CONSUMER_METADATA_LENGTH(limit="128KB")
    _check_priority(config)


def _check_names(config: ConsumerConfig) -> None:
    for what, name in (("durable name", config.durable_name), ("name", config.name)):
        if len(name.encode()) > MAX_NAME:
            raise errors.CONSUMER_NAME_TOO_LONG(max=MAX_NAME)
        if _BAD_NAME.search(name):
            raise errors.STREAM_INVALID_CONFIG(err=f"consumer {what} can not contain '.', '*', '>', '\\', '/'")
    if config.durable_name and config.name and config.name != config.durable_name:
        raise errors.CONSUMER_CREATE_DURABLE_AND_NAME_MISMATCH()


def _check_unsupported(config: ConsumerConfig) -> None:
    """What later NATS versions know and this server does not: said clearly, with the code of the field."""
    if config.ack_policy == "flow_control":
        raise errors.CONSUMER_ACK_POLICY_INVALID()


def _check_replicas(config: ConsumerConfig, stream: StreamTraits, server: ServerLimits) -> None:
    if config.num_replicas < 0:
        raise errors.REPLICAS_COUNT_CANNOT_BE_NEGATIVE()
    if config.num_replicas > 1 and not server.clustered:
        raise errors.STREAM_REPLICAS_NOT_SUPPORTED()
    if config.num_replicas > stream.replicas:
        raise errors.CONSUMER_REPLICAS_EXCEEDS_STREAM()
    if stream.retention != "limits" and config.num_replicas not in (0, stream.replicas):
        raise errors.CONSUMER_REPLICAS_SHOULD_MATCH_STREAM()


def _check_values(config: ConsumerConfig) -> None:
    if any(wait < 0 for wait in config.backoff):
        raise errors.CONSUMER_BACK_OFF_NEGATIVE()
    if config.ack_wait < 0:
        raise errors.CONSUMER_ACK_WAIT_NEGATIVE()
    if config.max_deliver != -1 and len(config.backoff) > config.max_deliver:
        raise errors.CONSUMER_MAX_DELIVER_BACKOFF()
    if len(config.description.encode()) > MAX_DESCRIPTION:
        raise errors.CONSUMER_DESCRIPTION_TOO_LONG(max=MAX_DESCRIPTION)


def _check_push(config: ConsumerConfig, stream: StreamTraits) -> None:
    subject = config.deliver_subject.encode()
    if has_wildcard(subject):
        raise errors.CONSUMER_DELIVER_TO_WILDCARDS()
    if not is_configurable(subject):
        raise errors.CONSUMER_INVALID_DELIVER_SUBJECT()
    if any(collide(subject, captured.encode()) for captured in stream.subjects):
        raise errors.CONSUMER_DELIVER_CYCLE()
    if config.max_waiting != 0:
        raise errors.CONSUMER_PUSH_MAX_WAITING()
    if config.max_ack_pending > 0 and config.ack_policy == "none":
        raise errors.CONSUMER_MAX_PENDING_ACK_POLICY_REQUIRED()
    if 0 < config.idle_heartbeat < MIN_HEARTBEAT:
        raise errors.CONSUMER_SMALL_HEARTBEAT()


def _check_pull(config: ConsumerConfig, stream: StreamTraits, server: ServerLimits) -> None:
    if config.ack_policy == "none" and stream.retention == "workqueue":
        raise errors.CONSUMER_PULL_REQUIRES_ACK()
    if config.rate_limit_bps > 0:
        raise errors.CONSUMER_PULL_WITH_RATE_LIMIT()
    if config.idle_heartbeat > 0:
        raise errors.CONSUMER_HB_REQUIRES_PUSH()
    if config.flow_control:
        raise errors.CONSUMER_FC_REQUIRES_PUSH()
    if 0 < config.max_expires < MILLISECOND:
        raise errors.CONSUMER_MAX_REQUEST_EXPIRES_TOO_SMALL()
    if 0 < server.max_request_batch < config.max_batch:
        raise errors.CONSUMER_MAX_REQUEST_BATCH_EXCEEDED(limit=server.max_request_batch)


def _check_caps(config: ConsumerConfig, stream: StreamTraits, server: ServerLimits) -> None:
    for limit in (server.max_ack_pending, stream.max_ack_pending):
        if 0 < limit < config.max_ack_pending:
            raise errors.CONSUMER_MAX_PENDING_ACK_EXCESS(limit=limit)
    if 0 < stream.inactive_threshold < config.inactive_threshold:
        raise errors.CONSUMER_INACTIVE_THRESHOLD_EXCESS(limit=format_duration(stream.inactive_threshold))


def _check_direct(config: ConsumerConfig) -> None:
    if not config.direct:
        return
    if not config.push:
        raise errors.CONSUMER_DIRECT_REQUIRES_PUSH()
    if config.durable:
        raise errors.CONSUMER_DIRECT_REQUIRES_EPHEMERAL()


def _check_filters(config: ConsumerConfig) -> None:
    if config.filter_subject and config.filter_subjects:
        raise errors.CONSUMER_DUPLICATE_FILTER_SUBJECTS()
    if config.filter_subject and not is_configurable(config.filter_subject.encode()):
        raise errors.STREAM_INVALID_CONFIG(err="invalid subject")
    overlap = first_overlap([subject.encode() for subject in config.filter_subjects])
    for index, subject in enumerate(config.filter_subjects):
        if not subject:
            raise errors.CONSUMER_EMPTY_FILTER()
        if not is_configurable(subject.encode()):
            raise errors.STREAM_INVALID_CONFIG(err="invalid subject")
        if overlap is not None and index == overlap[0]:
            raise errors.CONSUMER_OVERLAPPING_SUBJECT_FILTERS()


def _check_start(config: ConsumerConfig) -> None:
    policy = config.deliver_policy
    sequence, time = config.opt_start_seq > 0, config.opt_start_time != ""

    def refuse(text: str) -> ApiError:
        return errors.CONSUMER_INVALID_POLICY(err=f"consumer delivery policy is deliver {text}")

    if policy in ("all", "last", "new", "last_per_subject"):
        words = policy.replace("_", " ")
        if sequence or time:
            raise refuse(f"{words}, but optional start {'sequence' if sequence else 'time'} is also set")
        if policy == "last_per_subject" and not (config.filter_subject or config.filter_subjects):
            raise refuse(f"{words}, but optional filter subject is not set")
    elif policy == "by_start_sequence":
        if not sequence:
            raise refuse("by start sequence, but optional start sequence is not set")
        if time:
            raise refuse("by start sequence, but optional start time is also set")
    else:
        if not time:
            raise refuse("by start time, but optional start time is not set")
        if sequence:
            raise refuse("by start time, but optional start start sequence is also set")


def _check_sampling(sample: str) -> None:
    """The text after the colon is Go's strconv error."""
    if not sample:
        return
    digits = sample.removesuffix("%")
    number = _INTEGER.fullmatch(digits)
    if number is None or len(number[2].lstrip("0")) > _DIGITS:
        what = "invalid syntax" if number is None else "value out of range"
        raise errors.CONSUMER_INVALID_SAMPLING(err=f"strconv.Atoi: parsing {quoted(digits)}: {what}")


def sampled(sample: str) -> int:
    """How many of a hundred acknowledgements a `sample_freq` asks for. None where the text, which may be an entry's, is
    no number or a negative one."""
    number = _INTEGER.fullmatch(sample.removesuffix("%"))
    if number is None or number[1] == "-":
        return 0
    digits = number[2].lstrip("0")
    return 100 if len(digits) > 2 else int(digits or "0")


def _check_priority(config: ConsumerConfig) -> None:
    if config.priority_policy == "none":
        if config.priority_groups:
            raise errors.CONSUMER_PRIORITY_GROUP_WITH_POLICY_NONE()
        if config.priority_timeout:
            raise errors.CONSUMER_PINNED_TTL_WITHOUT_PRIORITY_POLICY_NONE()
        return
    if config.push:
        raise errors.CONSUMER_PUSH_WITH_PRIORITY_GROUP()
    if not config.priority_groups:
        raise errors.CONSUMER_PRIORITY_POLICY_WITHOUT_GROUP()
    for group in config.priority_groups:
        if not group:
            raise errors.CONSUMER_EMPTY_GROUP_NAME()
        if not GROUP_NAME.fullmatch(group):
            raise errors.CONSUMER_INVALID_GROUP_NAME()


_FIXED: Final = (
    ("deliver_policy", "deliver policy"),
    ("opt_start_seq", "start sequence"),
    ("opt_start_time", "start time"),
    ("ack_policy", "ack policy"),
    ("replay_policy", "replay policy"),
    ("idle_heartbeat", "heart beats"),
    ("flow_control", "flow control"),
)
_FIXED_LATER: Final = (("max_waiting", "max waiting"), ("mem_storage", "storage type"))


def check_update(old: ConsumerConfig, new: ConsumerConfig, bound: bool) -> None:
    """Refuse changes to what is fixed at creation. `bound`: somebody listens on the old deliver subject. ApiError."""
    for name, words in _FIXED:
        if getattr(old, name) != getattr(new, name):
            raise errors.CONSUMER_CREATE(err=f"{words} can not be updated")
    if old.deliver_subject != new.deliver_subject:
        if not old.push:
            raise errors.CONSUMER_CREATE(err="can not update pull consumer to push based")
        if not new.push:
            raise errors.CONSUMER_CREATE(err="can not update push consumer to pull based")
        if bound:
            raise errors.CONSUMER_NAME_EXIST()
    for name, words in _FIXED_LATER:
        if getattr(old, name) != getattr(new, name):
            raise errors.CONSUMER_CREATE(err=f"{words} can not be updated")


def check_workqueue(
    config: ConsumerConfig, others: list[ConsumerConfig], updating: bool
) -> Generator[None, None, None]:
    """The extra rules of a work-queue stream: explicit acks, everything delivered, no two consumers for a subject,
    which are looked for in steps. Raises ApiError."""
    if not updating:
        if config.ack_policy != "explicit":
            raise errors.CONSUMER_WQ_REQUIRES_EXPLICIT_ACK()
        if config.deliver_policy != "all":
            raise errors.CONSUMER_WQ_CONSUMER_NOT_DELIVER_ALL()
        if others and not config.filters:
            raise errors.CONSUMER_WQ_MULTIPLE_UNFILTERED()
    wanted = config.filters or (b">",)
    mine = Overlap(wanted)
    looked = 0
    for other in others:
        theirs = other.filters or (b">",)
        if any(map(mine.collides, theirs)):
            raise errors.CONSUMER_WQ_CONSUMER_NOT_UNIQUE()
        looked += len(theirs)
        if looked >= _COLLISIONS:
            looked = 0
            yield
