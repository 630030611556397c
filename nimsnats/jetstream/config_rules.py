"""What a stream's configuration may be: defaults, checks on creation, checks on update, in nats-server's order.

Owns the rules of nats-server's `checkStreamCfg` and `configUpdateCheck` as far as they concern one configuration.
Overlap with other streams and account limits are for `account.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.clock import MILLISECOND, SECOND, format_duration
from nimsnats.jetstream.config import DEFAULT_DUPLICATE_WINDOW, StreamConfig, placement_of
from nimsnats.jetstream.errors import ApiError
from nimsnats.protocol.overlap import first_overlap
from nimsnats.protocol.subject import collide, is_configurable, is_subset

MAX_NAME: Final = 255
MAX_DESCRIPTION: Final = 4096
MAX_METADATA: Final = 128 * 1024
MAX_REPLICAS: Final = 5
_BLANKS: Final = " \t\r\n\f\0"


def invalid(text: str) -> ApiError:
    """A configuration that nats-server calls invalid (10052)."""
    return errors.STREAM_INVALID_CONFIG(err=text)


def name_required() -> ApiError:
    """A stream without a name, or with one that it cannot have."""
    return invalid("stream name is required and can not contain '.', '*', '>', '\\', '/'")


def valid_name(name: str) -> bool:
    """Whether a stream or consumer may be called so."""
    return bool(name) and not any(char in name for char in _BLANKS + ".*>/\\")


def checked(asked: StreamConfig, *, pedantic: bool, window_limit: int = 0) -> StreamConfig:
    """With defaults filled in. `window_limit` caps `duplicate_window` (0: no cap). Raises ApiError."""
    if not valid_name(asked.name):
        raise name_required()
    if len(asked.name.encode()) > MAX_NAME:
        raise invalid(f"stream name is too long, maximum allowed is {MAX_NAME}")
    if len(asked.description.encode()) > MAX_DESCRIPTION:
        raise invalid(f"stream description is too long, maximum allowed is {MAX_DESCRIPTION}")
    if sum(len(key.encode()) + len(value.encode()) for key, value in asked.metadata.items()) > MAX_METADATA:
        raise invalid(f"stream metadata exceeds maximum size of {MAX_METADATA} bytes")
    config = replace(asked, placement=dict(asked.placement), consumer_limits=_limits(asked))
    _check_numbers(config, pedantic)
    _check_window(config, pedantic, window_limit)
    _check_flags(config, pedantic)
    _check_subjects(config)
    return config.with_level()


def _limits(config: StreamConfig) -> dict[str, int]:
    return {key: value for key, value in config.consumer_limits.items() if value}


def _check_numbers(config: StreamConfig, pedantic: bool) -> None:
    config.num_replicas = config.num_replicas or 1
    if config.num_replicas > MAX_REPLICAS:
        raise invalid(f"maximum replicas is {MAX_REPLICAS}")
    if config.num_replicas < 0:
        raise errors.REPLICAS_COUNT_CANNOT_BE_NEGATIVE()
    for name in ("max_msgs", "max_msgs_per_subject", "max_bytes", "max_msg_size", "max_consumers"):
        value: int = getattr(config, name)
        if value == 0 or value < -1:
            if pedantic and value < -1:
                raise errors.PEDANTIC(err=f"{name} must be set to -1")
            setattr(config, name, -1)
    if config.max_age < 0:
        raise invalid("max age can not be negative")
    if 0 < config.max_age < 100 * MILLISECOND:
        raise invalid("max age needs to be >= 100ms")


def _check_window(config: StreamConfig, pedantic: bool, limit: int) -> None:
    if config.duplicate_window == 0:
        window = DEFAULT_DUPLICATE_WINDOW
        if 0 < limit < window:
            if pedantic:
                raise errors.PEDANTIC(err="duplicate window limits are higher than current limits")
            window = limit
        if 0 < config.max_age < window:
            if pedantic:
                raise errors.PEDANTIC(err="duplicate window cannot be bigger than max age")
            window = config.max_age
        config.duplicate_window = window
    if config.duplicate_window < 0:
        raise invalid("duplicates window can not be negative")
    if 0 < config.max_age < config.duplicate_window:
        raise invalid("duplicates window can not be larger then max age")
    if 0 < limit < config.duplicate_window:
        raise invalid(f"duplicates window can not be larger then server limit of {format_duration(limit)}")
    if 0 < config.duplicate_window < 100 * MILLISECOND:
        raise invalid("duplicates window needs to be >= 100ms")


def _check_flags(config: StreamConfig, pedantic: bool) -> None:
    if config.deny_purge and config.allow_rollup_hdrs:
        raise invalid("roll-ups require the purge permission")
    if config.discard_new_per_subject:
        if config.discard != "new":
            raise invalid("discard new per subject requires discard new policy to be set")
        if config.max_msgs_per_subject <= 0:
            raise invalid("discard new per subject requires max msgs per subject > 0")
    if config.subject_delete_marker_ttl < 0:
        raise invalid("subject delete marker TTL must not be negative")
    if config.subject_delete_marker_ttl:
        if config.subject_delete_marker_ttl < SECOND:
            raise invalid("subject delete marker TTL must be at least 1 second")
        if not config.allow_msg_ttl:
            if pedantic:
                raise invalid("subject delete marker cannot be set if message TTLs are disabled")
            config.allow_msg_ttl = True
        if not config.allow_rollup_hdrs:
            if pedantic:
                raise invalid("subject delete marker cannot be set if roll-ups are disabled")
            config.allow_rollup_hdrs, config.deny_purge = True, False
    if config.placement.get("preferred"):
        raise invalid("preferred server not permitted in placement")
    config.placement = placement_of(config)


def _check_subjects(config: StreamConfig) -> None:
    """Fill in the default subject and refuse invalid, overlapping and reserved ones."""
    if not config.subjects:
        config.subjects = [config.name]
    subjects = config.subject_bytes
    overlap = first_overlap(subjects)
    seen: set[bytes] = set()
    for at, subject in enumerate(subjects):
        if not is_configurable(subject):
            raise invalid("invalid subject")
        if subject in seen:
            raise invalid("duplicate subjects detected")
        seen.add(subject)
        if not config.no_ack:
            _check_reserved(subject)
        elif subject == b">" and config.num_replicas > 1:
            raise invalid("capturing all subjects requires replicas of 1")
        if overlap is not None and at == overlap[0]:
            raise invalid(f'subject "{subject.decode()}" overlaps with "{subjects[overlap[1]].decode()}"')


def _check_reserved(subject: bytes) -> None:
    if subject == b">":
        raise invalid("capturing all subjects requires no-ack to be true")
    for reserved in (b"$JS.>", b"$JSC.>", b"$NRG.>"):
        if collide(subject, reserved) and not is_subset(subject, b"$JS.EVENT.>"):
            raise invalid("subjects that overlap with jetstream api require no-ack to be true")
    if collide(subject, b"$SYS.>") and not is_subset(subject, b"$SYS.ACCOUNT.>"):
        raise invalid("subjects that overlap with system api require no-ack to be true")


def check_create(config: StreamConfig) -> None:
    """Checks for new streams only. Raises ApiError."""
    if config.sealed:
        raise invalid("stream configuration for create can not be sealed")
    if config.mirror_direct:
        raise invalid("stream has no mirror but does have mirror direct")


def check_update(old: StreamConfig, new: StreamConfig) -> StreamConfig:
    """The configuration that `old` becomes when `new` (already checked) is asked for. Raises ApiError."""
    if new.storage != old.storage:
        raise invalid("stream configuration update can not change storage type")
    if new.retention != old.retention and "workqueue" in (new.retention, old.retention):
        raise invalid("stream configuration update can not change retention policy to/from workqueue")
    if old.sealed and not new.sealed:
        raise invalid("stream configuration update can not unseal a sealed stream")
    if old.deny_delete and not new.deny_delete:
        raise invalid("stream configuration update can not cancel deny message deletes")
    if old.deny_purge and not new.deny_purge:
        raise invalid("stream configuration update can not cancel deny purge")
    if old.allow_msg_ttl and not new.allow_msg_ttl:
        raise invalid("message TTL status can not be disabled")
    if new.sealed:
        return replace(new, max_age=0, discard="new", deny_delete=True, deny_purge=True, allow_rollup_hdrs=False)
    return new
