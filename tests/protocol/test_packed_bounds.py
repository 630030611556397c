"""What is counted is what the msgpack library would build, and nothing that is too much gets that far."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimsnats.jetstream.mail import _BOUNDS as MAIL  # pyright: ignore[reportPrivateUsage]
from nimsnats.protocol.packed_bounds import Bounds, OutOfBounds, check
from nimsnats.raft import wire
from nimsnats.raft.wire import Malformed, decode, unpack_values

WIDE = Bounds(size=1 << 30, elements=1 << 30, containers=1 << 30, depth=400)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.integers(0, 99), inner, max_size=20),
    max_leaves=30,
)


def count(value: Any) -> tuple[int, int, int]:
    """Elements, lists and maps, and levels of them."""
    if not isinstance(value, list | dict):
        return 0, 0, 0
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    below = [count(each) for each in inner]
    return (
        len(inner) + sum(elements for elements, _, _ in below),
        1 + sum(containers for _, containers, _ in below),
        (1 if inner else 0) + max((depth for _, _, depth in below), default=0),
    )


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_every_value_passes_within_its_own_measure_and_not_below(value: Any) -> None:
    data = msgpack.packb(value)
    elements, containers, depth = count(value)
    check(data, Bounds(len(data), elements, containers, depth))
    for less in (
        Bounds(len(data) - 1, elements, containers, depth),
        *([Bounds(len(data), elements - 1, containers, depth)] if elements else []),
        *([Bounds(len(data), elements, containers - 1, depth)] if containers else []),
        *([Bounds(len(data), elements, containers, depth - 1)] if depth else []),
    ):
        with pytest.raises(OutOfBounds):
            check(data, less)
    for cut in {0, len(data) // 3, len(data) // 2, len(data) - 1}:
        with pytest.raises(OutOfBounds):
            check(data[:cut], WIDE)
    with pytest.raises(OutOfBounds):
        check(data + b"\xc0", WIDE)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_what_passes_is_what_the_library_reads(data: bytes) -> None:
    try:
        check(data, WIDE)
    except OutOfBounds:
        return
    try:
        msgpack.unpackb(data, strict_map_key=False)
    except (TypeError, UnicodeDecodeError):
        pass  # an unhashable key, or text that is none: nothing that a count could show


MEGABYTE = 1 << 20
BOMBS = {
    "empty lists": b"\xdd" + MEGABYTE.to_bytes(4, "big") + b"\x90" * MEGABYTE,
    "empty maps": b"\xdd" + MEGABYTE.to_bytes(4, "big") + b"\x80" * MEGABYTE,
    "numbers": b"\xdd" + (2 * MEGABYTE).to_bytes(4, "big") + b"\xe0" * (2 * MEGABYTE),
    "lists of lists": b"\x9f" + (b"\xdd" + (131071).to_bytes(4, "big") + b"\x90" * 131071) * 15,
    "claims": (b"\xdd" + MEGABYTE.to_bytes(4, "big")) * 500 + b"\x00" * MEGABYTE,
    "depth": b"\x91" * MEGABYTE + b"\xc0",
    "depth of maps": b"\x81\x00" * MEGABYTE + b"\xc0",
    "a long list": b"\xdd\xff\xff\xff\xff" + b"\xc0" * MEGABYTE,
    "a long map": b"\xdf\xff\xff\xff\xff" + b"\xc0" * MEGABYTE,
    "long bytes": b"\xc6\xff\xff\xff\xff" + b"x" * MEGABYTE,
    "long text": b"\xdb\x7f\xff\xff\xff" + b"x" * MEGABYTE,
    "an extension": b"\xc9\xff\xff\xff\xff\x01" + b"x" * MEGABYTE,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_not_even_tried(bomb: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes that would be hundreds of them: nothing is built before all has been counted."""
    monkeypatch.setattr(wire, "_unpackb", lambda *_, **__: pytest.fail("something was built"))
    with pytest.raises(Malformed):
        decode(bomb)
    with pytest.raises(OutOfBounds):
        check(bomb, MAIL)


def test_a_small_frame_takes_little() -> None:
    """Those are not counted: what they claim is bounded by their own length, for each level."""
    chance = random.Random(1)
    small = [bomb[:4096] for bomb in BOMBS.values()] + [chance.randbytes(4096) for _ in range(200)]
    tracemalloc.start()
    try:
        for data in small:
            with pytest.raises(Malformed):
                decode(data)
        assert tracemalloc.get_traced_memory()[1] < 48 * MEGABYTE
    finally:
        tracemalloc.stop()


def test_a_frame_has_no_maps() -> None:
    with pytest.raises(Malformed):
        unpack_values(msgpack.packb([{}, b"x" * 8192]))
