"""Request bodies as nats-server reads them: Go's encoding/json with unknown fields refused.

Owns the little type system (`Struct`, `Scalar`, `Enum`, `Listed`, `Mapped`) in which request bodies are described, and
the texts of Go's decoding errors, because clients and tests compare them. It never knows what a field means.
Keys match case-insensitively, `null` leaves a field unset, several values in one body are merged, all as Go does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, cast

from nimsnats.jetstream import errors
from nimsnats.jetstream.api.syntax import first_value_error, syntax_error
from nimsnats.protocol import rfc3339
from nimsnats.protocol.json import BadJson, Number, Repeated, TooDeep, documents, text_of

JsonObject = dict[str, Any]

MOST_VALUES: Final = 1024
"""Values that one body may hold, which are laid over each other. nats-server takes any number; nobody means more than
one, and each costs as much as a small request."""


class DecodeError(Exception):
    """A body that does not fit; the text is what Go would say after `invalid JSON: `."""


class Kind(Protocol):
    """What a JSON value has to look like."""

    def read(self, value: Any, path: str, where: str) -> Any:
        """The value in canonical form. `path` is the Go name of the place, `where` the words before it."""
        ...


def _name_of(value: Any) -> str:
    """The word that Go uses for the JSON type of a value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | Number):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _mismatch(value: Any, path: str, where: str, go_type: str, literal: bool = False) -> DecodeError:
    shown = f"{_name_of(value)} {value}" if literal else _name_of(value)
    return DecodeError(f"json: cannot unmarshal {shown} into {where}{path} of type {go_type}")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A string, bool or integer, named by its Go type, which decides the range."""

    go_type: str

    def read(self, value: Any, path: str, where: str) -> Any:
        if self.go_type == "string":
            if type(value) is str:
                return value
        elif self.go_type == "bool":
            if type(value) is bool:
                return value
        elif type(value) is int:
            low, high = _RANGES.get(self.go_type, _INT64)
            if low <= value <= high:
                return value
            raise _mismatch(value, path, where, self.go_type, literal=True)
        elif isinstance(value, Number):
            raise _mismatch(value, path, where, self.go_type, literal=True)
        raise _mismatch(value, path, where, self.go_type)


_INT64: Final = (-(1 << 63), (1 << 63) - 1)
_RANGES: Final = {"uint64": (0, (1 << 64) - 1), "int32": (-(1 << 31), (1 << 31) - 1)}

STRING: Final = Scalar("string")
BOOL: Final = Scalar("bool")
INT: Final = Scalar("int")
INT64: Final = Scalar("int64")
UINT64: Final = Scalar("uint64")
DURATION: Final = Scalar("time.Duration")


def literal(value: Any) -> str:
    """A value as it stood in the body, but for blanks."""
    return value if isinstance(value, Number) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Enum:
    """One of a few words. `aliases` maps accepted words to canonical ones; `error` makes another complaint."""

    words: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    error: Callable[[Any], str] | None = None

    def read(self, value: Any, path: str, where: str) -> Any:
        if isinstance(value, str) and not isinstance(value, Number):
            word = self.aliases.get(value, value)
            if word in self.words:
                return word
        if self.error is not None:
            raise DecodeError(self.error(value))
        raise DecodeError(f"can not unmarshal {json.dumps(literal(value), ensure_ascii=False)}")


@dataclass(frozen=True, slots=True)
class Time:
    """An RFC 3339 time, as the text in which Go would write it again: `clock.parse_time` reads it without fail."""

    def read(self, value: Any, path: str, where: str) -> Any:
        if not isinstance(value, str) or isinstance(value, Number):
            raise DecodeError("Time.UnmarshalJSON: input is not a JSON string")
        try:
            return rfc3339.canonical(value)
        except rfc3339.BadTime as error:
            raise DecodeError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Listed:
    """A JSON array of one kind."""

    item: Kind
    go_type: str

    def read(self, value: Any, path: str, where: str) -> Any:
        if not isinstance(value, list):
            raise _mismatch(value, path, where, self.go_type)
        items = cast("list[Any]", value)
        return [self.item.read(item, f"{path}.{i}", "") for i, item in enumerate(items)]


@dataclass(frozen=True, slots=True)
class Mapped:
    """A JSON object with free keys and values of one kind."""

    item: Kind
    go_type: str

    def read(self, value: Any, path: str, where: str) -> Any:
        if not isinstance(value, dict):
            raise _mismatch(value, path, where, self.go_type)
        found: JsonObject = {}
        for key, item in _pairs(cast("JsonObject", value)):
            if item is not None:
                found[key] = self.item.read(item, f"{path}.{key}", where)
        return found


@dataclass(frozen=True, slots=True)
class Struct:
    """A JSON object with known fields, named as nats-server's Go type. Fields not given are absent from the result."""

    name: str
    fields: Mapping[str, Kind]
    strict: bool = True

    def read(self, value: Any, path: str, where: str) -> Any:
        if not isinstance(value, dict):
            raise _mismatch(value, path, where, f"server.{self.name}")
        result: JsonObject = {}
        for key, item in _pairs(cast("JsonObject", value)):
            known = key if key in self.fields else key.lower()
            kind = self.fields.get(known)
            if kind is None:
                if self.strict:
                    raise DecodeError(f'json: unknown field "{key}"')
            elif item is not None or isinstance(kind, Enum):
                read = kind.read(item, f"{path}.{known}", where)
                before = result.get(known)
                result[known] = read if before is None else _merged(before, read)
        return result


def _pairs(value: JsonObject) -> Iterable[tuple[str, Any]]:
    return value.pairs if isinstance(value, Repeated) else value.items()


def _merged(before: Any, after: Any) -> Any:
    """What Go makes of two values for one field: objects are laid over each other, otherwise the later one counts."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    merged = cast("JsonObject", before)
    for key, item in cast("JsonObject", after).items():
        merged[key] = _merged(merged[key], item) if key in merged else item
    return merged


STRINGS: Final = Listed(STRING, "[]string")
METADATA: Final = Mapped(STRING, "map[string]string")
TIME: Final = Time()


def decode(body: bytes, struct: Struct, strict: bool = True) -> JsonObject:
    """The fields given in a request body; an empty body gives none. Raises ApiError 10025 with Go's text."""
    try:
        return _decode(body, struct if strict else Struct(struct.name, struct.fields, strict=False))
    except DecodeError as error:
        raise errors.INVALID_JSON(err=error) from None


def _decode(body: bytes, struct: Struct) -> JsonObject:
    result: JsonObject = {}
    try:
        for count, value in enumerate(documents(text_of(body))):
            if count == MOST_VALUES:
                raise DecodeError(f"more than {MOST_VALUES} values in one request")
            if value is None:
                continue
            if not isinstance(value, dict):
                if (error := first_value_error(body)) is not None:  # Python ends `1.x` early, Go does not
                    raise DecodeError(error)
                raise _mismatch(value, "", "Go value", f"server.{struct.name}")
            _merged(result, struct.read(value, struct.name, "Go struct field "))
    except TooDeep as error:
        raise DecodeError(str(error)) from None
    except BadJson:
        raise DecodeError(syntax_error(body)) from None
    return result


class Encoded:
    """A value that is JSON already, made by `encode` a part at a time."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text


def encode(value: JsonObject) -> bytes:
    """Compact JSON as Go writes it: `<`, `>`, `&` and the two line separators escaped."""
    parts: list[Encoded] = []
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=partial(_set_aside, parts))
    for char, escape in _ESCAPES:
        if char in text:
            text = text.replace(char, escape)
    if not parts:
        return text.encode("utf-8", "replace")
    around = [piece.encode("utf-8", "replace") for piece in text.split(f'"{_PLACE}"')]
    return b"".join(piece for pair in zip(around, (*(part.text for part in parts), b""), strict=True) for piece in pair)


_PLACE: Final = "\ud800"
"""Where a value belongs that is put in at the end: half of a pair, which no text from outside holds
(`protocol/json.py`)."""


def _set_aside(parts: list[Encoded], value: object) -> str:
    if not isinstance(value, Encoded):
        raise TypeError(f"{type(value).__name__} is no JSON")
    parts.append(value)
    return _PLACE


_ESCAPES: Final = (
    ("<", "\\u003c"),
    (">", "\\u003e"),
    ("&", "\\u0026"),
    ("\u2028", "\\u2028"),
    ("\u2029", "\\u2029"),
)
