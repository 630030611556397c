"""What is told about a stream: StreamInfo and StreamState, as nats-server's JSON.

Owns the shape only; it changes nothing.
"""

from __future__ import annotations

from typing import Any, Final

from nimsnats.jetstream import search
from nimsnats.jetstream.api.decode import JsonObject
from nimsnats.jetstream.clock import format_time
from nimsnats.jetstream.stream import Stream

MAX_SUBJECTS: Final = 100_000
"""Subjects in one page of details."""


def stream_info(stream: Stream, *, dynamic: bool = True) -> JsonObject:
    """StreamInfo. `dynamic` adds the metadata about the answering server (not in lists)."""
    return {
        "config": stream.config.to_json(dynamic=dynamic),
        "created": format_time(stream.created),
        "state": stream_state(stream),
        "ts": format_time(stream.runtime.time_ns()),
    }


def stream_state(stream: Stream) -> JsonObject:
    """StreamState without details."""
    store = stream.store
    first = search.describe(store, store.first_seq) if store.messages else None
    state: JsonObject = {
        "messages": store.messages,
        "bytes": store.bytes,
        "first_seq": store.first_seq,
        "first_ts": format_time(first[1] if first else 0),
        "last_seq": store.last_seq,
        "last_ts": format_time(store.last_time),
    }
    if store.index:
        state["num_subjects"] = len(store.index)
    deleted = store.last_seq - store.first_seq + 1 - store.messages if store.messages else 0
    if deleted:
        state["num_deleted"] = deleted
    if store.lost:
        state["lost"] = {"msgs": store.lost, "bytes": store.lost_bytes}
    state["consumer_count"] = len(stream.consumers)
    return state


def detailed_info(stream: Stream, params: JsonObject) -> JsonObject:
    """StreamInfo with what STREAM.INFO was asked for besides."""
    info = stream_info(stream)
    state: dict[str, Any] = info["state"]
    page: JsonObject = {"total": 0, "offset": 0, "limit": 0}
    if params.get("deleted_details") and (gone := search.missing(stream.store)):
        state["deleted"] = gone
    wanted = params.get("subjects_filter", "").encode()
    if wanted:
        counts = {s.decode("utf-8", "replace"): n for s, n in stream.store.index.counts((wanted,))}
        if counts:
            offset = min(max(params.get("offset", 0), 0), len(counts))
            names = sorted(counts)[offset : offset + MAX_SUBJECTS]
            page = {"total": len(counts), "offset": offset, "limit": MAX_SUBJECTS}
            state["subjects"] = {name: counts[name] for name in names}
    return {**page, **info}
