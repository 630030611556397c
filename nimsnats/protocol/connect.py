"""The JSON of CONNECT, read as nats-server reads it.

Owns types and defaults of the fields. It never decides who may connect: that is `broker.auth`. Go's decoder is the
yardstick: field names match in any letter case, `null` leaves a field alone, unknown fields are ignored, and a wrong
type anywhere is an error for the whole line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from nimsnats.protocol.json import BadJson, loads


class BadConnect(ValueError):
    """The argument of a CONNECT or INFO line is not what nats-server would accept; the text says why."""


@dataclass(slots=True)
class ConnectOptions:
    """What a client asked for. The defaults are those of a connection that has not sent CONNECT."""

    verbose: bool = True
    pedantic: bool = True
    echo: bool = True
    headers: bool = False
    no_responders: bool = False
    protocol: int = 0
    tls_required: bool = False
    name: str = ""
    lang: str = ""
    version: str = ""
    user: str = ""
    password: str = ""
    auth_token: str = ""
    nkey: str = ""
    sig: str = ""
    jwt: str = ""
    account: str = ""
    new_account: bool = False


_BOOLS = {
    field: field for field in ("verbose", "pedantic", "echo", "headers", "no_responders", "tls_required", "new_account")
}
_TEXTS = {
    "name": "name",
    "lang": "lang",
    "version": "version",
    "user": "user",
    "pass": "password",
    "auth_token": "auth_token",
    "nkey": "nkey",
    "sig": "sig",
    "jwt": "jwt",
    "account": "account",
}


def parse_connect(arg: bytes, options: ConnectOptions | None = None) -> ConnectOptions:
    """Fields of a CONNECT argument laid over `options` (a repeated CONNECT keeps what it does not name).

    Raises BadConnect for invalid JSON, a value that is not an object, or a field of the wrong type.
    """
    options = ConnectOptions() if options is None else options
    for key, value in parse_object(arg).items():
        if value is None:
            continue
        lowered = key.lower()
        if lowered in _BOOLS:
            if not isinstance(value, bool):
                raise BadConnect(f"CONNECT field {lowered!r} is not a boolean")
            setattr(options, _BOOLS[lowered], value)
        elif lowered in _TEXTS:
            if not isinstance(value, str):
                raise BadConnect(f"CONNECT field {lowered!r} is not a string")
            setattr(options, _TEXTS[lowered], value)
        elif lowered == "protocol":
            if not isinstance(value, int) or isinstance(value, bool):
                raise BadConnect("CONNECT field 'protocol' is not an integer")
            options.protocol = value
    return options


def parse_object(arg: bytes) -> dict[str, Any]:
    """A JSON object by Go's rules (`null` is an empty one, no NaN or Infinity). Raises BadConnect."""
    try:
        value: object = loads(arg)
    except BadJson as error:
        raise BadConnect(f"invalid JSON: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadConnect(f"expected a JSON object, got {type(value).__name__}")
    return cast("dict[str, Any]", value)
