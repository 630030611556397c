"""JSON from outside, decoded strictly and within bounds that do not depend on how deep the caller's stack is.

Owns the one decoder for bytes that somebody else has written: requests, CONNECT and INFO, documents in archives, bodies
and events of registries. It never knows what a field means: `jetstream/api/decode.py` reads request bodies field by
field as Go does, on top of this.

What Go's `encoding/json` does is done here: bytes that are no UTF-8 and halves of surrogate pairs become U+FFFD, NaN
and Infinity are no JSON, of a repeated key the last value counts (`Repeated` keeps the others for who merges them). Go
allows a depth of 10,000; nothing that this server is sent needs more than a few levels, so the bound is `MAX_DEPTH`.
Numbers are bounded before they are converted: Python's integers have no end, and converting their text is quadratic.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn, cast

MAX_DEPTH: Final = 128
"""Arrays and objects within each other."""
TOO_DEEP: Final = "exceeded max depth"
_DIGITS: Final = 20
"""Characters of the longest integer of 64 bits, with its sign."""
_LEAST: Final = -(1 << 63)
_END: Final = 1 << 64
_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_HALF: Final = re.compile("[\ud800-\udfff]")


class BadJson(ValueError):
    """A text that is no JSON, or more than this server takes; the text says why. `at`: the character where it ends."""

    def __init__(self, reason: str, at: int = 0) -> None:
        super().__init__(reason)
        self.at = at


class TooDeep(BadJson):
    """Nested deeper than `MAX_DEPTH`."""

    def __init__(self) -> None:
        super().__init__(TOO_DEEP)


class Number(str):
    """The literal of a number that is no integer of 64 bits, kept as text: Go refuses it for integers and quotes it."""

    __slots__ = ()


class Repeated(dict[str, Any]):
    """An object in which a key comes more than once: the last value of each, and all of them as `pairs`."""

    pairs: list[tuple[str, Any]]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = Repeated(found)
    repeated.pairs = pairs
    return repeated


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _literal(text: str) -> int | Number:
    return int(text) if len(text) <= _DIGITS else Number(text)


def _integer(text: str) -> int:
    value = int(text) if len(text) <= _DIGITS else _END
    if not _LEAST <= value < _END:
        raise ValueError("a number is out of range")
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


_values: Final = json.JSONDecoder(
    parse_int=_literal, parse_float=Number, parse_constant=_no_constant, object_pairs_hook=_object
)
_plain: Final = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_no_constant)


def text_of(data: bytes) -> str:
    """The characters of a document, U+FFFD for what is no UTF-8."""
    return data.decode("utf-8", "replace")


def loads(data: bytes | str) -> Any:
    """One document: dict, list, str, int (64 bits), finite float, bool or None. Raises BadJson."""
    text = data if isinstance(data, str) else text_of(data)
    check_depth(text)
    try:
        value: Any = _plain.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadJson(str(error)) from None
    return _whole(value) if "\\u" in text else value


def documents(text: str) -> Iterator[Any]:
    """The documents that follow each other in a text, one at a time, numbers beyond 64 bits and fractions as `Number`,
    repeated keys as `Repeated`. Raises BadJson for the first that is none. The work is linear in the text."""
    check_depth(text)
    escaped = "\\u" in text
    at = _end_of_space(text, 0)
    while at < len(text):
        try:
            value, at = _values.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise BadJson(str(error), at) from None
        yield _whole(value) if escaped else value
        at = _end_of_space(text, at)


def check_depth(text: str) -> None:
    """Refuse what is nested too deep, before anything recurses. Raises TooDeep."""
    if len(text) <= MAX_DEPTH or text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKEN.finditer(text):
        char = text[token.start()]
        if char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise TooDeep
        elif char != '"':
            depth -= 1


def _end_of_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _whole(value: Any) -> Any:
    """Halves of characters (`\\ud800`) replaced: they are no text, and cannot be written anywhere."""
    if isinstance(value, str):
        return value if isinstance(value, Number) else _HALF.sub("\ufffd", value)
    if isinstance(value, Repeated):
        return _object([(_HALF.sub("\ufffd", key), _whole(item)) for key, item in value.pairs])
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return {_HALF.sub("\ufffd", key): _whole(item) for key, item in pairs}
    if isinstance(value, list):
        return [_whole(item) for item in cast("list[Any]", value)]
    return value
