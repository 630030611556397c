"""The configuration format: what texts mean, what errors say, and that the Go server agrees."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nimsnats.protocol import conf
from tests.config import oracle

ENVIRON = {
    "PORT": "4222",
    "WORD": "abc",
    "MIXED": "12abc",
    "QUOTED": '"x"',
    "SPACED": "a b",
    "INDIRECT": "$PORT",
}


def parse(text: str, files: dict[str, str] | None = None) -> conf.Tree:
    def read(path: str) -> str:
        try:
            return (files or {})[path]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory") from None

    return conf.parse(text, "t.conf", read=read, environ=ENVIRON)


def plain(text: str, files: dict[str, str] | None = None) -> object:
    return conf.plain(parse(text, files))


MEANINGS: list[tuple[str, object]] = [
    ("a: 1\nb = 2\nc 3\nd\n4", {"a": 1, "b": 2, "c": 3, "d": 4}),
    ("a: 1, b: 2; c: 3", {"a": 1, "b": 2, "c": 3}),
    ("a { b { c: 1 } }", {"a": {"b": {"c": 1}}}),
    ("a { b: 1, c: 2\n d: 3; e: 4 }", {"a": {"b": 1, "c": 2, "d": 3, "e": 4}}),
    ('{"a": [1, 2.5, "x", {"b": true}], "c": {}}', {"a": [1, 2.5, "x", {"b": True}], "c": {}}),
    ("{ a: 1 } { b: 2 }\nc: 3", {"a": 1, "b": 2, "c": 3}),
    ("{{a: 1}}", {"a": 1}),
    ("a: [1\n2 # two\n// nothing\n3,\n]", {"a": [1, 2, 3]}),
    ("a: [1,2]", {"a": [1, 2]}),
    ("# c\na: 1 # c\nb: 2 // c\nc: a#b\nd: x//y", {"a": 1, "b": 2, "c": "a#b", "d": "x//y"}),
    ('a: bare\nb: \'raw \\n $PORT\'\nc: "tab\\t \\x41\\"\\\\"', {"a": "bare", "b": "raw \\n $PORT", "c": 'tab\t A"\\'}),
    ("a: x\\ty", {"a": "x\ty"}),
    ("a: (\n one\n two)\n)\nb: 1", {"a": "\n one\n two)\n", "b": 1}),
    ("a: 1k, b: 1kb, c: 1Ki, d: 1KiB, e: 2m, f: 2MB, g: 1g, h: -3k", None),
    ("a: 1.5, b: -2.5, c: 10", {"a": 1.5, "b": -2.5, "c": 10}),
    ("a: 127.0.0.1:4222\nb: ::1\nc: 1abc\nd: 30s\ne: 0x10", None),
    ("a: 2026-01-02T03:04:05Z", {"a": "2026-01-02T03:04:05Z"}),
    ("a: yes, b: NO, c: On, d: off, e: TRUE, f: 'true'", None),
    ("x: 7\na: $x\nb { x: 8, c: $x }\nd { c: $x }", {"x": 7, "a": 7, "b": {"x": 8, "c": 8}, "d": {"c": 7}}),
    (
        "a: $PORT\nb: $WORD\nc: $MIXED\nd: $QUOTED\ne: $INDIRECT",
        {"a": 4222, "b": "abc", "c": "12abc", "d": "x", "e": 4222},
    ),
    ('a: "$PORT"\nb: $2a$10$abc', {"a": "$PORT", "b": "$2a$10$abc"}),
    ("a: 1\na: 2", {"a": 2}),
    ("a:", {"a": ""}),
    ("\ta:1\r\nb:2\r\n", {"a": 1, "b": 2}),
    ("a: 1 }\n", {"a": 1}),
    ("", {}),
]


@pytest.mark.parametrize(("text", "meaning"), MEANINGS)
def test_meaning(text: str, meaning: object) -> None:
    expected = {
        MEANINGS[13][0]: {
            "a": 1000,
            "b": 1024,
            "c": 1024,
            "d": 1024,
            "e": 2000000,
            "f": 2 << 20,
            "g": 10**9,
            "h": -3000,
        },
        MEANINGS[15][0]: {"a": "127.0.0.1:4222", "b": "::1", "c": "1abc", "d": "30s", "e": "0x10"},
        MEANINGS[17][0]: {"a": True, "b": False, "c": True, "d": False, "e": True, "f": "true"},
    }.get(text, meaning)
    assert plain(text) == expected


def test_dates_are_dates() -> None:
    assert parse("a: 2026-01-02T03:04:05Z")["a"].value == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_positions_are_those_of_keys_in_bytes_from_0_on_the_first_line_and_1_on_others() -> None:
    tree = parse('é {x: 1}\n  b { "q": [1,\n  {c: 2}] }')
    assert str(tree["é"].at) == "t.conf:1:0"
    assert str(tree["é"].value["x"].at) == "t.conf:1:4"  # type: ignore[index]
    inner = tree["b"].value["q"]  # type: ignore[index]
    assert str(inner.at) == "t.conf:2:8"
    assert str(inner.value[1].value["c"].at) == "t.conf:3:4"


def test_includes_merge_keys_and_keep_their_own_positions() -> None:
    files = {"sub/a.conf": "include 'b.conf'\nx: 1", "sub/b.conf": "y: $WORD", "users.conf": "user: u"}
    tree = parse('include sub/a.conf; z: 3\nauth { include "users.conf" }', files)
    assert conf.plain(tree) == {"y": "abc", "x": 1, "z": 3, "auth": {"user": "u"}}
    assert str(tree["y"].at) == "sub/b.conf:1:0"


def test_a_variable_marks_its_key_as_used() -> None:
    tree = parse("x: 1\ny: $x")
    assert tree["x"].used
    assert not tree["y"].used


ERRORS = [
    ("a: $nope", "variable reference for 'nope' on line 1 can not be found"),
    ("a: $SPACED", "variable reference for 'SPACED' on line 1 could not be parsed: Parse error on line 1: "
     "'Expected a top-level value to end with a new line, comment or EOF, but got 'b' instead.'"),
    ("a: 99999999999999999999", "integer '99999999999999999999' is out of the range"),
    ("a: 16e", "integer '16e' is out of the range"),
    ("\n\na {", "Parse error on line 3: 'Unexpected EOF processing map.'"),
    ("port", "config is invalid (t.conf:1:4)"),
    ("a: 1kbb", "Parse error on line 1: 'Unknown size suffix in '1kbb'.'"),
    ("a { b }", "Parse error on line 1: 'Expected a value for key \"b\" but found the end of its map.'"),
    ("{ a: 1", "Parse error on line 1: 'Expected a block-level value to end with a new line, comment or EOF, but got "
     "'end of file' instead.'"),
    ("{\n a: 1\n", "Parse error on line 3: 'Unexpected EOF processing block.'"),
    ("a: 2026-13-02T03:04:05Z", "expected Zulu formatted DateTime, but got '2026-13-02T03:04:05Z'"),
    ("a: " + "[" * 101, "Parse error on line 1: 'Nested more than 100 levels deep.'"),
    ("include t.conf", "error parsing include file 't.conf', the file includes itself"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_error_text(text: str, message: str) -> None:
    with pytest.raises(conf.ConfError) as caught:
        parse(text)
    assert str(caught.value) == message


def test_environment_variables_that_refer_to_each_other_end() -> None:
    with pytest.raises(conf.ConfError, match="variable reference cycle for 'A'"):
        conf.parse("x: $A", "t.conf", read=str, environ={"A": "$B", "B": "$A"})


COMPARED = """
foo: 1|port: 1k|server_tags: [a, b]|max_payload: 1kib|max_payload: 1 kb|max_payload: 1.5k|max_payload: 0x10|debug: TRUE
authorization{user:u, password: p}|authorization {user:u, password: p|authorization {user:u, password: p}}
{ "port": 4222, "debug": true }|{ "port": 4222, "debug": true|port 4222 debug true|port: 4222, debug: true|port=|=4
server_name: "a\\tb"|server_name: "a\\qb"|server_name: "a\\x4"|server_name: "a\\x41"|server_name: "a|server_name: 'a
server_name: (a)|server_name: a#b|server_name: a # b|server_name: a // b|server_name: a /b|/ foo|ping_interval: 30s
ping_interval: 2026-01-02T03:04:05Z|ping_interval: 2026-01-02|ping_interval: 26-01-02|listen: ":4222"|port: -x|port: .5
port: -.5|port: 5.|port: 5.x|port: 99999999999999999999|port: 1 2|a: {b: 1,, c: 2}|a: [1,,2]|a: [1 2]|a: [1|a: {b
a: {=|a: {]|include none.conf|include "none.conf"|include 5|include [|include|include {|include \\
a { include none.conf }|authorization { timeout: 2.0 }|authorization { timeout: 2.50 }|a: {b 1
authorization { user: u, pass: $2a$10$abc }|authorization { user: u, pass: $2b$10$abc }|"debug": true|'debug': true|"deb
server_name: }|server_name: ]|server_name: ,|server_name: ;|a: [{b: 1}, {c: 2}]|a: [{b: 1}{c: 2}]|server_name: "a" "b"
server_name: "a"b|authorization { user: , pass: b }|include bad.conf|include sub/a.conf|include sub|{ debug
{ debug: true } { port: 4222 }|{ debug: true }, { port: 4222 }|{{debug: true}}|{ debug: true }}|debug: true }
write_deadline: 1.5s|write_deadline: 1500ms|port: 1e3|port: 1e|port: 4k5|port: -5kb|port: -5x|server_name: a'b
server_name: a"b|server_name: a\\nb|server_name: C:\\path|server_name: 1abc|server_name: 1.2.3.4|server_name: 1.2.3.4x
server_name: ::1|server_name: a=b|server_name = = b|server_name: $|server_tags: [ "a" "b" ]|server_tags: [ a, ]
server_tags: [ , a ]|server_tags: []|a { "b|a { 'b|a { b|a { b:|a { b: c|a { b: "c|a [ "c|a { b: (|a { b: [ }|a [ } ]
a: $a|port: $PORT|server_name: "$PORT"|server_name: $MIXED|server_name: $QUOTED|server_name: $SPACED|port: $INDIRECT
port: 4222# x|port: 4222//|port: 4222 /|debug: true#x|port == 4222|"a b": 1|/* x */|port: 4222 # x|x: 5, port: $x
"""

LINES = [
    "port: \n4222",
    "port\n4222",
    "server_name: (\nab\n)\ndebug: true",
    "server_name: (\nab\n) ",
    "server_tags: [ a\nb ]",
    "server_tags: [ a\n, b ]",
    "a: [\n1\n2 # c\n// d\n3\n]",
    "debug: true\r\nport: 4222\r\n",
    "\n\n\nport: [\n\n}",
    '{\n"port": 4222,\n   "cluster": {"name": 1}\n}\n',
    "x: [a, b]\nserver_tags: $x",
]


@pytest.mark.parametrize("text", [text for line in COMPARED.split("\n") if line for text in line.split("|")] + LINES)
def test_the_go_server_agrees(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same syntax errors in the same words, and for valid files the same content (sha256)."""
    monkeypatch.chdir(tmp_path)
    for name, content in {"bad.conf": "a {", "sub/a.conf": "include b.conf", "sub/b.conf": "debug: true"}.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    verdict = oracle.check(text, tmp_path, ENVIRON)
    try:
        tree = conf.parse(text, "t.conf", read=lambda path: Path(path).read_text(), environ={**os.environ, **ENVIRON})
    except conf.ConfError as error:
        assert verdict.stderr.replace("\0", "end of file") == str(error)
        assert verdict.code == 1
        return
    if verdict.code == 0:
        assert conf.digest(tree) in verdict.stderr
    else:  # it reads the file, and minds what the keys mean
        assert verdict.stderr.startswith(("t.conf:1:", "t.conf:2:", "t.conf:3:"))
