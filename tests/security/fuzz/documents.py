"""Targets for texts: configuration files, the JSON of the API, certificates."""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import nimsnats.jetstream.api.account
import nimsnats.jetstream.api.consumer
import nimsnats.jetstream.api.message
import nimsnats.jetstream.api.snapshot
import nimsnats.jetstream.api.stream
import nimsnats.jetstream.config
import nimsnats.jetstream.consumer.config
import nimsnats.jetstream.consumer.request
import nimsnats.jetstream.peers
from nimsnats.config.fields import ConfigError
from nimsnats.config.load import check_file
from nimsnats.jetstream.api.decode import Struct, decode, encode
from nimsnats.jetstream.config import StreamConfig, asks_for_unsupported
from nimsnats.jetstream.config_rules import check_create, checked
from nimsnats.jetstream.consumer.config import ConsumerConfig
from nimsnats.jetstream.consumer.request import BadRequest, read_request
from nimsnats.jetstream.consumer.rules import ServerLimits, StreamTraits, check, with_defaults
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.packing import pack, unpack
from nimsnats.protocol import conf
from nimsnats.protocol.x509 import BadCertificate, Certificate
from tests.security.fuzz.target import Target

_INCLUDED = {
    "more.conf": "max_payload: 1MB\n",
    "self.conf": "include self.conf\n",
    "deep/a.conf": "include ../b.conf\n",
}
_ENVIRONMENT = {"PORT": "4222", "LOOP": "$LOOP", "BROKEN": "{", "TWO": "$PORT"}


def _read(path: str) -> str:
    if path not in _INCLUDED:
        raise FileNotFoundError(2, "No such file or directory", path)
    return _INCLUDED[path]


def grammar(data: bytes) -> None:
    """The grammar of configuration files."""
    text = data.decode("utf-8-sig", errors="surrogateescape")
    try:
        tree = conf.parse(text, "main.conf", read=_read, environ=_ENVIRONMENT)
    except conf.ConfError as error:
        assert "Traceback" not in str(error)
        return
    conf.digest(tree)
    conf.plain(tree)


_SCRATCH = tempfile.TemporaryDirectory(prefix="nimsnats-fuzz-")
_FILE = Path(_SCRATCH.name) / "server.conf"


def settings(data: bytes) -> None:
    """A configuration file, read into the settings. What names other files is left out: inputs may not choose those."""
    lowered = data.lower()
    if b"include" in lowered or b"file" in lowered or b"dir" in lowered or b"\\" in data or b"$" in data:
        return
    _FILE.write_bytes(data)
    try:
        digest, warnings = check_file(str(_FILE), {})
    except ConfigError as error:
        assert error.reasons and "Traceback" not in str(error)
        return
    assert digest.startswith("sha256:") and all(isinstance(line, str) for line in warnings)


def _structs() -> list[Struct]:
    """Every description of a request body that JetStream's modules have."""
    modules = (
        nimsnats.jetstream.api.account,
        nimsnats.jetstream.api.consumer,
        nimsnats.jetstream.api.message,
        nimsnats.jetstream.api.snapshot,
        nimsnats.jetstream.api.stream,
        nimsnats.jetstream.config,
        nimsnats.jetstream.consumer.config,
        nimsnats.jetstream.consumer.request,
        nimsnats.jetstream.peers,
    )
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Struct)]
    return list({id(struct): struct for struct in found}.values())


_STRUCTS = _structs()
_TRAITS = StreamTraits("S", subjects=["a.>"])
_LIMITS = ServerLimits()


def api(data: bytes) -> None:
    """The JSON edge: every request body, and the configurations that come out of it; what passes can be stored."""
    number = zlib.crc32(data)
    for struct in (
        nimsnats.jetstream.config.REQUEST,
        nimsnats.jetstream.consumer.config.CONFIG,
        _STRUCTS[number % len(_STRUCTS)],
    ):
        try:
            fields = decode(data, struct, number & 1 == 0)
        except ApiError as error:
            error.description.encode()
            continue
        assert json.loads(encode(fields)) is not None
        if struct is nimsnats.jetstream.config.REQUEST:
            _stream(fields)
        elif struct is nimsnats.jetstream.consumer.config.CONFIG:
            _consumer(fields)
    try:
        read_request(data, b"reply", 1_700_000_000_000_000_000)
    except BadRequest as error:
        str(error).encode("ascii", "backslashreplace")


def _stream(fields: dict[str, Any]) -> None:
    try:
        asks_for_unsupported(fields)
        config = checked(StreamConfig.from_request(fields), pedantic=False)
        check_create(config)
    except ApiError:
        return
    stored = unpack(pack(config.to_stored()))
    assert StreamConfig.from_stored(stored).to_stored() == config.to_stored()
    encode(config.to_json())


def _consumer(fields: dict[str, Any]) -> None:
    try:
        config = with_defaults(ConsumerConfig.from_json(fields), _TRAITS, _LIMITS, False)
        check(config, _TRAITS, _LIMITS)
    except ApiError:
        return
    stored = unpack(pack(config.to_json()))
    assert ConsumerConfig.from_json(stored).to_json() == config.to_json()


def certificate(data: bytes) -> None:
    """The reader of certificates' dates and names."""
    try:
        found = Certificate(data)
    except BadCertificate:
        return
    for read in (found.not_after, found.subject):
        try:
            read()
        except BadCertificate:
            pass
    assert found.key in data


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    return bytes((tag, size)) + content if size < 128 else bytes((tag, 0x82)) + size.to_bytes(2) + content


def _certificate() -> bytes:
    """The outermost parts of a certificate, by hand."""
    name = _der(0x30, _der(0x31, _der(0x30, _der(0x06, b"\x55\x04\x03") + _der(0x0C, b"common, name"))))
    other = _der(0x30, _der(0x31, _der(0x30, _der(0x06, b"\x2a\x86\x48\x01") + _der(0x1E, b"\0x"))))
    dates = _der(0x30, _der(0x17, b"230101000000Z") + _der(0x18, b"20630101000000Z"))
    key = _der(0x30, _der(0x30, _der(0x06, b"\x2a")) + _der(0x03, b"\0key"))
    return _der(
        0x30,
        _der(
            0x30, _der(0xA0, b"\x02\x01\x02") + _der(2, b"\x01") + _der(0x30, b"") + other + dates + name + other + key
        )
        + _der(0x30, b""),
    )


_CONF_SEEDS = [
    b"port: 4222\nmax_payload: 1MB # comment\n",
    b"{ \"port\": 1, 'a': [1, 2.5, true], b { c = x; d: 2020-01-01T00:00:00Z } }",
    b"include more.conf\ninclude 'self.conf'\nport: $PORT\na: $LOOP\nb: $BROKEN\nc: $TWO\n",
    b'authorization { users = [ {user: a, password: $2a$11$abc, permissions: {publish: [">"]}} ] timeout: 1 }\n',
    b"accounts { A { users [ {user: a, password: b} ] jetstream: enabled } SYS {} }\nsystem_account: SYS\n",
    b"cluster { name: c, listen: 127.0.0.1:6222, routes [ nats-route://u:p@h:6222 ] }\nlame_duck_duration: 30s\n",
    b'jetstream { max_mem: 1G, max_file: "10G", sync_interval: 2m }\nping_interval: 1h30m\n',
    b"text: (\nblock\n)\nx: 'raw' y: \"esc\\x41\\n\"\n",
    b"write_deadline: " + b"9" * 5000 + b"s\n",
    b"port: " + b"9" * 5000 + b"\n",
    b"ping_interval: 1.5\nmax_pending: 10000000000000000000000K\nlisten: [::1]:99999999999999\n",
    b"a: " + b"[" * 500,
    b"a {" * 200,
    b"a: 1e5\nb: 1.2.3.4:4222\nc: 1." + b"9" * 400,
]
_CONF_WORDS = [
    b"{", b"}", b"[", b"]", b": ", b"=", b"\n", b"'", b'"', b"$PORT", b"include ", b"# ", b"//", b"(", b"\n)", b"true",
    b"max_payload", b"ping_interval", b"cluster", b"authorization", b"users", b"jetstream", b"99999999999999999999",
    b"1h", b"K", b"\\x41", b"2020-01-01T00:00:00Z", b"permissions", b"accounts", b"tls", b"routes", b"log_size_limit",
]  # fmt: skip

TARGETS = (
    Target("grammar", grammar, _CONF_SEEDS, _CONF_WORDS, longest=8192),
    Target("settings", settings, _CONF_SEEDS, _CONF_WORDS, longest=8192),
    Target(
        "api",
        api,
        [
            b'{"name":"S","subjects":["a.>"],"max_age":1000000000,"retention":"limits","storage":"file","num_replicas":1}',
            b'{"durable_name":"C","deliver_policy":"by_start_time","opt_start_time":"2023-02-30T00:00:00Z"}',
            b'{"name":"C","ack_policy":"explicit","filter_subjects":["a.b","a.c"],"backoff":[1,2],"max_deliver":3}',
            b'{"stream_name":"S","config":{"durable_name":"C","deliver_subject":"d","flow_control":true,'
            b'"idle_heartbeat":1,"sample_freq":"100%","pause_until":"9999-12-31T23:59:59.999999999Z"},"action":""}',
            b'{"batch":10,"expires":5000000000,"no_wait":true,"idle_heartbeat":1,"group":"g","id":"x","priority":1}',
            b'{"seq":18446744073709551615,"last_by_subj":"a","multi_last":["a"],"start_time":"2020-01-01T00:00:00+24:00"}',
            b'{"offset":-1,"subjects_filter":"\\ud800","deleted_details":null}',
            b'{"max_msgs":1e3}',
            b'{"max_msgs":' + b"9" * 4500 + b"}",
            b"[" * 3000,
            b'{"metadata":' * 900,
            b"7" * 4400,
            b"1.x",
            b'{"a":"\\x"}',
            b"\xff\xfe{}",
        ],
        [
            b'"opt_start_time":',
            b'"opt_start_seq":',
            b'"deliver_policy":"by_start_time"',
            b'"ack_wait":',
            b'"backoff":[',
            b"18446744073709551616",
            b"-9223372036854775809",
            b"null",
            b"[[[[",
            b"{",
            b"}",
            b'"',
            b"\\ud800",
            b",",
            b'"subjects":[',
            b'"republish":{"src":">","dest":"x.>"}',
            b'"placement":{',
            b'"consumer_limits":{',
            b'"sample_freq":"',
            b'"pause_until":"0000-01-01T00:00:00Z"',
            b'"priority_groups":["a"]',
            b'"mirror":{',
            b"1.5",
        ],
        longest=8192,
    ),
    Target(
        "certificate", certificate, [_certificate()], [b"\x30\x80", b"\x84\xff\xff\xff\xff", b"\x17\x0d", b"\xff\xff"]
    ),
)
