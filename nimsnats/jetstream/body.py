"""What other nodes say, read into values of known types before anything is done with it.

Owns the one error for whatever is not what its kind of message has. What goes wrong after these functions have
returned is no peer's fault.
"""

from __future__ import annotations

from dataclasses import fields as fields_of
from typing import Any, Final, cast

from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.meta import StreamRecord

_PATTERN: Final = StreamConfig("")
_KINDS: Final[dict[str, type]] = {field.name: type(getattr(_PATTERN, field.name)) for field in fields_of(StreamConfig)}
_RECORD: Final = (str, str, str, int, dict, list, str)
_FOUNDERS: Final = (list, list)


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
    """A stream's configuration in stored form. Raises Nonsense."""
    if type(body) is not dict:
        raise Nonsense(f"{type(body).__name__} instead of a configuration")
    stored = cast("dict[Any, Any]", body)
    if type(stored.get("name")) is not str:
        raise Nonsense("a configuration without a name")
    for name, kind in _KINDS.items():
        if name in stored and type(stored[name]) is not kind:
            raise Nonsense(f"{name} is {type(stored[name]).__name__} instead of {kind.__name__}")
    texts(stored.get("subjects", []))
    return stored


def stream_record(body: object) -> StreamRecord:
    """A stream's line in the catalogue. Raises Nonsense."""
    found = listed(body)
    values = fields(found, *_RECORD, *(_FOUNDERS if len(found) > len(_RECORD) else ()))
    stored_config(values[4])
    for members in (values[5], *values[7:]):
        texts(members)
    return StreamRecord(*values)
