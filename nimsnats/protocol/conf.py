"""The NATS configuration format: text in, a tree with positions out.

Owns: pairs, maps, lists, comments, variables and includes, with nats-server's rules and error texts. Files and the
environment come in through arguments; what the keys mean is `nimsnats.config`'s business.

The rules (nats-server documentation, "Configuration", verified against the Go server):

- a pair is a key, then blanks, `=` or `:`, then a value that ends at a newline, `,`, `;`, `}` or `]`;
- maps `{ }` and lists `[ ]` nest, outer braces are optional, so JSON is valid;
- `#` and `//` start a comment where a token could start;
- an unquoted `$NAME` is looked up in the enclosing maps, innermost first, then in the environment, whose text is
  read as a value; `$2a$…` is a bcrypt hash and stands for itself;
- `include path` merges another file's keys into the map where it stands; the path is relative to the including file.

We are stricter than nats-server where it drops what was written (an unknown size suffix, a key without a value, the end
of a file that stops inside its outer braces), and more lenient where it refuses valid JSON (`[1,2]`).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final, TypeAlias

from nimsnats.protocol.conf_text import ConfError, Position, Scalar, Text, Variable

__all__ = ["ConfError", "Item", "Position", "Tree", "Value", "digest", "parse", "plain", "unreadable"]

Tree: TypeAlias = "dict[str, Item]"
Value: TypeAlias = "Scalar | list[Item] | Tree"
Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"
ReadFile: TypeAlias = Callable[[str], str]


@dataclass(slots=True)
class Item:
    """A value and where it stands: for a value of a map, where its key stands.

    `used` is set once a variable has referred to it: such a key need not be known to anybody.
    """

    value: Value
    at: Position
    used: bool = False


def parse(text: str, name: str, *, read: ReadFile, environ: Mapping[str, str]) -> Tree:
    """Read a configuration text; `name` is its path as shown in errors and the base of its includes.

    `read` returns the text of an included file or raises OSError. Raises ConfError at the first syntax error.
    """
    try:
        tree = _Parser(Text(text, name), _Outside(read, environ), (posixpath.normpath(name),), ()).document()
        _measure(tree, {})
    except RecursionError:
        raise ConfError(f"nested too deep: {name}, with what it includes and its variables") from None
    return tree


class _Outside:
    """Files and environment, which may refer to each other over and over: they come to an end."""

    def __init__(self, read: ReadFile, environ: Mapping[str, str]) -> None:
        self._read = read
        self._environ = environ
        self._files = self._lookups = 0

    def file(self, path: str) -> str:
        """The text of an included file. Raises OSError, ConfError."""
        self._files += 1
        if self._files > _MAX_FILES:
            raise ConfError(f"more than {_MAX_FILES} files are included")
        return self._read(path)

    def variable(self, name: str) -> str | None:
        """A variable of the environment. Raises ConfError."""
        self._lookups += 1
        if self._lookups > _MAX_LOOKUPS:
            raise ConfError(f"the environment is referred to more than {_MAX_LOOKUPS} times")
        return self._environ.get(name)


def _measure(value: Value, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values there are, and how deep they are nested, when each variable is written out: lists of lists of
    variables grow without end. Raises ConfError."""
    if not isinstance(value, (dict, list)):
        return 1, 0
    if id(value) not in known:
        inner = [_measure(item.value, known) for item in (value.values() if isinstance(value, dict) else value)]
        size, depth = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        if size > _MAX_VALUES:
            raise ConfError(f"there are more than {_MAX_VALUES} values, with variables written out")
        if depth > 2 * _MAX_DEPTH:
            raise ConfError(f"nested too deep: more than {2 * _MAX_DEPTH} levels, with variables written out")
        known[id(value)] = size, depth
    return known[id(value)]


def plain(value: Value) -> Plain:
    """The tree without positions, as JSON would hold it."""
    if isinstance(value, dict):
        return {key: plain(item.value) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item.value) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else value


def digest(tree: Tree) -> str:
    """`sha256:<hex>` of what the file says, whatever its layout; the same as nats-server prints."""
    text = json.dumps(plain(tree), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return "sha256:" + hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def unreadable(path: str, error: OSError) -> str:
    """Why a file cannot be read, in nats-server's words."""
    step = "read" if isinstance(error, IsADirectoryError) else "open"
    return f"{step} {path}: {(error.strerror or str(error)).lower()}"


class _Level(Enum):
    """Where a pair stands; decides what may end it and what the errors say."""

    TOP = "top-level"
    BLOCK = "block-level"
    MAP = "map"


_SPACES: Final = re.compile(r"\s*")
_BLANKS: Final = re.compile(r"[ \t]*")
_TO_LINE_END: Final = re.compile(r"[^\n\r]*")
_KEY: Final = re.compile(r".[^\s=:]*", re.DOTALL)
_INCLUDE_PATH: Final = re.compile(r"[^\n\r;} \t']*")
_NO_INCLUDE: Final[Mapping[str, str]] = {
    "[": "start of an array",
    "{": "start of a map",
    "(": "start of a block",
    "-": "start of a number",
    "\\": "escape sequence",
    "\n": "new line",
    "\r": "new line",
} | dict.fromkeys("0123456789", "start of a number")
_ARRAY_CRUFT: Final = 'Expected an array value terminator "," or an array terminator "]", but got \'{}\' instead.'
_MAP_CRUFT: Final = 'Expected a map value terminator "," or a map terminator "}}", but got \'{}\' instead.'
_LINE_CRUFT: Final = "Expected a {} value to end with a new line, comment or EOF, but got '{}' instead."
_BCRYPT: Final = "2a$"
_ENVIRONMENT_KEY: Final = "pk"
_MAX_DEPTH: Final = 100
_MAX_FILES: Final = 1000
_MAX_LOOKUPS: Final = 10_000
"""References to the environment, whose texts may refer to it again."""
_MAX_VALUES: Final = 1_000_000


class _Parser:
    """One text being read. `files` include each other up to here, and so do the environment variables `names`."""

    def __init__(
        self,
        source: Text,
        outside: _Outside,
        files: tuple[str, ...],
        names: tuple[str, ...],
    ) -> None:
        self.source = source
        self.outside = outside
        self.files = files
        self.names = names
        self.scopes: list[Tree] = []
        self.depth = 0

    def document(self) -> Tree:
        """Read everything."""
        tree: Tree = {}
        self.scopes.append(tree)
        source = self.source
        while True:
            self._skip_comments()
            char = source.peek()
            if not char:
                return tree
            if char == "{":
                source.offset += 1
                self._block(tree)
            elif char == "}":  # left over from an optional outer brace; nats-server does not mind either
                source.offset += 1
            else:
                self._pair(tree, _Level.TOP)
                self._end_of_line(_Level.TOP)

    def _block(self, tree: Tree) -> None:
        """Read the inside of optional outer braces into the document."""
        self._enter()
        source = self.source
        while True:
            self._skip_comments()
            char = source.peek()
            if not char:
                raise source.error("Unexpected EOF processing block.")
            source.offset += char in "{}"
            if char == "}":
                self.depth -= 1
                return
            if char == "{":
                self._block(tree)
            else:
                self._pair(tree, _Level.BLOCK)
                self._end_of_line(_Level.BLOCK)

    def _map(self) -> Tree:
        """Read a map; the opening brace has been read."""
        self._enter()
        source = self.source
        tree: Tree = {}
        self.scopes.append(tree)
        while True:
            self._skip_comments()
            char = source.peek()
            if not char:
                raise source.error("Unexpected EOF processing map.")
            if char == "]":
                raise source.error("Unexpected array end ']' processing map.")
            if char != "}":
                self._pair(tree, _Level.MAP)
                source.skip(_BLANKS)
                self._skip_comment()
                char = source.peek()
                if char not in _MAP_ENDS or not char:
                    raise source.error(_MAP_CRUFT.format(source.shown()))
            source.offset += 1
            if char == "}":
                self.scopes.pop()
                self.depth -= 1
                return tree

    def _list(self) -> list[Item]:
        """Read a list; the opening bracket has been read."""
        self._enter()
        source = self.source
        items: list[Item] = []
        while True:
            self._skip_comments()
            char = source.peek()
            if char == ",":
                raise source.error("Unexpected array value terminator ','.")
            if char and char != "]":
                at = source.position(source.offset + (char in "\"'({["))
                items.append(Item(self._value(), at))
                source.skip(_BLANKS)
                self._skip_comment()
                char = source.peek()
            if char not in _ARRAY_ENDS or not char:
                raise source.error(_ARRAY_CRUFT.format(source.shown()))
            source.offset += 1
            if char == "]":
                self.depth -= 1
                return items

    def _pair(self, tree: Tree, level: _Level) -> None:
        """Read a key and its value, or an include."""
        source = self.source
        char = source.peek()
        if char in "=:":
            raise source.error(f"Unexpected key separator '{char}'" + "." * (level is _Level.MAP))
        if char == "/" and level is not _Level.MAP:
            raise source.error("Unexpected EOF.")
        if char in "\"'":
            key, at = self._quoted_key(char, level)
        else:
            at = source.position(source.offset)
            key = source.take(_KEY)
            if key.lower() == "include" and source.peek().isspace():
                self._include(tree)
                return
            if level is _Level.MAP and not source.peek():
                raise source.error("Unexpected EOF processing map key.")
        self._to_value(key, level)
        tree[key] = Item(self._value(), at)

    def _quoted_key(self, quote: str, level: _Level) -> tuple[str, Position]:
        source = self.source
        start = source.offset + 1
        end = source.text.find(quote, start)
        if end < 0:
            kind = "double quoted" if quote == '"' else "quoted"
            tail = f" processing {kind} map key" if level is _Level.MAP else ""
            raise source.error(f"Unexpected EOF{tail}.", len(source.text))
        source.offset = end + 1
        return source.text[start:end], source.position(start)

    def _to_value(self, key: str, level: _Level) -> None:
        """Move from the end of a key to the start of its value."""
        source = self.source
        source.skip(_SPACES)
        if not source.peek():
            raise ConfError(f"config is invalid ({source.position(source.offset)})")
        if source.peek() in "=:":
            source.offset += 1
        if level is not _Level.MAP:
            source.skip(_BLANKS)
            if source.peek() in ("\n", "\r"):
                raise source.error("Expected value but found new line", source.offset + 1)
            return
        source.skip(_SPACES)
        if source.peek() == ",":
            raise source.error('Unexpected map value terminator ",".')
        if source.peek() == "}":
            raise source.error(f'Expected a value for key "{key}" but found the end of its map.')

    def _value(self) -> Value:
        source = self.source
        char = source.peek()
        if char == "{":
            source.offset += 1
            return self._map()
        if char == "[":
            source.offset += 1
            return self._list()
        start = source.offset
        scalar = source.scalar()
        return self._look_up(scalar.name, start) if isinstance(scalar, Variable) else scalar

    def _look_up(self, name: str, offset: int) -> Value:
        if name.startswith(_BCRYPT):
            return "$" + name
        for scope in reversed(self.scopes):
            item = scope.get(name)
            if item is not None:
                item.used = True
                return item.value
        line = self.source.position(offset).line
        written = self.outside.variable(name)
        if written is None:
            raise ConfError(f"variable reference for '{name}' on line {line} can not be found")
        if name in self.names:
            raise ConfError(f"variable reference cycle for '{name}'")
        text = Text(f"{_ENVIRONMENT_KEY}={written}", name)
        inner = _Parser(text, self.outside, self.files, (*self.names, name))
        try:
            tree = inner.document()
        except ConfError as error:
            reason = f"variable reference for '{name}' on line {line} could not be parsed: {error}"
            raise ConfError(reason) from None
        return tree[_ENVIRONMENT_KEY].value

    def _include(self, tree: Tree) -> None:
        source = self.source
        source.skip(_BLANKS)
        char = source.peek()
        if char in _NO_INCLUDE:
            raise source.error(f"Expected include value but found {_NO_INCLUDE[char]}")
        if char and char in "\"'":
            path = self._quoted_key(char, _Level.TOP)[0]
        else:
            path = source.take(_INCLUDE_PATH)
            source.offset += source.peek() == "'"
        full = posixpath.normpath(posixpath.join(posixpath.dirname(source.name), path))
        try:
            if full in self.files:
                raise ConfError("the file includes itself")
            text = self.outside.file(full)
            inner = _Parser(Text(text, full), self.outside, (*self.files, full), self.names)
            tree.update(inner.document())
        except ConfError as error:
            raise ConfError(f"error parsing include file '{path}', {error}") from None
        except OSError as error:
            raise ConfError(f"error parsing include file '{path}', {unreadable(full, error)}") from None

    def _end_of_line(self, level: _Level) -> None:
        """Move past what ends a pair outside of maps."""
        source = self.source
        source.skip(_BLANKS)
        if level is _Level.TOP and source.peek() == "/" and not source.text.startswith("//", source.offset):
            source.offset += 1  # nats-server drops a lone slash here
            source.skip(_BLANKS)
        self._skip_comment()
        char = source.peek()
        if level is _Level.BLOCK and char == "}":
            return
        if char in ("\n", "\r", ";", ",") or (level is _Level.TOP and char in ("", "}")):
            source.offset += len(char)
            return
        raise source.error(_LINE_CRUFT.format(level.value, source.shown()))

    def _skip_comment(self) -> None:
        source = self.source
        if source.peek() == "#" or source.text.startswith("//", source.offset):
            source.skip(_TO_LINE_END)

    def _skip_comments(self) -> None:
        """Move past blanks, newlines and comments."""
        source = self.source
        while True:
            source.skip(_SPACES)
            start = source.offset
            self._skip_comment()
            if source.offset == start:
                return

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.source.error(f"Nested more than {_MAX_DEPTH} levels deep.")


_MAP_ENDS: Final = "};,\n\r"
_ARRAY_ENDS: Final = "],\n\r"
