"""Query parameters of the monitoring endpoints, with nats-server's complaints.

A `Reader` turns the text of one parameter into option values; an empty text is the zero value, as in nats-server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Options = dict[str, Any]
Reader = Callable[[str, str], Options]
"""(parameter name, text) -> keyword arguments of the builder. Raises `ParameterError`."""


class ParameterError(Exception):
    """A parameter that cannot be read or makes no sense; the text goes to the client with status 400."""


class NotMeant(ParameterError):
    """The request is for other servers, such as the one that leads: HTTP says so, over NATS this one keeps silent."""


_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_INT64: Final = 1 << 63
_UINT64: Final = 1 << 64
_MOST_DIGITS: Final = 20
_MOST_SHOWN: Final = 256
_STATES: Final = {"": 0, "open": 0, "closed": 1, "any": 2, "all": 2}


def read_all(query: Mapping[str, str], readers: Mapping[str, Reader]) -> Options:
    """The options of all parameters that `readers` knows; others are ignored. Raises `ParameterError`."""
    options: Options = {}
    for name, reader in readers.items():
        text = query.get(name, "")
        if text:
            options.update(reader(name, text))
    return options


def text(option: str) -> Reader:
    """A parameter that is taken as it is."""
    return lambda name, given: {option: given}


def boolean(option: str) -> Reader:
    """A parameter in one of Go's spellings of a truth value."""
    return lambda name, given: {option: _boolean(name, given)}


def integer(option: str) -> Reader:
    """A signed integer."""
    return lambda name, given: {option: _integer(name, given, "int", "Atoi", -_INT64, _INT64)}


def unsigned(option: str) -> Reader:
    """An unsigned integer."""
    return lambda name, given: {option: _integer(name, given, "uint64", "ParseUint", 0, _UINT64)}


def subscriptions(name: str, given: str) -> Options:
    """`subs`: a truth value, or `detail`."""
    if given.lower() == "detail":
        return {"subscriptions_detail": True}
    return {"subscriptions": _boolean(name, given)}


def connection_state(name: str, given: str) -> Options:
    """`state`: which connections to list."""
    state = _STATES.get(given.lower())
    if state is None:
        raise ParameterError(f"Error decoding state for {given[:_MOST_SHOWN]}")
    return {"state": state}


def _boolean(name: str, given: str) -> bool:
    if given in _TRUE:
        return True
    if given in _FALSE:
        return False
    raise ParameterError(
        f"Error decoding boolean for '{name}': strconv.ParseBool: parsing {_quoted(given)}: invalid syntax"
    )


def _integer(name: str, given: str, kind: str, function: str, low: int, end: int) -> int:
    complaint = "invalid syntax"
    if _INTEGER.fullmatch(given) and not (low == 0 and given[0] in "+-"):
        digits = given.lstrip("+-").lstrip("0") or "0"
        if len(digits) <= _MOST_DIGITS and low <= (value := int(given[:1].strip("+0123456789") + digits)) < end:
            return value
        complaint = "value out of range"
    raise ParameterError(
        f"Error decoding {kind} for '{name}': strconv.{function}: parsing {_quoted(given)}: {complaint}"
    )


def _quoted(given: str) -> str:
    """A parameter as a complaint shows it: its beginning, where it is absurdly long."""
    return json.dumps(given if len(given) <= _MOST_SHOWN else given[:_MOST_SHOWN] + "…", ensure_ascii=False)
