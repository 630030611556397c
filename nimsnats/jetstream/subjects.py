"""Subjects as sets: does this one match, cover or overlap that one.

Owns comparisons of subjects that may hold wildcards. It keeps no state; the interest trie lives in the broker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache


def valid(subject: bytes) -> bool:
    """Whether this may be subscribed to: no empty token, no blank, `>` only at the end."""
    if not subject or any(blank in subject for blank in b" \t\r\n\f"):
        return False
    tokens = subject.split(b".")
    return b"" not in tokens and b">" not in tokens[:-1]


def literal(subject: bytes) -> bool:
    """Whether the subject has no wildcard token."""
    if b"*" not in subject and b">" not in subject:
        return True
    return not any(token in (b"*", b">") for token in subject.split(b"."))


def matches(subject: bytes, pattern: bytes) -> bool:
    """Whether the literal `subject` is one of `pattern`."""
    return matcher(pattern)(subject)


@lru_cache(maxsize=8192)
def covers(pattern: bytes, other: bytes) -> bool:
    """Whether everything that `other` matches is matched by `pattern` too."""
    return _covers(pattern, other)


def _covers(pattern: bytes, other: bytes) -> bool:
    if pattern == b">" or pattern == other:
        return True
    wide, narrow = pattern.split(b"."), other.split(b".")
    for i, token in enumerate(wide):
        if token == b">":
            return len(narrow) > i
        if i >= len(narrow) or narrow[i] == b">":
            return False
        if token != b"*" and token != narrow[i]:
            return False
    return len(wide) == len(narrow)


def overlap(one: bytes, two: bytes) -> bool:
    """Whether some subject matches both."""
    a, b = one.split(b"."), two.split(b".")
    for x, y in zip(a, b, strict=False):
        if x == b">" or y == b">":
            return True
        if x != y and x != b"*" and y != b"*":
            return False
    return len(a) == len(b)


@lru_cache(maxsize=4096)
def matcher(pattern: bytes) -> Callable[[bytes], bool]:
    """A function that tells whether a literal subject matches `pattern`."""
    if literal(pattern):
        return pattern.__eq__
    if pattern == b">":
        return _everything
    if pattern.endswith(b".>") and literal(pattern[:-2]):
        prefix = pattern[:-1]
        return lambda subject: subject.startswith(prefix) and len(subject) > len(prefix)
    return lambda subject: _covers(pattern, subject)


def _everything(subject: bytes) -> bool:
    return bool(subject)


def any_matcher(patterns: Iterable[bytes]) -> Callable[[bytes], bool]:
    """A function that tells whether a literal subject matches at least one of the patterns."""
    tests = [matcher(pattern) for pattern in patterns]
    if len(tests) == 1:
        return tests[0]
    return lambda subject: any(test(subject) for test in tests)
