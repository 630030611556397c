"""Where and why a text is not JSON, in the words of Go's encoding/json.

Owns a scanner that runs only after Python's own decoder has refused a body: slow, small, and exact about the message.
"""

from __future__ import annotations

import re
from typing import Final

_TEXT: Final = rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'
_SIMPLE: Final = (
    rb'(?:-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|"' + _TEXT + rb'"|true|false|null|\[\]|\{\})'
)
_PLAIN_RUN: Final = re.compile(_TEXT)
_ITEM_RUN: Final = re.compile(rb"(?:[ \t\r\n]*+" + _SIMPLE + rb"[ \t\r\n]*+,)*+")
"""Elements of an array that cannot be what is wrong: nearly all of a large one."""
_DIGIT_RUN: Final = re.compile(rb"[0-9]*")
_SPACE_RUN: Final = re.compile(rb"[ \t\r\n]*")
_SPACE: Final = b" \t\r\n"
_NUMBER: Final = b"-0123456789"
_WORDS: Final = {ord("n"): b"null", ord("t"): b"true", ord("f"): b"false"}
_MAX_DEPTH: Final = 10_000


class _Refused(Exception):
    """The scanner's verdict, as text."""


def syntax_error(body: bytes) -> str:
    """Go's message for a body that is not JSON, with ` at offset N` as nats-server appends it."""
    scanner = _Scanner(body)
    try:
        while not scanner.finished():
            scanner.value(0)
    except _Refused as verdict:
        return str(verdict)
    except RecursionError:
        return "exceeded max depth"
    return "unexpected EOF"


def first_value_error(body: bytes) -> str | None:
    """Go's message when the first value of a body is not JSON, else None."""
    scanner = _Scanner(body)
    try:
        scanner.value(0)
    except _Refused as verdict:
        return str(verdict)
    except RecursionError:
        return "exceeded max depth"
    return None


def _quoted(char: int) -> str:
    if char == ord("'"):
        return "'\\''"
    if char == ord('"'):
        return "'\"'"
    if 32 <= char < 127:
        return f"'{chr(char)}'"
    short = {9: "\\t", 10: "\\n", 13: "\\r"}.get(char)
    return f"'{short}'" if short else f"'\\x{char:02x}'" if char < 128 else f"'{chr(char)}'"


class _Scanner:
    """A recursive reader over the bytes; `at` is the next byte."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.at = 0

    def finished(self) -> bool:
        self._skip()
        return self.at >= len(self.body)

    def value(self, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise _Refused("exceeded max depth")
        char = self._peek()
        if char == ord("{"):
            self._object(depth)
        elif char == ord("["):
            self._array(depth)
        elif char == ord('"'):
            self._string()
        elif char in _WORDS:
            self._word(_WORDS[char])
        elif char in _NUMBER:
            self._number()
        else:
            raise self._bad(char, "looking for beginning of value")

    def _skip(self) -> None:
        if self.at < len(self.body) and self.body[self.at] in _SPACE:
            self._pass(_SPACE_RUN)

    def _pass(self, run: re.Pattern[bytes]) -> None:
        """Go behind the longest run."""
        match = run.match(self.body, self.at)
        assert match is not None
        self.at = match.end()

    def _byte(self) -> int:
        if self.at >= len(self.body):
            raise _Refused("unexpected EOF")
        return self.body[self.at]

    def _peek(self) -> int:
        self._skip()
        return self._byte()

    def _bad(self, char: int, context: str) -> _Refused:
        return _Refused(f"invalid character {_quoted(char)} {context} at offset {self.at + 1}")

    def _object(self, depth: int) -> None:
        self.at += 1
        char = self._peek()
        if char == ord("}"):
            self.at += 1
            return
        while True:
            if char != ord('"'):
                raise self._bad(char, "looking for beginning of object key string")
            self._string()
            char = self._peek()
            if char != ord(":"):
                raise self._bad(char, "after object key")
            self.at += 1
            self.value(depth + 1)
            char = self._peek()
            if char == ord("}"):
                self.at += 1
                return
            if char != ord(","):
                raise self._bad(char, "after object key:value pair")
            self.at += 1
            char = self._peek()

    def _array(self, depth: int) -> None:
        self.at += 1
        if self._peek() == ord("]"):
            self.at += 1
            return
        while True:
            self._pass(_ITEM_RUN)
            self.value(depth + 1)
            char = self._peek()
            if char == ord("]"):
                self.at += 1
                return
            if char != ord(","):
                raise self._bad(char, "after array element")
            self.at += 1

    def _string(self) -> None:
        self.at += 1
        while True:
            self._pass(_PLAIN_RUN)
            char = self._byte()
            if char == ord('"'):
                break
            if char < 32:
                raise self._bad(char, "in string")
            self.at += 1
            if char == ord("\\"):
                self._escape()
        self.at += 1

    def _escape(self) -> None:
        start = self.at - 1
        char = self._byte()
        if char == ord("u"):
            for _ in range(4):
                self.at += 1
                if self._byte() not in b"0123456789abcdefABCDEF":
                    raise self._bad_escape(start)
        elif char not in b'bfnrt\\/"':
            raise self._bad_escape(start)
        self.at += 1

    def _bad_escape(self, start: int) -> _Refused:
        shown = self.body[start : self.at + 1].decode("utf-8", "replace")
        return _Refused(f"invalid escape sequence `{shown}` in string at offset {start + 2}")

    def _word(self, word: bytes) -> None:
        for expected in word:
            char = self._byte()
            if char != expected:
                raise self._bad(char, f"in literal {word.decode()} (expecting {_quoted(expected)})")
            self.at += 1

    def _number(self) -> None:
        if self._byte() == ord("-"):
            self.at += 1
            if (char := self._byte()) not in b"0123456789":
                raise self._bad(char, "in numeric literal")
        if self._byte() == ord("0"):
            self.at += 1
        else:
            self._digits()
        if self.at < len(self.body) and self.body[self.at] == ord("."):
            self.at += 1
            if (char := self._byte()) not in b"0123456789":
                raise self._bad(char, "in numeric literal")
            self._digits()
        if self.at < len(self.body) and self.body[self.at] in b"eE":
            self.at += 1
            if self._byte() in b"+-":
                self.at += 1
            if (char := self._byte()) not in b"0123456789":
                raise self._bad(char, "in numeric literal")
            self._digits()

    def _digits(self) -> None:
        self._pass(_DIGIT_RUN)
