"""Who is let in, and what the others are told: one configuration for the oracle, the same options for us."""

from __future__ import annotations

import pytest

from nimsnats.broker.options import BrokerOptions, User
from nimsnats.broker.server import Broker
from nimsnats.runtime import Runtime
from tests.conformance.oracle import Oracle
from tests.conformance.transcript import Transcript, converse

_HASH = "$2a$04$P/.bd.7unw9Ew7yWJqXsl.f4oNRLQGvadEL2YnqQXbbb.IVQajRdK"  # of "s3cret", see `test_bcrypt_password`

TOKEN = BrokerOptions(token="tok")
USERS = BrokerOptions(users=[User("a", "b"), User("c", _HASH)])
OPEN = BrokerOptions(users=[User("a", "b")], no_auth_user="a")
SYSTEM = BrokerOptions(users=[User("a", "b", "$SYS")])

_USERS = f'users: [{{user: a, password: b}}, {{user: c, password: "{_HASH}"}}]'
CONFIGS: list[tuple[BrokerOptions, str]] = [
    (TOKEN, 'authorization { token: "tok" }'),
    (USERS, f"authorization {{\n {_USERS}\n}}"),
    (OPEN, "authorization {\n users: [{user: a, password: b}]\n}\nno_auth_user: a"),
    (SYSTEM, "accounts { $SYS { users: [{user: a, password: b}] } }"),
]

SCRIPTS = [
    b"",
    b"PING\r\n",
    b"P",
    b"\r\n",
    b"CONNECT {}\r\nPING\r\n",
    b'CONNECT {"auth_token":"tok","verbose":false,"protocol":1}\r\nPING\r\nPUB foo 0\r\n\r\n',
    b'CONNECT {"auth_token":"nope"}\r\nPING\r\n',
    b'CONNECT {"user":"tok"}\r\nPING\r\n',
    b'CONNECT {"pass":"tok"}\r\nPING\r\n',
    b'CONNECT {"user":"a","pass":"b"}\r\nPING\r\n',
    b'CONNECT {"user":"a","pass":"x"}\r\nPING\r\n',
    b'CONNECT {"user":"nobody","pass":"b"}\r\nPING\r\n',
    b'CONNECT {"user":"c","pass":"x"}\r\nPING\r\n',
    b'CONNECT {"user":"c"}\r\nPING\r\n',
    b'CONNECT {"nkey":"x"}\r\nPING\r\n',
    b'CONNECT {"jwt":"x"}\r\nPING\r\n',
    b'CONNECT {"account":"x","user":"a","pass":"b"}\r\nPING\r\n',
    b'SUB foo 1\r\nCONNECT {"verbose":false}\r\nPUB foo 0\r\n\r\n',
    b'CONNECT {"user":"a","pass":"b"}\r\nSUB foo 1\r\nCONNECT {"user":"a","pass":"x"}\r\nPING\r\n',
]


async def _answers(options: BrokerOptions, port: int) -> list[tuple[Transcript, Transcript]]:
    options.host, options.port = "127.0.0.1", -1
    ours = Broker(options, Runtime.real())
    await ours.start()
    try:
        return [(await converse(port, script), await converse(ours.port, script)) for script in SCRIPTS]
    finally:
        await ours.stop()


@pytest.mark.parametrize(("options", "config"), CONFIGS, ids=["token", "users", "no_auth_user", "system"])
async def test_same_answers(options: BrokerOptions, config: str, configured_oracle: Oracle) -> None:
    configured_oracle.start(config)
    for script, (theirs, ours) in zip(SCRIPTS, await _answers(options, configured_oracle.port), strict=True):
        assert ours.agrees(theirs), script
        assert ours.frames == theirs.frames, script
