"""Frames: everything that one node's groups say to another node's in one turn, as msgpack.

Owns the encoding and the checks. Whatever `decode` returns has the right types, sizes and ranges; whether it
makes sense in a group is judged by the group. Nothing in here keeps state.

    frame   = [version, sender, receiver, incarnation, [[group, [item, ...]], ...]]
    item    = [kind, term, index, log term, commit, flags, hint, members, [[term, kind, messages, data], ...]]
            | [FETCH, index, term, request, offset, [block, ...]]
            | [PIECE, request, size, data, [[index, term, kind, messages, total, data], ...]]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import msgpack

from nimsnats.protocol.packed_bounds import Bounds, check
from nimsnats.raft.machine import Entry
from nimsnats.raft.membership import Membership
from nimsnats.raft.message import Kind, Message

pack_values = cast("Callable[[Any], bytes]", msgpack.packb)  # pyright: ignore[reportUnknownMemberType]
_unpackb = cast("Callable[..., Any]", msgpack.unpackb)  # pyright: ignore[reportUnknownMemberType]

VERSION: Final = 1
MAX_FRAME: Final = 128 << 20
MAX_MANIFEST: Final = 1 << 30
"""Bytes of what describes a snapshot, a machine's state included; it comes in pieces."""
_MAX_INTEGER: Final = 1 << 60
_MAX_NAME: Final = 512
_MAX_ITEMS: Final = 1 << 17
_MAX_MEMBERS: Final = 1 << 16
_MAX_MESSAGES: Final = 1 << 24
"""Messages in one entry. Their sum over a log has to fit into the 64 bits that storage has for it."""
_BOUNDS: Final = Bounds(size=MAX_FRAME, elements=1 << 20, containers=1 << 19, depth=16, maps=False)
"""Of a frame. A turn's frame holds about `peers._FRAME_BYTES`; full of heartbeats alone, that is a
quarter million lists. Python never takes more than some 100 MiB for one."""
_MANIFEST: Final = Bounds(size=MAX_MANIFEST, elements=1 << 20, containers=1 << 19, depth=16, maps=False)
_SMALL: Final = 4096
"""Bytes up to which a value is not counted before it is read: it cannot grow to more than 40 MiB, for a moment."""
_REJECT, _FORCE = 1, 2
FETCH: Final = 32
PIECE: Final = 33


class Malformed(Exception):
    """Bytes that are no frame of ours. The text says why."""


class WrongVersion(Malformed):
    """A frame of another version of the protocol."""


@dataclass(slots=True)
class Fetch:
    """A follower asks for a part of the snapshot at (`index`, `term`): of the manifest from `offset`, or
    `blocks`."""

    index: int
    term: int
    request: int
    offset: int = 0
    blocks: Sequence[int] = ()


Block = tuple[int, int, int, int, int, bytes]
"""index, term, kind, messages, total, data."""


@dataclass(slots=True)
class Piece:
    """The answer: a part of the manifest whose length is `size`, or the first of the blocks asked for. A
    `size` of 0 means that the snapshot is not to be had (any more)."""

    request: int
    size: int
    data: bytes = b""
    blocks: Sequence[Block] = ()


Item = Message | Fetch | Piece


@dataclass(slots=True)
class Frame:
    """A decoded frame."""

    sender: str
    receiver: str
    incarnation: int
    groups: list[tuple[str, list[Item]]]


def pack(item: Item) -> list[Any]:
    """An item as plain values."""
    if isinstance(item, Message):
        flags = (_REJECT if item.reject else 0) | (_FORCE if item.force else 0)
        entries = [(entry.term, entry.kind, entry.messages, entry.data) for entry in item.entries]
        head = [int(item.kind), item.term, item.index, item.log_term, item.commit]
        return [*head, flags, item.hint, item.members, entries]
    if isinstance(item, Fetch):
        return [FETCH, item.index, item.term, item.request, item.offset, list(item.blocks)]
    return [PIECE, item.request, item.size, item.data, list(item.blocks)]


def weight(item: Item) -> int:
    """About how many bytes an item takes."""
    if isinstance(item, Message):
        return 64 + sum(len(entry.data) + 16 for entry in item.entries) if item.entries else 64
    return 64 + (len(item.data) + sum(len(block[5]) for block in item.blocks) if isinstance(item, Piece) else 0)


def encode(sender: str, receiver: str, incarnation: int, groups: Sequence[tuple[str, Sequence[Item]]]) -> bytes:
    """A frame as bytes."""
    packed = [(group, [pack(item) for item in items]) for group, items in groups]
    return pack_values([VERSION, sender, receiver, incarnation, packed])


def decode(frame: bytes) -> Frame:
    """A frame from bytes that nobody vouches for. Raises Malformed, WrongVersion."""
    if len(frame) > MAX_FRAME:
        raise Malformed(f"{len(frame)} bytes in a frame")
    fields = unpack_values(frame)
    if isinstance(fields, list) and fields and fields[0] != VERSION:
        raise WrongVersion(f"not protocol version {VERSION}")
    _, sender, receiver, incarnation, groups = _fields(fields, int, str, str, int, list)
    _number(incarnation, 1 << 64)
    decoded: list[tuple[str, list[Item]]] = []
    for group in groups:
        name, items = _fields(group, str, list)
        decoded.append((name, [_item(item, sender, receiver) for item in items]))
    return Frame(sender, receiver, incarnation, decoded)


def unpack_values(data: bytes, *, manifest: bool = False) -> Any:
    """Plain values from bytes that nobody vouches for, in a frame or a manifest. Raises Malformed."""
    try:
        if len(data) > _SMALL:
            check(data, _MANIFEST if manifest else _BOUNDS)
        most = min(len(data), _MAX_ITEMS)
        return _unpackb(data, max_map_len=0, max_ext_len=0, max_array_len=most, max_str_len=_MAX_NAME)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"not msgpack of ours ({type(error).__name__})") from error


def _fields(value: Any, *types: type) -> Any:
    fields = _list(value)
    if tuple(map(type, fields)) != types:
        raise Malformed("a field of the wrong type")
    return fields


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise Malformed("a field of the wrong type")
    return cast("list[Any]", value)


def _number(value: int, limit: int = _MAX_INTEGER) -> None:
    if not 0 <= value < limit:
        raise Malformed("a number out of range")


def _numbers(*values: int) -> None:
    for value in values:
        _number(value)


def _item(item: Any, sender: str, receiver: str) -> Item:
    fields = _list(item)
    reader = _READERS.get(fields[0]) if fields and type(fields[0]) is int else None
    if reader is None:
        raise Malformed("an item of unknown kind")
    return reader(fields, sender, receiver)


def _message(item: Any, sender: str, receiver: str) -> Message:
    kind, term, index, log_term, commit, flags, hint, members, packed = _fields(
        item, int, int, int, int, int, int, int, bytes, list
    )
    _numbers(term, index, log_term, commit, hint)
    if not 0 <= flags <= _REJECT | _FORCE or len(members) > _MAX_MEMBERS or log_term > term + 1:
        raise Malformed("flags, members or terms out of range")
    if members:
        check_members(members)
    entries = _entries(packed, index, log_term, term)
    if entries and kind != Kind.APPEND:
        raise Malformed("entries where none belong")
    reject, force = bool(flags & _REJECT), bool(flags & _FORCE)
    return Message(
        Kind(kind), receiver, sender, term, index, log_term, commit, entries or (), reject, hint, force, members
    )


def _entries(packed: list[Any], before: int, least: int, most: int) -> list[Entry]:
    """Entries behind index `before`; terms never fall and never pass the sender's."""
    entries: list[Entry] = []
    for each in packed:
        term, kind, messages, data = _fields(each, int, int, int, bytes)
        before += 1
        if not least <= term <= most or not 0 <= kind < 256:
            raise Malformed("an entry's term or kind out of range")
        _number(before)
        _number(messages, _MAX_MESSAGES)
        if kind == 1:
            check_members(data)
        least = term
        entries.append(Entry(before, term, kind, data, None, messages))
    return entries


def check_members(data: bytes) -> None:
    """Raises Malformed when these bytes are no membership."""
    try:
        membership = Membership.decode(data)
        names = list(membership.everyone)
        "".join(names).encode()  # halves of characters can be read from JSON, and written nowhere
    except (ValueError, TypeError, AssertionError, RecursionError) as error:
        raise Malformed("no membership") from error
    if not all(type(name) is str and 0 < len(name) <= _MAX_NAME for name in names):
        raise Malformed("no membership")


def _fetch(item: Any, sender: str, receiver: str) -> Fetch:
    _, index, term, request, offset, blocks = _fields(item, int, int, int, int, int, list)
    _fields(blocks, *[int] * len(blocks))
    _numbers(index, term, request, offset, *blocks)
    return Fetch(index, term, request, offset, blocks)


def _piece(item: Any, sender: str, receiver: str) -> Piece:
    _, request, size, data, packed = _fields(item, int, int, int, bytes, list)
    _numbers(request, size)
    blocks: list[Block] = []
    for each in packed:
        index, term, kind, messages, total, block = _fields(each, int, int, int, int, int, bytes)
        _numbers(index, term, total)
        _number(messages, _MAX_MESSAGES)
        if not 0 <= kind < 256:
            raise Malformed("a block's kind out of range")
        blocks.append((index, term, kind, messages, total, block))
    return Piece(request, size, data, blocks)


_READERS: Final[dict[int, Callable[[Any, str, str], Item]]] = {
    **{int(kind): _message for kind in Kind},
    FETCH: _fetch,
    PIECE: _piece,
}
