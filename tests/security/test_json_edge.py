"""JSON from outside: whatever it is, it becomes values within bounds or a refusal in Go's words, in linear work."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimsnats.jetstream.api.decode import decode
from nimsnats.jetstream.config import REQUEST
from nimsnats.jetstream.consumer.config import CREATE_REQUEST
from nimsnats.jetstream.consumer.consumer import _delay
from nimsnats.jetstream.consumer.request import BadRequest, read_request
from nimsnats.jetstream.errors import ApiError
from nimsnats.protocol.connect import BadConnect, parse_connect
from nimsnats.protocol.json import MAX_DEPTH, BadJson, TooDeep, loads
from nimsnats.raft.membership import Membership
from nimsnats.registry.errors import RegistryAnswerError
from nimsnats.registry.transport import parse_json


def refused(body: bytes, struct: Any = REQUEST) -> str:
    """Why a body is refused; empty when it is not."""
    try:
        decode(body, struct)
    except ApiError as error:
        assert error.err_code == 10025
        return error.description.removeprefix("invalid JSON: ")
    return ""


def nested(depth: int, inner: str = "1") -> str:
    return "[" * depth + inner + "]" * depth


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 2_000, 10_001, 300_000])
def test_what_is_nested_too_deep_is_refused_wherever_json_comes_in(depth: int) -> None:
    deep = nested(depth)
    objects = '{"x":' * depth + "1" + "}" * depth
    for text in (deep, objects, '{"name":"S","x":' + deep + "}", "[" * depth, objects[: 5 * depth]):
        body = text.encode()
        assert refused(body) == "exceeded max depth"
        with pytest.raises(TooDeep):
            loads(text)
        with pytest.raises(BadConnect):
            parse_connect(body)
        with pytest.raises(RegistryAnswerError):
            parse_json(body)
        with pytest.raises(ValueError):
            Membership.decode(body)
        assert _delay(b'{"delay":' + body) == 0
        with pytest.raises(BadRequest):
            read_request(b'{"batch":' + body, b"_R", 0)


def test_what_is_not_too_deep_is_read_however_many_brackets_stand_in_texts() -> None:
    assert loads(nested(MAX_DEPTH)) is not None
    assert loads(json.dumps(["[{" * 5_000, '"\\"[' * 5_000])) == ["[{" * 5_000, '"\\"[' * 5_000]
    assert loads("[" + ",".join(["[]"] * 10_000) + "]") == [[]] * 10_000
    assert decode(json.dumps({"name": "S", "description": "[" * 4_000}).encode(), REQUEST)["name"] == "S"


LONG = "1" * 100_000


@pytest.mark.parametrize(
    ("literal", "said"),
    [
        (LONG, f"cannot unmarshal number {LONG} into Go struct field StreamConfigRequest.max_age of type"),
        ("9223372036854775808", "number 9223372036854775808 into"),
        ("-9223372036854775809", "number -9223372036854775809 into"),
        ("1.5", "number 1.5 into"),
        ("1e999999999", "number 1e999999999 into"),
        ("NaN", "invalid character 'N' looking for beginning of value"),
        ("Infinity", "invalid character 'I' looking for beginning of value"),
        ("-Infinity", "invalid character 'I' in numeric literal"),
        ("\uff11\uff12", "invalid character 'ï' looking for beginning of value"),
        ("1_000", "invalid character '_' after object key:value pair"),
        ("0x10", "invalid character 'x' after object key:value pair"),
        ("+1", "invalid character '+' looking for beginning of value"),
        ("true", "cannot unmarshal bool into"),
        ('"1s"', "cannot unmarshal string into"),
        ("[]", "cannot unmarshal array into"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_a_number_that_is_none_is_refused_in_the_words_of_go(literal: str, said: str) -> None:
    assert said in refused(f'{{"name":"S","max_age":{literal}}}'.encode())


def test_numbers_of_documents_are_bounded_before_they_are_converted() -> None:
    for text in (LONG, "-" + LONG, "1e400", "18446744073709551616", "-9223372036854775809"):
        with pytest.raises(BadJson):
            loads(text)
        with pytest.raises(BadConnect):
            parse_connect(f'{{"protocol":{text}}}'.encode())
    assert loads("18446744073709551615") == (1 << 64) - 1


def test_repeated_keys_are_laid_over_each_other_as_go_does() -> None:
    body = b"""{"name": "A", "NAME": "S", "name": null, "metadata": {"a": "1"}, "metadata": {"b": "2"},
        "placement": {"cluster": "x"}} {"placement": {"tags": ["t"]}} null {}"""
    assert decode(body, REQUEST) == {
        "name": "S",
        "metadata": {"a": "1", "b": "2"},
        "placement": {"cluster": "x", "tags": ["t"]},
    }
    assert "cannot unmarshal number into" in refused(b'{"name": 1, "name": "S"}')


def test_what_is_no_text_becomes_one() -> None:
    assert decode(b'{"name": "\\ud800x\\udc00\\ud83d\\ude00"}', REQUEST)["name"] == "\ufffdx\ufffd\U0001f600"
    assert decode(b'{"name": "\xff"}', REQUEST)["name"] == "\ufffd"
    assert parse_connect(b'{"name": "\\ud800"}').name == "\ufffd"
    assert decode(b'{"metadata": {"\\ud800": "a"}}', REQUEST)["metadata"] == {"\ufffd": "a"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "body",
    [b"{}" * 100_000, b" \n" * 400_000 + b"x", b'["' * 200_000, b'"' + b'\\"' * 400_000, b'{"a":' * 100_000,
     b"[" + b"0," * 100_000, b"1 " * 1_000, b"\\" * 400_000, b'{"name":"' + b"\\u00" * 100_000],
    ids=lambda body: repr(body[:8]),
)  # fmt: skip
def test_large_bodies_take_work_in_proportion(body: bytes) -> None:
    """Any of these took minutes with a scan per value; the time-out of the test is the bound."""
    assert refused(body) or body[:2] == b"{}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(sorted({*REQUEST.fields, *CREATE_REQUEST.fields, *CREATE_REQUEST.fields["config"].fields}))  # type: ignore[attr-defined]
BODIES = st.dictionaries(FIELDS, JSON, max_size=4) | st.fixed_dictionaries(
    {"stream_name": st.just("S"), "config": st.dictionaries(FIELDS, JSON, max_size=4)}
)


def _whatever(body: bytes) -> None:
    for struct in (REQUEST, CREATE_REQUEST):
        refused(body, struct)
    for read in (loads, parse_connect, Membership.decode):
        try:
            read(body)  # type: ignore[operator]
        except ValueError:
            pass  # the only way out that a caller has to know
    assert -(1 << 63) <= _delay(body) < 1 << 63
    try:
        read_request(body, b"_R", 0)
    except BadRequest:
        pass


@given(BODIES.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=200) | st.text().map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_body_is_a_value_or_a_refusal(body: bytes) -> None:
    _whatever(body)


@pytest.mark.extended
@pytest.mark.timeout(900)
@given(BODIES.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=400) | st.text().map(str.encode))
@settings(max_examples=10_000, deadline=None)
def test_any_body_is_a_value_or_a_refusal_at_length(body: bytes) -> None:
    _whatever(body)
