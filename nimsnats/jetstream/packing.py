"""msgpack, typed: the form of everything that the stream and meta groups write except message batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgpack

pack = cast("Callable[[Any], bytes]", msgpack.packb)  # pyright: ignore[reportUnknownMemberType]
"""Bytes of a value made of None, bool, int, str, bytes, list, tuple and dict."""

_unpackb = cast("Callable[..., Any]", msgpack.unpackb)  # pyright: ignore[reportUnknownMemberType]


def unpack(data: bytes) -> Any:
    """The value again (tuples come back as lists). Raises ValueError on nonsense."""
    try:
        return _unpackb(data, strict_map_key=False)
    except (TypeError, RecursionError) as error:  # a map or a list as a key; nested too deep
        raise ValueError(f"not msgpack of ours: {error}") from error
