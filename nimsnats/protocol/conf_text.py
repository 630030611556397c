"""The text of a configuration file: where things stand in it, and the scalars that it is written in.

Owns: positions (line and column as nats-server counts them), bare, quoted and block strings, numbers with size
suffixes, dates, booleans. Knows nothing of keys, maps and lists (`conf`), nor of files and environments.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isinf
from typing import Final

_INT64_MAX: Final = 2**63 - 1
_INT64_DIGITS: Final = 19
_BARE: Final = re.compile(r"[^\n\r;,\]}\t '\\]*")
_DIGITS: Final = re.compile(r"[0-9]*")
_ADDRESS: Final = re.compile(r"[0-9.:\-]*")
_SIZE: Final = re.compile(r"[kKmMgGtTpPeE][bBiI]*")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_BLOCK_END: Final = re.compile(r"(?<=\n)\)(?=\r?\n|\r?\Z)")
_HEX_PAIR: Final = re.compile(r"[0-9a-fA-F]{2}")
_NUMBER_ENDS: Final = frozenset("\n\r};,]\t ")
_ESCAPES: Final[Mapping[str, str]] = {"t": "\t", "n": "\n", "r": "\r", '"': '"', "\\": "\\"}
_BOOLEANS: Final[Mapping[str, bool]] = {
    "true": True,
    "yes": True,
    "on": True,
    "false": False,
    "no": False,
    "off": False,
}
_SIZES: Final[Mapping[str, int]] = {"": 1} | {
    letter + tail: 1000**power if not tail else 1024**power
    for power, letter in enumerate("kmgtpe", start=1)
    for tail in ("", "b", "i", "ib")
}


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a configuration file. `column` counts bytes, from 0 on the first line and from 1 on the others."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class ConfError(Exception):
    """A configuration text that cannot be read; the message is nats-server's and names the line."""


@dataclass(frozen=True, slots=True)
class Variable:
    """An unquoted `$NAME`, still to be looked up."""

    name: str


Scalar = str | int | float | bool | datetime


class Text:
    """One configuration text and the reading position in it."""

    __slots__ = ("_known", "_newlines", "name", "offset", "text")

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        self.offset = 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._known = (0, 0, 0)
        """Start of a line, a place in it, and the bytes in between: a file may be one long line."""

    def position(self, offset: int) -> Position:
        """Where `offset` stands, as nats-server would say it."""
        line = bisect_left(self._newlines, offset)
        start = self._newlines[line - 1] if line else 0
        known_start, known, column = self._known
        if known_start != start or known > offset:
            known = start
            column = 0
        column += len(self.text[known:offset].encode(errors="surrogateescape"))
        self._known = (start, offset, column)
        return Position(self.name, line + 1, column)

    def error(self, reason: str, offset: int | None = None) -> ConfError:
        """The error to raise for `reason` at `offset` (the reading position when not given)."""
        line = bisect_left(self._newlines, self.offset if offset is None else offset) + 1
        return ConfError(f"Parse error on line {line}: '{reason}'")

    def peek(self) -> str:
        """The character at the reading position; empty at the end."""
        return self.text[self.offset : self.offset + 1]

    def shown(self) -> str:
        """The character at the reading position as error messages show it."""
        char = self.peek()
        return "\\n" if char == "\n" else char or "end of file"

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Move past what `pattern` (which may match nothing) finds here."""
        match = pattern.match(self.text, self.offset)
        if match:
            self.offset = match.end()

    def take(self, pattern: re.Pattern[str]) -> str:
        """What `pattern` finds here, moving past it."""
        start = self.offset
        self.skip(pattern)
        return self.text[start : self.offset]

    def scalar(self) -> Scalar | Variable:
        """Read one value that is neither a map nor a list."""
        char = self.peek()
        if char == "'":
            return self._raw()
        if char == '"':
            self.offset += 1
            return self._escaped(re.compile(r'[^"\\]*'), '"')
        if char == "(":
            return self._block()
        if char == "-" or (char.isascii() and char.isdigit()):
            return self._number()
        if char == ".":
            raise self.error("Floats must start with a digit")
        return self._bare(self.offset)

    def _raw(self) -> str:
        start = self.offset + 1
        end = self.text.find("'", start)
        if end < 0:
            raise self.error("Unexpected EOF.", len(self.text))
        self.offset = end + 1
        return self.text[start:end]

    def _escaped(self, plain: re.Pattern[str], quote: str) -> str:
        """Read up to `quote`, or for a bare word (no quote) up to the first character that ends one."""
        parts: list[bytes] = []
        while True:
            parts.append(self.take(plain).encode(errors="surrogateescape"))
            char = self.peek()
            if char == "\\":
                parts.append(self._escape())
                continue
            if char == quote:
                self.offset += len(quote)
                return b"".join(parts).decode(errors="surrogateescape")
            if quote:
                raise self.error("Unexpected EOF.", len(self.text))
            if char == "'":  # ends a bare word and disappears, in nats-server too
                self.offset += 1
            return b"".join(parts).decode(errors="surrogateescape")

    def _escape(self) -> bytes:
        letter = self.text[self.offset + 1 : self.offset + 2]
        if letter == "x":
            pair = self.text[self.offset + 2 : self.offset + 4]
            if not _HEX_PAIR.fullmatch(pair):
                reason = "but hit end of line" if "\n" in pair or not pair else f"but got '{pair}'"
                raise self.error(f"Expected two hexadecimal digits after '\\x', {reason}")
            self.offset += 4
            return bytes.fromhex(pair)
        plain = _ESCAPES.get(letter)
        if plain is None:
            allowed = r"\xXX, \t, \n, \r, \", \\."
            raise self.error(
                f"Invalid escape character '{letter}'. Only the following escape characters are allowed: {allowed}"
            )
        self.offset += 2
        return plain.encode()

    def _block(self) -> str:
        end = _BLOCK_END.search(self.text, self.offset)
        if not end:
            raise self.error("Unexpected EOF processing block.", len(self.text))
        value = self.text[self.offset + 1 : end.start()]
        self.offset = end.end()
        return value

    def _bare(self, start: int) -> Scalar | Variable:
        self.offset = start
        value = self._escaped(_BARE, "")
        raw = self.text[start : self.offset]
        if raw.endswith("'") or "\\" in raw:
            return value
        if value.lower() in _BOOLEANS:
            return _BOOLEANS[value.lower()]
        return Variable(value[1:]) if value.startswith("$") else value

    def _number(self) -> Scalar | Variable:
        """Read what starts like a number: an integer, a float, a date, an IP address, or after all a bare word."""
        start = self.offset
        negative = self.peek() == "-"
        self.offset += negative
        digits = self.take(_DIGITS)
        if not digits:
            if self.peek() == ".":
                raise self.error("Floats must start with a digit, not '.'.")
            raise self.error(f"Expected a digit but got '{self.shown()}'.")
        char = self.peek()
        if char == "-" and not negative:
            return self._date(start)
        if char == ".":
            return self._float(start, negative)
        suffix = self.take(_SIZE)
        if (self.peek() or "\n") in _NUMBER_ENDS:
            return self._integer(start, suffix)
        if negative and not suffix:
            return self._integer(start, "")
        return self._bare(start)

    def _integer(self, start: int, suffix: str) -> int:
        written = self.text[start : self.offset]
        unit = _SIZES.get(suffix.lower())
        if unit is None:
            raise self.error(f"Unknown size suffix in '{written}'.")
        digits = written.removesuffix(suffix)
        significant = digits.lstrip("-").lstrip("0")
        if len(significant) > _INT64_DIGITS:  # Python, too, refuses to read numbers of some thousand digits
            raise ConfError(f"integer '{written}' is out of the range")
        value = int(significant or "0") * (-unit if digits.startswith("-") else unit)
        if not -_INT64_MAX - 1 <= value <= _INT64_MAX:
            raise ConfError(f"integer '{written}' is out of the range")
        return value

    def _float(self, start: int, negative: bool) -> float | str:
        self.offset += 1
        if not self.take(_DIGITS):
            raise self.error(f"Floats must have a digit after the '.', but got '{self.shown()}' instead.")
        if self.peek() == "." and not negative:
            self.skip(_ADDRESS)
            return self.text[start : self.offset]
        value = float(self.text[start : self.offset])
        if isinf(value):
            raise ConfError(f"float '{self.text[start : self.offset]}' is out of the range")
        return value

    def _date(self, start: int) -> datetime:
        if self.offset - start != 4:
            raise self.error("All ISO8601 dates must be in full Zulu form.")
        match = _DATE.match(self.text, start)
        if not match:
            raise self._not_a_date(start)
        self.offset = match.end()
        try:
            return datetime.strptime(match.group(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            raise ConfError(f"expected Zulu formatted DateTime, but got '{match.group()}'") from None

    def _not_a_date(self, start: int) -> ConfError:
        """Say which character of a date that started well is wrong."""
        for self.offset, form in enumerate("0000-00-00T00:00:00Z", start):
            char = self.peek()
            if form == "0" and not (char.isascii() and char.isdigit()):
                return self.error(f"Expected digit in ISO8601 datetime, but found '{self.shown()}' instead.")
            if form not in ("0", char):
                return self.error(f"Expected '{form}' in ISO8601 datetime, but found '{self.shown()}' instead.")
        raise AssertionError("a text without a wrong character is a date")
