"""What is told about a stream: StreamInfo and StreamState, as nats-server's JSON.

Owns the shape only; it changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from nimsnats.jetstream import search
from nimsnats.jetstream.api.decode import Encoded, JsonObject, encode
from nimsnats.jetstream.clock import format_time
from nimsnats.jetstream.stream import Stream

MAX_SUBJECTS: Final = 100_000
"""Subjects in one page of details."""
_LOOKS: Final = 4096
"""Subjects that are looked at for a page before others have their turn."""
_PART: Final = 4096
"""Items of details that are encoded before others have their turn."""
T = TypeVar("T")


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


async def detailed_info(stream: Stream, params: JsonObject) -> JsonObject:
    """StreamInfo with what STREAM.INFO was asked for besides. Others have their turn while it is put together."""
    details: JsonObject = {}
    page: JsonObject = {"total": 0, "offset": 0, "limit": 0}
    if params.get("deleted_details") and (gone := search.missing(stream.store)):
        details["deleted"] = await _encoded(b"[%b]", [gone[at : at + _PART] for at in range(0, len(gone), _PART)], list)
    wanted = params.get("subjects_filter", "").encode()
    if wanted:
        total, offset, names = await _page(stream, wanted, params.get("offset", 0))
        if total:
            page = {"total": total, "offset": offset, "limit": MAX_SUBJECTS}
            parts = [names[at : at + _PART] for at in range(0, len(names), _PART)]
            details["subjects"] = await _encoded(b"{%b}", parts, partial(_counts, stream))
    info = stream_info(stream)
    info["state"] |= details
    return {**page, **info}


async def _page(stream: Stream, wanted: bytes, asked: int) -> tuple[int, int, list[bytes]]:
    """How many subjects match, the offset that a page from `asked` on has, and its subjects."""
    await stream.sorted_in()
    total, offset, names = 0, max(asked, 0), list[bytes]()
    for part in stream.store.index.parts((wanted,), _LOOKS):
        names += part[max(offset - total, 0) : max(offset + MAX_SUBJECTS - total, 0)]
        total += len(part)
        await asyncio.sleep(0)
    return total, min(offset, total), names


def _counts(stream: Stream, names: list[bytes]) -> dict[str, int]:
    index = stream.store.index
    return {name.decode("utf-8", "replace"): count for name in names if (count := index.count(name))}


async def _encoded(form: bytes, parts: list[list[T]], value: Callable[[list[T]], Any]) -> Encoded:
    """One JSON value out of the items of several, each of which is made in a turn of its own."""
    items: list[bytes] = []
    for part in parts:
        items.append(encode(value(part))[1:-1])
        await asyncio.sleep(0)
    return Encoded(form % b",".join(filter(None, items)))
