"""Properties of the configuration parser: any text is read or refused, and JSON means what JSON means."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nimsnats.protocol import conf

_words = st.text(st.characters(codec="utf-8", exclude_characters='"\\\x7f', min_codepoint=32), max_size=8)
_json: st.SearchStrategy[Any] = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | _words
    | st.floats(0.25, 1e6).map(lambda number: round(number, 3)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_words, inner, max_size=4),
    max_leaves=20,
)
_tokens = st.sampled_from(
    [
        *"{}[]()=:,;#$\n\r\t \"'/\\-.",
        "include ",
        "a",
        "1",
        "k",
        "b",
        "true",
        "$a",
        "2a$",
        "//",
        "\\x41",
        "2026-01-02T03:04:05Z",
        "é",
    ]
)


def read(text: str) -> conf.Tree:
    def no_file(path: str) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    return conf.parse(text, "t.conf", read=no_file, environ={"a": "1"})


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_words, _json, max_size=4), st.sampled_from([None, 1]))
def test_json_is_read_as_json(document: dict[str, Any], indent: int | None) -> None:
    assert conf.plain(read(json.dumps(document, ensure_ascii=False, indent=indent))) == document


@settings(max_examples=600, deadline=None)
@given(st.lists(_tokens, max_size=30).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        tree = read(text)
    except conf.ConfError as error:
        assert str(error)
        return
    for item in tree.values():
        assert item.at.line >= 1
        assert 0 <= item.at.column <= len(text.encode())
    assert conf.digest(tree).startswith("sha256:")
