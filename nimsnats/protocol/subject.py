"""Subjects: what is valid, what is a wildcard, what matches what. Raw bytes in, answers out.

Owns the rules of NATS subjects. It never touches interest (who subscribes to what): that is `broker.interest`.

A subject is tokens split on `.`; `*` stands for exactly one token and `>` for one or more at the end, each only as a
whole token (`foo*bar` is a literal). No check of UTF-8 or of control characters, as in nats-server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

WILDCARD_ONE = b"*"
WILDCARD_REST = b">"
_blank = re.compile(rb"[\n\r \t]").search


def has_wildcard(subject: bytes) -> bool:
    """Whether a token of `subject` is `*` or `>`."""
    if b"*" not in subject and b">" not in subject:
        return False
    tokens = subject.split(b".")
    return WILDCARD_ONE in tokens or WILDCARD_REST in tokens


def is_valid(subject: bytes) -> bool:
    """Whether one may subscribe to `subject`: no empty token, nothing after `>`."""
    tokens = subject.split(b".")
    if b"" in tokens:
        return False
    return WILDCARD_REST not in tokens[:-1]


def is_configurable(subject: bytes) -> bool:
    """Whether `subject` may stand in a configuration or an API request: valid and without blanks."""
    return bool(subject) and is_valid(subject) and not any(blank in subject for blank in b" \t\r\n\f")


def fits_line(subject: bytes) -> bool:
    """Whether `subject` can stand between others in a line of the protocol. Clients can publish to some that cannot:
    nothing stops a subject from beginning with LF, or holding CR."""
    return _blank(subject) is None  # asked for each new subject, such as those of replies


def is_literal(subject: bytes) -> bool:
    """Whether `subject` may be published to in pedantic mode: no empty token and no wildcard token."""
    tokens = subject.split(b".")
    return not (b"" in tokens or WILDCARD_ONE in tokens or WILDCARD_REST in tokens)


def has_empty_token(subject: bytes) -> bool:
    """Whether a token is empty; such a subject matches no subscription."""
    return not subject or b".." in subject or subject.startswith(b".") or subject.endswith(b".")


def matches(subject: bytes, pattern: bytes) -> bool:
    """Whether a message published on `subject` reaches a subscription to `pattern`.

    A wildcard token in `subject` counts as that literal token, as it does for publishes.
    """
    if has_empty_token(subject):
        return False
    tokens = subject.split(b".")
    wanted = pattern.split(b".")
    for i, want in enumerate(wanted):
        if want == WILDCARD_REST and i == len(wanted) - 1:
            return len(tokens) > i
        if i >= len(tokens):
            return False
        if want not in (WILDCARD_ONE, tokens[i]):
            return False
        if want == WILDCARD_REST:
            return False
    return len(tokens) == len(wanted)


@lru_cache(maxsize=8192)
def is_subset(subject: bytes, pattern: bytes) -> bool:
    """Whether everything that `subject` (with wildcards) matches is also matched by `pattern`."""
    tokens = subject.split(b".")
    wanted = pattern.split(b".")
    for i, want in enumerate(wanted):
        if want == WILDCARD_REST:
            return len(tokens) > i
        if i >= len(tokens) or tokens[i] == WILDCARD_REST:
            return False
        if want != WILDCARD_ONE and want != tokens[i]:
            return False
    return len(tokens) == len(wanted)


def collide(a: bytes, b: bytes) -> bool:
    """Whether some literal subject matches both patterns."""
    left, right = a.split(b"."), b.split(b".")
    for one, two in zip(left, right, strict=False):
        if one == WILDCARD_REST or two == WILDCARD_REST:
            return True
        if one != two and one != WILDCARD_ONE and two != WILDCARD_ONE:
            return False
    return len(left) == len(right)


@lru_cache(maxsize=4096)
def matcher(pattern: bytes) -> Callable[[bytes], bool]:
    """`matches` for one pattern and subjects that are known to be literal, made to be called often."""
    if not has_wildcard(pattern):
        return pattern.__eq__
    if pattern == WILDCARD_REST:
        return bool
    if pattern.endswith(b".>") and not has_wildcard(pattern[:-2]):
        prefix = pattern[:-1]
        return lambda subject: subject.startswith(prefix) and len(subject) > len(prefix)
    return lambda subject: is_subset(subject, pattern)


def any_matcher(patterns: Iterable[bytes]) -> Callable[[bytes], bool]:
    """A function that tells whether a literal subject matches at least one of the patterns. What it costs depends on
    the subject's tokens, hardly on how many patterns there are."""
    tests = list(dict.fromkeys(patterns))
    if len(tests) == 1:
        return matcher(tests[0])
    if WILDCARD_REST in tests:
        return bool
    literals = frozenset(pattern for pattern in tests if not has_wildcard(pattern))
    root = _Branch()
    for pattern in tests:
        if pattern not in literals:
            root.add(pattern.split(b"."))
    if len(literals) == len(tests):
        return literals.__contains__
    return lambda subject: subject in literals or root.reaches(subject.split(b"."))


class _Branch:
    """What patterns with wildcards have in common up to a token, and how they go on."""

    __slots__ = ("below", "ends", "rest")

    def __init__(self) -> None:
        self.below: dict[bytes, _Branch] = {}
        self.ends = False
        self.rest = False

    def add(self, tokens: list[bytes]) -> None:
        branch = self
        for token in tokens:
            if token == WILDCARD_REST:
                branch.rest = True
                return
            branch = branch.below.setdefault(token, _Branch())
        branch.ends = True

    def reaches(self, tokens: list[bytes]) -> bool:
        """Whether a pattern matches. As with `is_subset`, only `>` matches a token `>`."""
        branches = [self]
        for token in tokens:
            if any(branch.rest for branch in branches):
                return True
            if token == WILDCARD_REST:
                return False
            wanted = (token,) if token == WILDCARD_ONE else (token, WILDCARD_ONE)
            branches = [found for branch in branches for want in wanted if (found := branch.below.get(want))]
            if not branches:
                return False
        return any(branch.ends for branch in branches)
