"""NATS subjects as the forest uses them: validity, families, matching, overlap, consumer names.

Owns: pure functions on strings. A *family* is the wildcard subject that captures everything beginning with the
same first token (`payment.completed` -> `payment.>`).
"""

from __future__ import annotations

import re
import zlib

_TOKEN = re.compile(r"^[^\s.*>\x00-\x1f\x7f]+$")
_RESERVED = ("$", "_INBOX")


def is_literal(subject: str) -> bool:
    """True for a subject one can publish to: non-empty tokens, no wildcards, no blanks."""
    return all(_TOKEN.match(token) for token in subject.split("."))


def is_pattern(subject: str) -> bool:
    """True for a subject one can subscribe to: like a literal one, with `*` tokens and a final `>` allowed."""
    tokens = subject.split(".")
    last = len(tokens) - 1
    return all(
        token == "*" or (token == ">" and index == last) or bool(_TOKEN.match(token))
        for index, token in enumerate(tokens)
    )


def family(subject: str) -> str:
    """The wildcard subject for everything that shares the first token.

    Raises ValueError when the first token is a wildcard or belongs to the server or to another room of the forest.
    """
    first, _, rest = subject.partition(".")
    if not is_pattern(subject) or first in ("*", ">", "river", "humus") or first.startswith(_RESERVED):
        raise ValueError(f"{subject!r} cannot be a leaf subject")
    return f"{first}.>" if rest else first


def matches(pattern: str, subject: str) -> bool:
    """True if the literal `subject` is selected by `pattern`."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or token not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


def overlap(left: str, right: str) -> bool:
    """True if some subject is selected by both patterns."""
    a, b = left.split("."), right.split(".")
    for index in range(max(len(a), len(b))):
        if index >= len(a) or index >= len(b):
            return False
        if a[index] == ">" or b[index] == ">":
            return True
        if a[index] != b[index] and "*" not in (a[index], b[index]):
            return False
    return True


def consumer_name(prefix: str, pattern: str) -> str:
    """A durable consumer's name for `pattern`: readable, the same on every node, unique by pattern."""
    plain = re.sub(r"[^A-Za-z0-9-]", "_", pattern.replace("*", "any").replace(">", "all").replace(".", "-"))
    if re.fullmatch(r"[A-Za-z0-9.]+", pattern):
        return f"{prefix}-{plain}"
    return f"{prefix}-{plain}-{zlib.crc32(pattern.encode()):08x}"
