"""What other nodes say, read into values of known types before anything is done with it.

Owns the one error for whatever is not what its kind of message has. What goes wrong after these functions have
returned is no peer's fault. What a message has in common with entries is read as entries are (`typed.py`).
"""

from __future__ import annotations

from typing import Any, cast

from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.meta import StreamRecord
from nimsnats.raft.machine import BadEntry


class Nonsense(Exception):
    """A body that is not what its kind of message has; the text says what is wrong, without any of its content."""


def listed(body: object) -> list[Any]:
    """A list. Raises Nonsense."""
    if type(body) is not list:
        raise Nonsense(f"{type(body).__name__} instead of a list")
    return cast("list[Any]", body)


def fields(body: object, *kinds: type) -> list[Any]:
    """A list of as many values, of exactly these types. Raises Nonsense."""
    found = listed(body)
    if len(found) != len(kinds):
        raise Nonsense(f"{len(found)} fields instead of {len(kinds)}")
    for at, (value, kind) in enumerate(zip(found, kinds, strict=True)):
        if type(value) is not kind:
            raise Nonsense(f"field {at + 1} is {type(value).__name__} instead of {kind.__name__}")
    return found


def headed(body: object, *kinds: type) -> tuple[list[Any], Any]:
    """A list of as many values of exactly these types, and a last one of any type. Raises Nonsense."""
    found = listed(body)
    if not found:
        raise Nonsense("nothing in it")
    return fields(found[:-1], *kinds), found[-1]


def texts(body: object) -> list[str]:
    """A list of texts. Raises Nonsense."""
    found = listed(body)
    return fields(found, *[str] * len(found))


def text(body: object) -> str:
    """A text. Raises Nonsense."""
    return fields([body], str)[0]


def stored_config(body: object) -> dict[str, Any]:
    """A stream's configuration in stored form, read as if an entry had it. Raises Nonsense."""
    try:
        StreamConfig.of_entry(body)
    except BadEntry as error:
        raise Nonsense(str(error)) from None
    return cast("dict[str, Any]", body)


def stream_record(body: object) -> StreamRecord:
    """A stream's line in the catalogue, read as if an entry had it. Raises Nonsense."""
    try:
        return StreamRecord.of_entry(body)
    except BadEntry as error:
        raise Nonsense(str(error)) from None
