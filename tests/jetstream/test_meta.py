"""The catalogue as a state machine: who may begin a stream's group."""

from __future__ import annotations

import logging
from typing import Any

from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.kinds import META_STREAM_ADD, META_STREAM_UPDATE
from nimsnats.jetstream.meta import Meta, StreamRecord
from nimsnats.jetstream.packing import pack
from nimsnats.raft.machine import Entry
from nimsnats.runtime import Runtime

CONFIG = StreamConfig("S").to_stored()
OLD = StreamConfig("OLD").to_stored()


async def test_a_founder_that_left_is_none_any_more_even_when_it_is_back() -> None:
    """It has voted, and its replica was destroyed: a second beginning could vote otherwise."""
    meta, index = _meta(), 0

    def apply(kind: int, fields: list[Any]) -> None:
        nonlocal index
        index += 1
        meta.apply(Entry(index, 1, kind, pack(fields)))

    members = ["a@1", "b@2", "c@3"]
    apply(META_STREAM_ADD, StreamRecord("A", "S", "S-A-S-1", 1, CONFIG, members, "b@2", members).fields())
    apply(META_STREAM_ADD, ["A", "OLD", "S-A-OLD-1", 1, OLD, ["a@1"], "a@1"])  # as entered before there were founders
    record = meta.streams["A", "S"]
    assert (record.founders, record.left, meta.streams["A", "OLD"].founders) == (members, [], [])
    apply(META_STREAM_UPDATE, ["A", "S", CONFIG, ["a@1", "c@3", "d@4"]])
    apply(META_STREAM_UPDATE, ["A", "S", CONFIG, ["b@2", "c@3", "d@4"]])
    apply(META_STREAM_UPDATE, ["A", "S", CONFIG, ["a@1", "b@2", "c@3"]])
    assert (record.members, record.founder) == (members, "")
    assert record.founders == members, "what the group began with is the same for ever"
    assert record.left == ["b@2", "a@1"]
    later = _meta()
    await later.restore(meta.snapshot().state, [])
    assert later.streams == meta.streams


def _meta() -> Meta:
    return Meta(Runtime.real(), logging.getLogger("tests.meta"))
