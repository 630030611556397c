"""Header blocks, CONNECT and INFO."""

from __future__ import annotations

import json

import pytest

from nimsnats.protocol import headers
from nimsnats.protocol.connect import BadConnect, ConnectOptions, parse_connect
from nimsnats.protocol.info import ServerInfo


def test_headers_round_trip() -> None:
    fields = [("Nats-Msg-Id", "1"), ("k", "v: w"), ("k", "again"), ("Empty", "")]
    block = headers.encode(fields)
    assert block.startswith(b"NATS/1.0\r\n")
    assert block.endswith(b"\r\n\r\n")
    assert headers.decode(block) == fields
    assert headers.get(block, b"k") == b"v: w"
    assert headers.get(block, b"Empty") == b""
    assert headers.get(block, b"msg-id") is None
    assert headers.get(block, b"Nats-Msg-Id") == b"1"


def test_header_status() -> None:
    assert headers.status(headers.encode(status="404 No Messages")) == ("404", "No Messages")
    assert headers.status(b"NATS/1.0 503\r\n\r\n") == ("503", "")
    assert headers.status(headers.encode()) == ("", "")


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
