"""What a hostile client, an older version or another node may put into a log: generators of entries.

Owns the values only: arbitrary bytes, arbitrary msgpack, and bodies that are right but for one or two of their values,
for every kind of entry that there is.
"""

from __future__ import annotations

import os
from typing import Any

import msgpack
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from nimsnats.jetstream import kinds
from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.config import StreamConfig
from nimsnats.raft.machine import BLOCK

EXAMPLES = int(os.environ.get("NIMSNATS_EXAMPLES", "0"))
"""The one knob: how many examples a campaign has; 0 for as many as each test says."""


def campaign(examples: int) -> settings:
    """Hypothesis with so many examples, the same ones each time, however slow the machine is."""
    return settings(
        max_examples=EXAMPLES or examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # what fails is short enough, and shrinking it takes minutes
        suppress_health_check=list(HealthCheck),
    )


edges = st.sampled_from(
    [0, 1, -1, 2, 7, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1, -(2**63)]
)
numbers = edges | st.integers(0, 40) | st.integers(-(2**63), 2**64 - 1)
words = st.sampled_from(
    ["", "S", "c", "s.>", "s.a", "*", ">", "..", "a b", "x\n", "a.\x00", "2023-02-30T00:00:00Z"]
) | st.text(max_size=8)
scalars = st.none() | st.booleans() | numbers | words | st.binary(max_size=8) | st.floats()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.integers(0, 5), inner, max_size=2),
    max_leaves=4,
)
seqs = st.lists(numbers, max_size=8)


def deep(levels: int) -> Any:
    """Lists in each other."""
    found: Any = []
    for _ in range(levels):
        found = [found]
    return found


def mostly(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The right thing, or now and then something else."""
    return st.one_of(right, right, right, right, values)


def body(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A map of these fields, most of them right."""
    whole = st.fixed_dictionaries({name: mostly(right) for name, right in fields.items()})
    return whole | whole.flatmap(lambda made: st.sampled_from(sorted(made)).map(lambda gone: _without(made, gone)))


def _without(made: dict[str, Any], gone: str) -> dict[str, Any]:
    return {name: value for name, value in made.items() if name != gone}


@st.composite
def some(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """A few of these fields."""
    chosen = draw(st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True))
    return {name: draw(fields[name]) for name in chosen}


stream_configs = some(
    {
        "subjects": mostly(st.just(["s.>"])),
        "max_msgs": mostly(numbers),
        "max_bytes": mostly(numbers),
        "max_age": mostly(numbers),
        "max_msgs_per_subject": mostly(numbers),
        "discard": mostly(st.sampled_from(["old", "new"])),
        "retention": mostly(st.sampled_from(["limits", "interest", "workqueue"])),
        "first_seq": mostly(numbers),
        "duplicate_window": mostly(numbers),
        "placement": mostly(st.just({})) | st.just({"a": deep(500)}),
        "consumer_limits": mostly(st.dictionaries(st.sampled_from(["max_ack_pending", "inactive_threshold"]), numbers)),
        "allow_msg_ttl": mostly(st.booleans()),
        "subject_delete_marker_ttl": mostly(numbers),
        "sealed": mostly(st.just(False)),
        "metadata": mostly(st.dictionaries(words, words, max_size=2)),
        "later": values,
    },
).map(lambda changes: {**StreamConfig("S", subjects=["s.>"]).to_stored(), **changes})
times = st.sampled_from(
    [
        "2023-02-30T00:00:00Z",
        "2024-02-29T23:59:59Z",
        "9999-12-31T23:59:59.999999999Z",
        "0000-01-01T00:00:00Z",
        "now",
        "",
    ]
)
consumer_configs = some(
    {
        "durable_name": mostly(st.just("c")),
        "deliver_policy": mostly(
            st.sampled_from(["all", "last", "new", "by_start_sequence", "by_start_time", "last_per_subject"])
        ),
        "opt_start_time": mostly(times),
        "opt_start_seq": mostly(numbers),
        "pause_until": mostly(times),
        "ack_policy": mostly(st.sampled_from(["none", "all", "explicit"])),
        "ack_wait": mostly(numbers),
        "max_deliver": mostly(numbers),
        "max_ack_pending": mostly(numbers),
        "backoff": mostly(seqs),
        "filter_subject": mostly(words),
        "filter_subjects": mostly(st.lists(words, max_size=3)),
        "inactive_threshold": mostly(numbers),
        "sample_freq": mostly(words),
        "metadata": mostly(st.dictionaries(words, words, max_size=2)),
        "later": values,
    },
)
names = st.sampled_from(["c", "d", "e"])
runs = st.lists(st.tuples(numbers, numbers).map(list), max_size=4).map(
    lambda pairs: [part for pair in pairs for part in pair]
)
fours = st.lists(st.tuples(numbers, numbers, numbers, numbers).map(list), max_size=3).map(
    lambda rows: [part for row in rows for part in row]
)
states = st.tuples(
    *(mostly(st.lists(numbers, min_size=4, max_size=4)) for _ in range(2)),
    *(mostly(seqs) for _ in range(3)),
    mostly(runs),
).map(list)
headers = st.sampled_from(
    [
        b"",
        b"NATS/1.0\r\nNats-TTL: 99999999999999999999\r\n\r\n",
        b"NATS/1.0\r\nNats-TTL: 1s\r\nNats-Rollup: sub\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Id: a\r\n\r\n",
        b"NATS/1.0\r\nNats-Expected-Last-Sequence: 18446744073709551616\r\n\r\n",
        b"NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\nNats-TTL: never\r\n\r\n",
    ]
)


@st.composite
def batches(draw: st.DrawFn, archived: bool = False) -> bytes:
    """A batch of messages, whole or with a few bytes of it changed."""
    count = draw(st.integers(1, 4))
    subjects = [draw(st.sampled_from([b"s.a", b"s.b", b"\x01", b"s.\n"])) for _ in range(count)]
    batch = Batch(draw(st.integers(0, 2**64 - 1)), subjects, [b"x"] * count, [draw(headers) for _ in range(count)])
    if draw(st.booleans()):
        batch.told = draw(tolds | st.binary(max_size=8))
    if archived or draw(st.integers(0, 9)) == 0:
        from array import array

        batch.base = draw(st.integers(0, 2**64 - 1))
        batch.offsets = array("I", sorted(draw(st.integers(0, 99)) for _ in range(count)))
    data = bytearray(batch.encode())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


def packed(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """As msgpack."""
    return strategy.map(lambda value: msgpack.packb(value, use_bin_type=True) if _fits(value) else b"\xc1")


def _fits(value: Any) -> bool:
    try:
        msgpack.packb(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


tolds = packed(
    st.lists(st.lists(numbers, min_size=3, max_size=3) | st.tuples(numbers, numbers, numbers, runs), max_size=3)
)
made = {"name": names, "created": numbers, "generated": st.booleans()}
items = {
    kinds.CONSUMER_DELIVERED: st.tuples(numbers, numbers, numbers, numbers, fours, runs, seqs).map(list),
    kinds.CONSUMER_ACKS: st.tuples(numbers, numbers, runs, st.none() | st.tuples(numbers, numbers), runs).map(list),
}
STREAM = {
    kinds.MESSAGES: batches(),
    kinds.RESTORED: batches(archived=True),
    kinds.STREAM_TOLD: tolds,
    kinds.STREAM_CONFIG: packed(body(config=stream_configs) | body(config=stream_configs, created=numbers)),
    kinds.STREAM_DELETE_MESSAGE: packed(body(seq=numbers)),
    kinds.STREAM_PURGE: packed(body(filter=st.binary(max_size=5), seq=numbers, keep=numbers)),
    kinds.STREAM_EXPIRE: packed(body(now=numbers)),
    kinds.STREAM_LOST: packed(body(seqs=seqs)),
    kinds.STREAM_RESTORED: packed(body(last=numbers, time=numbers, lost=seqs, lost_bytes=numbers, now=numbers)),
    kinds.CONSUMER_CREATE: packed(
        body(**made, config=consumer_configs, action=st.sampled_from(["", "create", "update"]))
    ),
    kinds.CONSUMER_DELETE: packed(body(name=names)),
    kinds.CONSUMER_PAUSE: packed(body(name=names, until=numbers)),
    kinds.CONSUMER_RESET: packed(body(name=names, start=numbers)),
    kinds.CONSUMER_DELIVERED: packed(st.lists(mostly(items[kinds.CONSUMER_DELIVERED]), max_size=3)),
    kinds.CONSUMER_ACKS: packed(st.lists(mostly(items[kinds.CONSUMER_ACKS]), max_size=3)),
    kinds.CONSUMER_RESTORED: packed(body(**made, config=consumer_configs, state=states)),
}
"""The kinds of a stream's log."""
_key = st.sampled_from([["$G", "S"], ["$G", "T"], ["A", "S"]])
_members = st.lists(st.sampled_from(["n1@a", "n2@b", "n3@c"]), max_size=3)
META = {
    kinds.META_STREAM_ADD: packed(
        st.tuples(_key, st.just("S-G-S-1"), numbers, mostly(stream_configs), mostly(_members), words).map(
            lambda parts: [*parts[0], *parts[1:]]
        )
    ),
    kinds.META_STREAM_UPDATE: packed(
        st.tuples(_key, mostly(stream_configs), mostly(_members)).map(lambda parts: [*parts[0], *parts[1:]])
    ),
    kinds.META_STREAM_REMOVE: packed(mostly(_key)),
    kinds.META_GIVE_UP: packed(st.tuples(words, mostly(_members), mostly(_members)).map(list)),
}
"""The kinds of the catalogue's log."""


def entries(of: dict[int, st.SearchStrategy[bytes]], unlikely: int = 0) -> st.SearchStrategy[tuple[int, bytes]]:
    """An entry of one of these kinds, or of none that there is. `unlikely` is a kind that comes seldom."""
    unknown = st.sampled_from([9, 31, 39, 63, 70, 127, BLOCK | 3, BLOCK | 127])
    known = st.sampled_from(sorted(set(of) - {unlikely}))
    right = known.flatmap(lambda kind: st.tuples(st.just(kind), of[kind]))
    odd = st.binary(max_size=60) | packed(values) | st.just(b"\x91" * 900 + b"\xc0")
    wrong = st.tuples(st.sampled_from(sorted(of)) | unknown, odd)
    return st.one_of(right, right, right, wrong)
