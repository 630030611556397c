"""Subjects against a naive twin made of regular expressions, and the table of the protocol's rules."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimsnats.protocol import subject

_tokens = st.lists(st.sampled_from([b"a", b"b", b"*", b">", b"", b"a*"]), min_size=1, max_size=5).map(b".".join)


def twin(pattern: bytes) -> re.Pattern[bytes]:
    words = [{b"*": rb"[^.]+", b">": rb".+"}.get(token, re.escape(token)) for token in pattern.split(b".")]
    return re.compile(rb"\.".join(words), re.DOTALL)


@given(_tokens, _tokens)
def test_matches_like_its_twin(published: bytes, pattern: bytes) -> None:
    if not subject.is_valid(pattern):
        return
    expected = b"" not in published.split(b".") and twin(pattern).fullmatch(published) is not None
    assert subject.matches(published, pattern) == expected


@given(_tokens, _tokens, _tokens)
def test_a_subset_matches_no_more(literal: bytes, narrow: bytes, wide: bytes) -> None:
    if not (subject.is_literal(literal) and subject.is_valid(narrow) and subject.is_valid(wide)):
        return
    if subject.is_subset(narrow, wide) and subject.matches(literal, narrow):
        assert subject.matches(literal, wide)
    if subject.matches(literal, narrow) and subject.matches(literal, wide):
        assert subject.collide(narrow, wide)


@pytest.mark.parametrize(
    ("text", "valid", "literal", "wildcard"),
    [
        (b"foo", True, True, False),
        (b"foo.bar", True, True, False),
        (b"foo*bar.sec>", True, True, False),
        (b"foo.*", True, False, True),
        (b"foo.>", True, False, True),
        (b">", True, False, True),
        (b"foo.>.bar", False, False, True),
        (b"foo..bar", False, False, False),
        (b".foo", False, False, False),
        (b"foo.", False, False, False),
        (b"", False, False, False),
    ],
)
def test_rules(text: bytes, valid: bool, literal: bool, wildcard: bool) -> None:
    assert subject.is_valid(text) is valid
    assert subject.is_literal(text) is literal
    assert subject.has_wildcard(text) is wildcard
    assert subject.has_empty_token(text) is (b"" in text.split(b"."))
