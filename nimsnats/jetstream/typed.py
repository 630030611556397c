"""What an entry of a log says, read into values of known types before anything is changed by it.

Owns the reading of msgpack bodies: which fields, of which types, in which ranges, nested how deep. Whoever applies an
entry reads all of it through here first, so that bytes that no version of this server would write are refused as one
whole (`BadEntry`) and never half applied. The texts of refusals are recorded by every replica, so they are made of
nothing that differs between two nodes: no text of another library, no address. What a value means is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, Final, TypeVar, cast

from msgpack import UnpackException

from nimsnats.jetstream.packing import unpack
from nimsnats.protocol.subject import is_valid
from nimsnats.raft.machine import BadEntry

Test = Callable[[Any], bool]
MOST: Final = 2**64 - 1
"""The highest sequence, count or time: what a field of 64 bits holds."""
DEEPEST: Final = 32
"""Levels of objects and lists in each other; msgpack itself writes no more than some hundreds."""
_Record = TypeVar("_Record")


def opened(data: bytes) -> Any:
    """The value that msgpack bytes hold. Raises BadEntry."""
    try:
        return unpack(data)
    except (ValueError, TypeError, OverflowError, UnpackException):
        raise BadEntry("it is not msgpack") from None


def integer(value: Any) -> bool:
    """Any integer: what msgpack holds has at most 64 bits."""
    return type(value) is int


def natural(value: Any) -> bool:
    """An integer from 0 to 2^64 - 1: a sequence, a number, a count."""
    return type(value) is int and 0 <= value <= MOST


def positive(value: Any) -> bool:
    """An integer from 1 to 2^64 - 1."""
    return type(value) is int and 1 <= value <= MOST


def flag(value: Any) -> bool:
    """True or false."""
    return type(value) is bool


def text(value: Any) -> bool:
    """A string."""
    return type(value) is str


def name(value: Any) -> bool:
    """A string that is not empty."""
    return type(value) is str and value != ""


def octets(value: Any) -> bool:
    """Bytes."""
    return type(value) is bytes


def anything(value: Any) -> bool:
    """Whatever it is: it is read by somebody else."""
    del value
    return True


def listed(test: Test) -> Test:
    """A list of such values."""
    return lambda value: type(value) is list and all(map(test, cast("list[Any]", value)))


def integers(value: Any) -> bool:
    """A list of integers, looked at in C: there may be one for every message."""
    return type(value) is list and {int}.issuperset(map(type, cast("list[Any]", value)))


def naturals(value: Any) -> bool:
    """A list of integers that are not below 0, as fast."""
    return integers(value) and min(cast("list[int]", value), default=0) >= 0


def position(value: Any) -> bool:
    """The sequence of the last message that was passed: -1 is the one in front of 0."""
    return value == -1 or natural(value)


def structure(value: Any) -> bool:
    """A map with strings for keys, of plain values that are nested at most `DEEPEST` levels."""
    return type(value) is dict and _plain(value, DEEPEST)


def _plain(value: Any, depth: int) -> bool:
    if type(value) is dict:
        items = cast("dict[Any, Any]", value)
        return depth > 0 and all(type(key) is str and _plain(item, depth - 1) for key, item in items.items())
    if type(value) is list:
        return depth > 0 and all(_plain(item, depth - 1) for item in cast("list[Any]", value))
    return value is None or type(value) in (str, int, bool, float)


def _words(value: Any) -> bool:
    return type(value) is dict and all(
        type(key) is str and type(item) is str for key, item in cast("dict[Any, Any]", value).items()
    )


def subject(value: Any) -> bool:
    """A subject or filter as text."""
    return type(value) is str and is_valid(value.encode())


def mapping(value: Any, needed: Mapping[str, Test], more: Mapping[str, Test] | None = None) -> dict[str, Any]:
    """A map that has all the `needed` keys, perhaps some of `more`, and values that pass their tests; others are left
    to later versions. Raises BadEntry."""
    if type(value) is not dict:
        raise BadEntry("it is not a map")
    found = cast("dict[Any, Any]", value)
    for key, test in needed.items():
        if key not in found:
            raise BadEntry(f"{key} is missing")
        if not test(found[key]):
            raise BadEntry(f"{key} has a value that it cannot have")
    for key, test in (more or {}).items():
        if key in found and not test(found[key]):
            raise BadEntry(f"{key} has a value that it cannot have")
    return cast("dict[str, Any]", found)


def row(value: Any, tests: tuple[Test, ...], what: str, more: tuple[Test, ...] = ()) -> list[Any]:
    """A list of just these values, perhaps followed by all of `more`. Raises BadEntry that says `what` it is not."""
    if type(value) is not list:
        raise BadEntry(f"{what} is not a list")
    found = cast("list[Any]", value)
    expected = tests + more if len(found) == len(tests) + len(more) else tests
    if len(found) != len(expected) or not all(test(part) for test, part in zip(expected, found, strict=True)):
        raise BadEntry(f"{what} has other parts than it can have")
    return found


def rows(value: Any, tests: tuple[Test, ...], what: str) -> list[list[Any]]:
    """A list of lists of just these values. Raises BadEntry."""
    if type(value) is not list:
        raise BadEntry(f"{what} is not in a list")
    return [row(each, tests, what) for each in cast("list[Any]", value)]


_OF_ANNOTATION: Final[Mapping[str, Test]] = {
    "str": text,
    "int": integer,
    "bool": flag,
    "list[str]": listed(text),
    "list[int]": listed(integer),
    "dict[str, str]": _words,
    "JsonObject": structure,
}


def settings(kind: type[_Record], value: Any, tests: Mapping[str, Test], *, later: bool) -> dict[str, Any]:
    """The fields of a configuration `kind` (a dataclass) in its stored form, each of the type that the class gives it
    and passing its own test, if it has one. Fields that the class does not have are left out when they may come from a
    `later` version. Raises BadEntry."""
    if type(value) is not dict:
        raise BadEntry("config is not a map")
    stored = cast("dict[Any, Any]", value)
    found: dict[str, Any] = {}
    for each in fields(cast("Any", kind)):
        if each.name not in stored:
            if each.default is MISSING and each.default_factory is MISSING:
                raise BadEntry(f"config.{each.name} is missing")
            continue
        given = stored[each.name]
        if not _OF_ANNOTATION[cast("str", each.type)](given) or not tests.get(each.name, anything)(given):
            raise BadEntry(f"config.{each.name} has a value that it cannot have")
        found[each.name] = given
    if not later and len(found) != len(stored):
        raise BadEntry("config has a field that this version does not know")
    return found
