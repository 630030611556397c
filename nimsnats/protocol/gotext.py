"""Texts from outside as they may stand in an error or a log line: quoted as Go's `strconv.Quote` does.

Owns that one form. A control character cannot end the line that it is shown in, nor pass for another one.
"""

from __future__ import annotations

from typing import Final

_SHORT: Final = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def quoted(text: str) -> str:
    """In double quotes; what cannot be printed as Go's escapes."""
    return f'"{"".join(map(_shown, text))}"'


def _shown(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
