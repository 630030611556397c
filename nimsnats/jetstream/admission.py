"""Whether a published message may be stored: the `Nats-*` headers, duplicates, sizes, and limits that refuse.

Owns the de-duplication table and the id of the last message. The order of the checks is nats-server's: it decides
which error a client sees. Everything here is a function of the replicated state and the batch's own time.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.expiry import parse_early_ttl, parse_ttl
from nimsnats.jetstream.search import describe, last_of
from nimsnats.jetstream.store import LAST_SEQUENCE, MessageStore
from nimsnats.protocol.gotext import quoted

MAX_HEADERS: Final = 65535
_STALE: Final = 16384
NatsHeaders = dict[bytes, bytes]

MSG_ID: Final = b"Nats-Msg-Id"
ROLLUP: Final = b"Nats-Rollup"
TTL: Final = b"Nats-TTL"
_EXPECTED_STREAM: Final = b"Nats-Expected-Stream"
_EXPECTED_LAST: Final = b"Nats-Expected-Last-Sequence"
_EXPECTED_SUBJECT_LAST: Final = b"Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT: Final = b"Nats-Expected-Last-Subject-Sequence-Subject"
_EXPECTED_ID: Final = b"Nats-Expected-Last-Msg-Id"


class Duplicate:
    """Not stored because the message with this id already is, as `seq`."""

    __slots__ = ("seq",)

    def __init__(self, seq: int) -> None:
        self.seq = seq


def ttl_of(value: bytes, rules: int) -> int:
    """Nanoseconds of a `Nats-TTL` value by the rules of its batch; -1 is never, 0 none. Raises ApiError 10165."""
    return parse_ttl(value) if rules else parse_early_ttl(value)


def nats_headers(block: bytes) -> NatsHeaders:
    """The `Nats-*` headers of a block; of repeated ones the first."""
    found: NatsHeaders = {}
    if b"\r\nNats-" in block:
        for line in block.split(b"\r\n"):
            if line.startswith(b"Nats-"):
                name, colon, value = line.partition(b":")
                if colon:
                    found.setdefault(name, value.strip(b" \t"))
    return found


class Admission:
    """The checks of one stream and what they remember."""

    def __init__(self) -> None:
        self.last_id = b""
        self.expected_last: int | None = None
        """The last sequence that matches the wildcard of the next message's expectation, where it was looked up."""
        self._ids: dict[bytes, tuple[int, int]] = {}

    def check(
        self,
        config: StreamConfig,
        store: MessageStore,
        subject: bytes,
        headers: bytes,
        named: NatsHeaders,
        payload: int,
        now: int,
        rules: int,
    ) -> ApiError | Duplicate | None:
        """None when the message may be stored. `named` are its `Nats-*` headers, `payload` its length in bytes, `rules`
        those of its batch."""
        if config.sealed:
            return errors.STREAM_SEALED()
        if store.last_seq >= LAST_SEQUENCE:
            return errors.STREAM_STORE_FAILED(err="the stream has used up its sequences")
        if 0 <= config.max_msg_size < len(headers) + payload:
            return errors.STREAM_MESSAGE_EXCEEDS_MAXIMUM()
        if len(headers) > MAX_HEADERS:
            return errors.STREAM_HEADER_EXCEEDS_MAXIMUM()
        if named:
            refused = self._check_headers(config, store, subject, named, now, rules)
            if refused is not None:
                return refused
            if TTL in named:
                try:
                    ttl_of(named[TTL], rules)
                except ApiError as error:
                    return error
        if config.discard == "new":
            return _check_room(config, store, subject, named, store.stored_size(subject, headers, payload))
        return None

    def _check_headers(
        self, config: StreamConfig, store: MessageStore, subject: bytes, named: NatsHeaders, now: int, rules: int
    ) -> ApiError | Duplicate | None:
        if rules > 1 and named.get(b"Nats-Batch-Id"):
            return errors.ATOMIC_PUBLISH_DISABLED()
        if b"Nats-Incr" in named:
            return errors.MESSAGE_INCR_DISABLED()
        expected = named.get(_EXPECTED_STREAM)
        if expected is not None and expected != config.name.encode() and (expected or not rules):
            return errors.STREAM_NOT_MATCH()
        if TTL in named and not config.allow_msg_ttl and _valid_ttl(named[TTL], rules):
            return errors.MESSAGE_TTL_DISABLED()
        refused = _check_expected(store, subject, named, self.expected_last)
        if refused is not None:
            return refused
        if b"Nats-Schedule" in named:
            return errors.MESSAGE_SCHEDULES_DISABLED()
        if b"Nats-Stream-Source" in named:
            return errors.MESSAGE_SOURCE_HDR_NOT_ALLOWED()
        if named.get(MSG_ID):
            seen = self._ids.get(named[MSG_ID])
            if seen is not None and seen[1] + config.duplicate_window > now:
                return Duplicate(seen[0])
        if named.get(_EXPECTED_ID, self.last_id) not in (b"", self.last_id):
            return errors.STREAM_WRONG_LAST_MSG_ID(id=self.last_id.decode("utf-8", "replace"))
        return _check_rollup(config, named)

    def stored(self, named: NatsHeaders, seq: int, now: int) -> None:
        """A message was given this sequence at this time."""
        self.last_id = named.get(MSG_ID, b"")
        if self.last_id:
            self._ids.pop(self.last_id, None)  # keeps the table in order of time
            self._ids[self.last_id] = (seq, now)

    def forget_ids(self, before: int) -> None:
        """Free ids stored before a time; what `check` answers does not depend on it. Ids are in order of time. At most
        `_STALE` at a time, which is more than a batch brings: others go with the next ones."""
        stale: list[bytes] = []
        for name, (_, at) in islice(self._ids.items(), _STALE):
            if at >= before:
                break
            stale.append(name)
        for name in stale:
            del self._ids[name]

    def dump(self) -> list[Any]:
        """A msgpack-able form."""
        return [self.last_id, [(name, seq, at) for name, (seq, at) in self._ids.items()]]

    def load(self, dumped: list[Any]) -> None:
        """Back from `dump`."""
        self.last_id = dumped[0]
        self._ids = {name: (seq, at) for name, seq, at in dumped[1]}


def _valid_ttl(text: bytes, rules: int) -> bool:
    try:
        return ttl_of(text, rules) != 0
    except ApiError:
        return False


def _check_expected(store: MessageStore, subject: bytes, named: NatsHeaders, found: int | None) -> ApiError | None:
    if named.get(_EXPECTED_SUBJECT_LAST):
        pattern = named.get(EXPECTED_SUBJECT) or subject
        last = last_of(store, (pattern,)) if found is None else found
        if named[_EXPECTED_SUBJECT_LAST] != b"%d" % last and _number(named[_EXPECTED_SUBJECT_LAST]) != last:
            return errors.STREAM_WRONG_LAST_SEQUENCE(seq=last)
    elif named.get(EXPECTED_SUBJECT):
        return errors.STREAM_EXPECTED_LAST_SEQ_PER_SUBJECT_INVALID()
    if named.get(_EXPECTED_LAST) and _number(named[_EXPECTED_LAST]) != store.last_seq:
        return errors.STREAM_WRONG_LAST_SEQUENCE(seq=store.last_seq)
    return None


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 20 else -1


def _check_rollup(config: StreamConfig, named: NatsHeaders) -> ApiError | None:
    value = named.get(ROLLUP)
    if not value:
        return None
    if not config.allow_rollup_hdrs or config.deny_purge:
        return errors.STREAM_ROLLUP_FAILED(err="rollup not permitted")
    if value.lower() not in (b"sub", b"all"):
        return errors.STREAM_ROLLUP_FAILED(
            err=f"rollup value invalid: {quoted(value.decode('utf-8', 'replace').lower())}"
        )
    return None


def _check_room(
    config: StreamConfig, store: MessageStore, subject: bytes, named: NatsHeaders, size: int
) -> ApiError | None:
    """Discard new: refuse what does not fit, unless it replaces the oldest message of its subject."""
    replaces = 0
    if 0 < config.max_msgs_per_subject <= store.index.count(subject):
        if config.discard_new_per_subject and not named.get(ROLLUP):
            return errors.STREAM_STORE_FAILED(err="maximum messages per subject exceeded")
        replaces = store.index.first(subject)
    if 0 < config.max_msgs <= store.messages and not replaces:
        return errors.STREAM_STORE_FAILED(err="maximum messages exceeded")
    if 0 < config.max_bytes < store.bytes + size:
        oldest = describe(store, replaces) if replaces else None
        if oldest is None or oldest[2] < size:
            return errors.STREAM_STORE_FAILED(err="maximum bytes exceeded")
    return None
