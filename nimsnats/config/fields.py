"""Typed reading of a configuration tree: which keys a block may have, what type each has, and every error at once.

Owns: the error texts (nats-server's where it has them), suggestions for misspelt keys, and the readers of strings,
numbers, switches, durations, sizes and addresses. Knows no key by name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Final, TypeAlias

from nimsnats.config.durations import parse_duration
from nimsnats.protocol.conf import Item, Position, Tree, Value
from nimsnats.version import __version__

_INT64_MAX: Final = 2**63 - 1
_INT64_DIGITS: Final = 19
_LONGEST_REASON: Final = 1000
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")


class ConfigError(ValueError):
    """The configuration cannot be used: all the reasons, one a line."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = tuple(map(_one_line, reasons))
        super().__init__("\n".join(self.reasons))


def _one_line(reason: str) -> str:
    """A reason quotes what was written, which may be long, and may hold anything."""
    if len(reason) > _LONGEST_REASON:
        reason = f"{reason[: _LONGEST_REASON // 2]} … {reason[-_LONGEST_REASON // 4 :]}"
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in reason)


class FieldError(Exception):
    """The value of one key is wrong; `at` is where, unless that is the key itself."""

    def __init__(self, reason: str, at: Position | None = None) -> None:
        super().__init__(reason)
        self.at = at


class Report:
    """What was found wrong while reading a tree."""

    def __init__(self) -> None:
        self._errors: list[tuple[Position, str]] = []
        self.warnings: list[str] = []

    def error(self, at: Position, reason: str) -> None:
        """Note an error and go on reading."""
        self._errors.append((at, reason))

    def warn(self, at: Position, reason: str) -> None:
        """Note something to tell the operator that does not stop the server."""
        self.warnings.append(f"{at}: {reason}")

    def errors(self) -> list[str]:
        """All errors by file and line."""
        files = list(dict.fromkeys(at.file for at, _ in self._errors))
        self._errors.sort(key=lambda entry: (files.index(entry[0].file), entry[0].line, entry[0].column))
        return [f"{at}: {reason}" for at, reason in self._errors]


Reader: TypeAlias = Callable[[Item, str, Report], None]
"""Takes a value over: the item, the key as the manual writes it, where to report."""

Block: TypeAlias = "dict[str, Reader]"
"""Readers by lower-case key; the first name of several is the one the manual prefers."""


def known(keys: str, reader: Reader) -> Block:
    """One reader under several names: `known("host net", …)`."""
    first = keys.split()[0]

    def read(item: Item, _key: str, report: Report) -> None:
        reader(item, first, report)

    return dict.fromkeys(keys.split(), read)


def read_block(tree: Tree, block: Block, report: Report, *, ignore: Collection[str] = ()) -> None:
    """Hand every key of `tree` to its reader; report unknown keys, and wrong values of known ones."""
    for key, item in tree.items():
        name = key.lower()
        reader = block.get(name)
        if reader is not None:
            try:
                reader(item, name, report)
            except FieldError as error:
                report.error(error.at or item.at, str(error))
        elif not item.used and name not in ignore:
            supported = [other for other, reads in block.items() if not isinstance(reads, Unsupported)]
            close = difflib.get_close_matches(name, supported, n=1, cutoff=0.7)
            report.error(item.at, f'unknown field "{key}"' + (f' (did you mean "{close[0]}"?)' if close else ""))


class Unsupported:
    """Reader of a key that nats-server knows and we do not: an error, unless the value asks for what we do anyway."""

    def __init__(self, harmless: tuple[Value, ...]) -> None:
        self._harmless = harmless

    def __call__(self, item: Item, key: str, report: Report) -> None:
        if not any(type(item.value) is type(value) and item.value == value for value in self._harmless):
            report.error(item.at, f'field "{key}" is not supported by nimsnats {__version__} yet')


def not_supported(keys: str, *harmless: Value) -> Block:
    """Readers for keys that we do not support, but for the `harmless` values."""
    return dict.fromkeys(keys.split(), Unsupported(harmless))


def switched_off(keys: str) -> Block:
    """Unsupported switches, fine when off."""
    return not_supported(keys, False)


def into(target: object, attribute: str) -> Callable[[object], None]:
    """A store that sets one attribute."""
    assert hasattr(target, attribute), attribute
    return lambda value: setattr(target, attribute, value)


def string(store: Callable[[str], None]) -> Reader:
    """Reader of a string."""
    return lambda item, _key, _report: store(as_string(item))


def strings(store: Callable[[list[str]], None]) -> Reader:
    """Reader of a string or a list of strings."""
    return lambda item, key, _report: store(as_strings(item, key))


def integer(store: Callable[[int], None]) -> Reader:
    """Reader of an integer."""
    return lambda item, _key, _report: store(as_int(item))


def switch(store: Callable[[bool], None]) -> Reader:
    """Reader of true or false."""
    return lambda item, _key, _report: store(as_bool(item))


def port(store: Callable[[int], None]) -> Reader:
    """Reader of a port."""
    return lambda item, key, _report: store(as_port(item, key))


def duration(store: Callable[[float], None]) -> Reader:
    """Reader of a duration in seconds."""
    return lambda item, key, report: store(as_seconds(item, key, report))


def listen(target: object) -> Reader:
    """Reader of `host:port` into the attributes `host` and `port`."""

    def read(item: Item, _key: str, _report: Report) -> None:
        host, number = as_listen(item)
        into(target, "port")(number)
        if host is not None:
            into(target, "host")(host)

    return read


_GO_TYPES: Final[Mapping[type, str]] = {
    str: "string",
    bool: "bool",
    int: "int64",
    float: "float64",
    datetime: "time.Time",
    list: "[]interface {}",
    dict: "map[string]interface {}",
}


def type_name(value: Value) -> str:
    """What nats-server calls the type of a value."""
    return _GO_TYPES[type(value)]


def wrong_type(item: Item, wanted: str, plainly: str) -> FieldError:
    """nats-server's words, then plain ones."""
    return FieldError(f"interface conversion: interface {{}} is {type_name(item.value)}, not {wanted} ({plainly})")


def as_string(item: Item) -> str:
    """A string. Numbers are not: nats-server refuses them, too."""
    if isinstance(item.value, str):
        if _NO_TEXT.search(item.value):
            raise FieldError("a string holds bytes that are no UTF-8 text, or a NUL")
        return item.value
    raise wrong_type(item, "string", "a string is expected; put it in quotes")


def as_int(item: Item) -> int:
    """An integer."""
    if isinstance(item.value, int) and not isinstance(item.value, bool):
        return item.value
    raise wrong_type(item, "int64", "a number without quotes is expected")


def as_bool(item: Item) -> bool:
    """A switch."""
    if isinstance(item.value, bool):
        return item.value
    raise wrong_type(item, "bool", "true or false is expected")


def as_map(item: Item) -> Tree:
    """A map."""
    if isinstance(item.value, dict):
        return item.value
    raise wrong_type(item, "map[string]interface {}", "a block in braces is expected")


def as_list(item: Item, key: str) -> list[Item]:
    """A list."""
    if isinstance(item.value, list):
        return item.value
    raise FieldError(f"Expected {key} field to be an array, got {type_name(item.value)}")


def as_strings(item: Item, key: str) -> list[str]:
    """One string or a list of them."""
    if isinstance(item.value, str):
        return [as_string(item)]
    names: list[str] = []
    for element in as_list(item, key):
        try:
            names.append(as_string(element))
        except FieldError as error:
            raise FieldError(str(error), element.at) from None
    return names


def as_seconds(item: Item, key: str, report: Report) -> float:
    """A duration; a plain integer means seconds and earns nats-server's warning."""
    if isinstance(item.value, str):
        try:
            return parse_duration(item.value)
        except ValueError as error:
            raise FieldError(f"error parsing {key}: {error}") from None
    seconds = _in_range(as_int(item), key)
    report.warn(item.at, f'invalid use of field "{key}": {key} should be converted to a duration')
    return seconds


def _in_range(seconds: float, key: str) -> float:
    """Seconds that 64 bits hold as nanoseconds, as everywhere in NATS. Raises FieldError."""
    if abs(seconds) * 1e9 > _INT64_MAX:
        raise FieldError(f"{key}: {seconds} seconds are out of the range")
    return float(seconds)


def as_timeout(item: Item, block: str) -> float:
    """A number of seconds, whole or not, or a duration."""
    value = item.value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _in_range(value, block)
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except ValueError as error:
            raise FieldError(f"error parsing {block} config, 'timeout' {error}") from None
    raise FieldError(f"error parsing {block} config, 'timeout' wrong type")


def as_size(item: Item, key: str) -> int:
    """A size: an integer, or a string with a suffix K, M, G or T (times 1024)."""
    value = item.value
    if not isinstance(value, str):
        return as_int(item)
    number, suffix = value[:-1].strip(), value[-1:].upper()
    if not value:
        return 0
    if suffix not in "KMGT":
        raise FieldError(f"{key} sizes defined as strings must end in K, M, G, T")
    if not number.isascii() or not number.isdigit():
        raise FieldError(f'{key} size "{value}" is not a number with a suffix')
    digits = number.lstrip("0") or "0"
    size = int(digits[:_INT64_DIGITS]) << 10 * ("KMGT".index(suffix) + 1)
    if len(digits) > _INT64_DIGITS or size > _INT64_MAX:
        raise FieldError(f'{key} size "{value}" is out of the range')
    return size


def as_port(item: Item, key: str) -> int:
    """A port; -1 is any free one."""
    return check_port(as_int(item), key)


def check_port(number: int, key: str) -> int:
    """Refuse what is no port. Raises FieldError."""
    if not -1 <= number <= 65535:
        raise FieldError(f"{key} {number} is not a port: it must be between -1 (any free port) and 65535")
    return number


def as_listen(item: Item) -> tuple[str | None, int]:
    """`host:port` or a port alone; None where no host was given."""
    if isinstance(item.value, int) and not isinstance(item.value, bool):
        return None, check_port(item.value, "port")
    if isinstance(item.value, str):
        return split_address(item.value)
    raise FieldError(f"expected port or host:port, got {type_name(item.value)}")


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[ipv6]:port` or `:port`. Raises FieldError."""
    host, colon, digits = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (not bracketed and any(char in host for char in ":[]")):
        raise FieldError(f'could not parse address string "{text}"')
    try:
        number = int(digits)
    except ValueError:
        raise FieldError(f'could not parse port "{digits}"') from None
    return host[1:-1] if bracketed else host, check_port(number, "port")
