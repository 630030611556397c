"""Header blocks, CONNECT and INFO."""

from __future__ import annotations

import json

import pytest

from nimsnats.protocol import headers
from nimsnats.protocol.connect import BadConnect, ConnectOptions, parse_connect
from nimsnats.protocol.info import ServerInfo


def test_headers_are_found_added_and_taken_out() -> None:
    fields = [(b"Nats-Msg-Id", b"1"), (b"k", b"v: w"), (b"k", b"again"), (b"Empty", b"")]
    block = headers.header_block(fields)
    assert block == b"NATS/1.0\r\nNats-Msg-Id: 1\r\nk: v: w\r\nk: again\r\nEmpty: \r\n\r\n"
    assert headers.header_value(block, b"k") == b"v: w"
    assert headers.header_value(block, b"Empty") == b""
    assert headers.header_value(block, b"msg-id") is None
    assert headers.with_headers(b"", fields) == block
    assert headers.with_headers(block, [(b"x", b"y")]).endswith(b"Empty: \r\nx: y\r\n\r\n")
    assert headers.header_value(headers.without_header(block, b"k"), b"k") is None
    assert headers.without_header(headers.header_block(fields[:1]), b"Nats-Msg-Id") == b""


def test_header_status() -> None:
    block = headers.status_block(404, "No Messages", [(b"a", b"b")])
    assert block == b"NATS/1.0 404 No Messages\r\na: b\r\n\r\n"
    assert headers.without_status(block) == b"NATS/1.0\r\na: b\r\n\r\n"
    assert headers.without_status(b"") == b""


def test_connect_defaults_and_overlay() -> None:
    options = parse_connect(b'{"verbose":false,"pass":"p","NAME":"n","unknown":1,"lang":null}')
    assert options == ConnectOptions(verbose=False, password="p", name="n")
    again = parse_connect(b'{"pedantic":false}', options)
    assert again.name == "n"
    assert not again.pedantic


@pytest.mark.parametrize(
    "arg",
    [b"", b"\r", b"{", b"[]", b'"x"', b'{"verbose":1}', b'{"name":1}', b'{"protocol":1.5}', b'{"protocol":true}',
     b'{"echo":"yes"}', b"{} {}", b'{"protocol":NaN}', b"[" * 100_000],
)  # fmt: skip
def test_connect_refuses(arg: bytes) -> None:
    with pytest.raises(BadConnect):
        parse_connect(arg)


def test_info_has_the_fields_of_nats_server_in_its_order() -> None:
    info = ServerInfo("ID", "name", "2.11.9", "127.0.0.1", 4222, 1024, 1, "python", auth_required=True, jetstream=True)
    line = info.encode(5, "::1", account="$G")
    assert line.startswith(b"INFO {")
    assert line.endswith(b"} \r\n")
    assert list(json.loads(line[5:])) == [
        "server_id", "server_name", "version", "proto", "go", "host", "port", "headers", "auth_required",
        "max_payload", "jetstream", "client_id", "client_ip", "connect_info", "remote_account", "api_lvl",
    ]  # fmt: skip
