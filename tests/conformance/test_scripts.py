"""Hand-picked scripts, one for each rule of the client protocol, answered alike by the oracle and by us."""

from __future__ import annotations

import pytest

from nimsnats.broker.server import Broker
from tests.conformance.oracle import Oracle
from tests.conformance.transcript import converse

QUIET = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1}\r\n'
OLD = b'CONNECT {"verbose":false,"pedantic":false}\r\n'

SCRIPTS: dict[str, bytes] = {
    "nothing": b"",
    "ping before connect": b"PING\r\n",
    "ping lower case": b"ping\r\n",
    "ping with LF": b"PING\n",
    "ping with junk": b"PINGxx y\r\nPONGzz\r\n+OKthen\r\nPING\r\n",
    "connect then ping": QUIET + b"PING\r\nPING\r\n",
    "connect twice": QUIET + b"PING\r\nSUB foo 1\r\n" + QUIET + b"PUB foo 2\r\nhi\r\nPING\r\n",
    "old client gets no second INFO": OLD + b"PING\r\n",
    "defaults are verbose and pedantic": b"SUB foo 1\r\nPUB foo 2\r\nhi\r\nUNSUB 1\r\nPUB a..b 0\r\n\r\nPING\r\n",
    "connect verbose": b"CONNECT {}\r\nPUB foo.* 0\r\n\r\nPUB foo 0\r\n\r\n",
    "connect without json": b"CONNECT\r\nPING\r\n",
    "connect without blank": b'CONNECT{"verbose":false}\r\nPING\r\n',
    "connect LF then json": b"CONNECT\n{}\r\nPING\r\n",
    "connect bad json": b"CONNECT {nonsense}\r\nPING\r\n",
    "connect array": b"CONNECT []\r\nPING\r\n",
    "connect null": b"CONNECT null\r\nPUB foo 0\r\n\r\nPING\r\n",
    "connect trailing text": b"CONNECT {} x\r\nPING\r\n",
    "connect wrong type": b'CONNECT {"verbose":"yes"}\r\nPING\r\n',
    "connect float protocol": b'CONNECT {"protocol":1.0}\r\nPING\r\n',
    "connect NaN": b'CONNECT {"protocol":NaN}\r\nPING\r\n',
    "connect null field": b'CONNECT {"verbose":null,"pedantic":false}\r\nPING\r\n',
    "connect upper-case field": b'CONNECT {"VERBOSE":false,"Pedantic":false}\r\nPUB a..b 0\r\n\r\nPING\r\n',
    "connect unknown field": b'CONNECT {"verbose":false,"flavour":{"x":[1,2]}}\r\nPING\r\n',
    "connect invalid utf-8": b'CONNECT {"verbose":false,"name":"\xff"}\r\nPING\r\n',
    "connect protocol 2": b'CONNECT {"protocol":2}\r\nPING\r\n',
    "connect no_responders without headers": b'CONNECT {"no_responders":true}\r\nPING\r\n',
    "connect account": b'CONNECT {"account":"x"}\r\nPING\r\n',
    "credentials are ignored": b'CONNECT {"verbose":false,"user":"a","pass":"b","auth_token":"c"}\r\nPING\r\n',
    "echo off": b'CONNECT {"verbose":false,"echo":false}\r\nSUB foo 1\r\nPUB foo 2\r\nhi\r\nPING\r\n',
    "echo off counts as nobody": b'CONNECT {"verbose":false,"echo":false,"headers":true,"no_responders":true}\r\n'
    b"SUB foo 1\r\nSUB in 2\r\nPUB foo in 2\r\nhi\r\nPING\r\n",
    "publish": QUIET + b"SUB foo 1\r\nPUB foo 5\r\nhello\r\nPUB foo re.ply 5\r\nworld\r\nPUB foo 0\r\n\r\n",
    "tabs and blanks": QUIET + b"SUB\tfoo \t 1 \r\nPUB  foo\t\t5 \r\nhello\r\npub foo  bar\t2\r\nhi\r\n",
    "LF control lines": QUIET + b"SUB foo 1\nPUB foo 5\nhello\r\nUNSUB 1\nPING\n",
    "payload with CRLF": QUIET + b"SUB foo 1\r\nPUB foo 10\r\nab\r\nPING\r\n\r\n",
    "payload LF only": QUIET + b"SUB foo 1\r\nPUB foo 2\r\nhi\nPING\r\n",
    "payload too long": QUIET + b"SUB foo 1\r\nPUB foo 2\r\nhix\r\nPING\r\n",
    "payload too short": QUIET + b"SUB foo 1\r\nPUB foo 4\r\nhi\r\nPING\r\n",
    "half a message": QUIET + b"SUB foo 1\r\nPUB foo 4\r\nhi",
    "size forms": QUIET + b"PUB foo 0000002\r\nhi\r\nPUB foo 000000002\r\nhi\r\nPING\r\nPUB foo 0000000002\r\nhi\r\n",
    "size plus": QUIET + b"PUB foo +2\r\nhi\r\nPING\r\n",
    "size minus": QUIET + b"PUB foo -2\r\nhi\r\nPING\r\n",
    "size underscore": QUIET + b"PUB foo 1_0\r\n0123456789\r\nPING\r\n",
    "size words": QUIET + b"PUB foo bar baz\r\nhi\r\nPING\r\n",
    "publish no args": QUIET + b"PUB \r\nPING\r\n",
    "publish bare": QUIET + b"PUB\r\nPING\r\n",
    "publish one arg": QUIET + b"PUB foo\r\nPING\r\n",
    "publish four args": QUIET + b"PUB foo bar 2 2\r\nhi\r\nPING\r\n",
    "LF as first byte of args": QUIET + b"SUB \nfoo 1\r\nPUB \nfoo 2\r\nhi\r\nPING\r\n",
    "CR inside args": QUIET + b"PUB foo\r 5\r\nhello\r\nPING\r\n",
    "CR inside args and LF": QUIET + b"PUB foo\r 5\nhello\r\nPING\r\n",
    "odd subjects": QUIET + b"SUB f\x0bo.\xff\xfe 1\r\nPUB f\x0bo.\xff\xfe 2\r\nhi\r\nSUB foo*bar.sec>x 2\r\n"
    b"PUB foo*bar.sec>x 1\r\na\r\n",
    "empty tokens": QUIET
    + b"SUB > 1\r\nPUB a..b 1\r\na\r\nPUB .a 1\r\na\r\nPUB a. 1\r\na\r\nPUB . 1\r\na\r\nPUB a 1\r\nb\r\n",
    "invalid subscriptions": QUIET + b"SUB a..b 1\r\nSUB .a 2\r\nSUB a. 3\r\nSUB a.>.b 4\r\nSUB >.a 5\r\nSUB . 6\r\n"
    b"SUB a..b 7\r\nPUB a..b 1\r\nx\r\nPING\r\n",
    "published wildcards are literal": QUIET + b"SUB foo.* 1\r\nSUB foo.> 2\r\nSUB foo.a 3\r\nPUB foo.* 1\r\na\r\n"
    b"PUB foo.> 1\r\nb\r\nPUB foo.a 1\r\nc\r\nPUB * 1\r\nd\r\n",
    "wildcards": QUIET + b"SUB a.*.c 1\r\nSUB a.> 2\r\nSUB *.b.* 3\r\nSUB > 4\r\nSUB * 5\r\nSUB a.b.c 6\r\n"
    b"PUB a.b.c 1\r\n1\r\nPUB a.b 1\r\n2\r\nPUB a 1\r\n3\r\nPUB a.x.c 1\r\n4\r\nPUB a.b.c.d 1\r\n5\r\n",
    "families": QUIET
    + b"SUB in.x.* 1\r\nPUB in.x.1 1\r\na\r\nPUB in.x.2 1\r\nb\r\nPUB in.x. 1\r\nc\r\nPUB in.x 1\r\nd\r\n"
    b"PUB in.x.1.2 1\r\ne\r\nSUB in.x.3 2\r\nPUB in.x.3 1\r\nf\r\nSUB in.> 3\r\nPUB in.x.4 1\r\ng\r\nUNSUB 1\r\n"
    b"PUB in.x.5 1\r\nh\r\nPUB in.x.3 1\r\ni\r\nSUB in.y.> 4\r\nPUB in.y.1.2.3 1\r\nj\r\nPUB in.y.1..3 1\r\nk\r\n",
    "sub no args": QUIET + b"SUB \r\n",
    "sub one arg": QUIET + b"SUB foo\r\nPING\r\n",
    "sub four args": QUIET + b"SUB foo q 1 2\r\nPING\r\n",
    "same sid twice": b"SUB foo 1\r\nSUB bar 1\r\nPUB foo 1\r\na\r\nPUB bar 1\r\nb\r\n",
    "odd sids and queues": QUIET + b"SUB foo q.* a>b\r\nPUB foo 1\r\na\r\nSUB bar a..b \xff\r\nPUB bar 1\r\nb\r\n",
    "queue group": QUIET + b"SUB foo q 1\r\nSUB foo p 2\r\nPUB foo 1\r\na\r\nPING\r\n",
    "unsub": b"SUB foo 1\r\nUNSUB 1\r\nUNSUB 1\r\nUNSUB 99 5\r\nPUB foo 1\r\na\r\n",
    "unsub bare": QUIET + b"UNSUB\r\n",
    "unsub no args": QUIET + b"UNSUB \r\n",
    "unsub three args": QUIET + b"UNSUB 1 2 3\r\nPING\r\n",
    "unsub max": QUIET + b"SUB foo 1\r\nUNSUB 1 2\r\n" + b"PUB foo 1\r\na\r\n" * 4 + b"PING\r\n",
    "unsub max reached": QUIET + b"SUB foo 1\r\n" + b"PUB foo 1\r\na\r\n" * 3 + b"UNSUB 1 3\r\nPUB foo 1\r\nb\r\n",
    "unsub max later": QUIET
    + b"SUB foo 1\r\n"
    + b"PUB foo 1\r\na\r\n" * 3
    + b"UNSUB 1 5\r\n"
    + b"PUB foo 1\r\nb\r\n" * 4,
    "unsub garbage": QUIET
    + b"SUB foo 1\r\nUNSUB 1 x\r\nPUB foo 1\r\na\r\nSUB foo 2\r\nUNSUB 2 -1\r\nPUB foo 1\r\na\r\nPING\r\n",
    "reserved": QUIET + b"SUB foo _sys_ 1\r\nPUB $NRG.x 1\r\na\r\nPUB foo _R_.x 1\r\na\r\nPUB $GR.x 1\r\na\r\n"
    b"PUB _GR_.x 1\r\na\r\nPUB x $JS.ACK.a 0\r\n\r\nPING\r\n",
    "reserved verbose": b"SUB foo _sys_ 1\r\nPUB $NRG.x 1\r\na\r\nPUB foo _R_.x 1\r\na\r\n",
    "no responders": QUIET
    + b"SUB in.* 7\r\nPUB svc.none in.1 2\r\nhi\r\nPUB svc.none out.1 2\r\nhi\r\nPUB svc.none 2\r\nhi\r\n",
    "no responders queue inbox": QUIET + b"SUB in.* q 7\r\nPUB svc.none in.1 2\r\nhi\r\nPING\r\n",
    "no responders not asked for": OLD + b"SUB in.* 7\r\nPUB svc.none in.1 2\r\nhi\r\nPING\r\n",
    "headers": QUIET
    + b"SUB foo 1\r\nHPUB foo 22 27\r\nNATS/1.0\r\nBar: Baz\r\n\r\nhello\r\nHPUB foo re 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    "headers of nothing": QUIET + b"SUB foo 1\r\nHPUB foo 0 5\r\nhello\r\n" + b"HPUB foo 0 0\r\n\r\n" * 4,
    "headers again and again": QUIET
    + b"SUB foo 1\r\n"
    + b"HPUB foo re 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPUB foo 0\r\n\r\n" * 4,
    "headers unchecked": QUIET + b"SUB foo 1\r\nHPUB foo 5 7\r\nXYZ\r\nhi\r\n",
    "headers too long": QUIET + b"HPUB foo 6 5\r\nhello\r\nPING\r\n",
    "headers bad sizes": QUIET + b"HPUB foo x 5\r\nhello\r\nPING\r\n",
    "headers two args": QUIET + b"HPUB foo 5\r\nhello\r\nPING\r\n",
    "headers five args": QUIET + b"HPUB foo a b 0 5\r\nhello\r\nPING\r\n",
    "headers not announced": OLD + b"HPUB foo 0 5\r\nhello\r\nPING\r\n",
    "headers bare": QUIET + b"HPUB\r\n",
    "tabs in HPUB": QUIET + b"SUB foo 1\r\nhpub\tfoo\t12  14\r\nNATS/1.0\r\n\r\nhi\r\n",
    "max payload": QUIET + b"PUB foo 1048577\r\n",
    "max payload reply": QUIET + b"PUB foo bar 999999999\r\nabc",
    "control line full": QUIET + b"SUB " + b"a" * 4094 + b" 1\r\nPING\r\n",
    "control line over": b"SUB " + b"a" * 4095 + b" 1\r\n",
    "control line partial": b"SUB " + b"a" * 4097,
    "control line of PUB": b"PUB " + b"a" * 4095 + b" 1\r\n",
    "control line of CONNECT": b"CONNECT {" + b" " * 4096 + b"}\r\n",
    "leading blank": b" PING\r\n",
    "empty line": b"\r\n",
    "unknown verb": b"FOO bar\r\n",
    "unknown verb partial": b"X",
    "nearly PUB": b"PUBX foo 1\r\n",
    "nearly PUB partial": b"PUBX",
    "nearly CONNECT": b"CONNECX",
    "half a verb": b"PI",
    "server verbs": b"MSG foo 1 1\r\na\r\n",
    "route verbs": b"RS+ foo\r\n",
    "leaf verbs": b"LS+ foo\r\n",
    "account verbs": b"A+ foo\r\n",
    "error from client": b"-ERR 'something'\r\nPING\r\n",
    "error without blank": b"-ERR\r\nPING\r\n",
    "info from client": b'INFO {"x":1}\r\nPING\r\n',
    "info bad json": b"INFO {\r\nPING\r\n",
    "info bare": b"INFO\r\nPING\r\n",
    "ok from client": b"+OK\r\nPING\r\n",
    "binary": bytes(range(256)),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_same_answer(name: str, oracle: Oracle, broker: Broker) -> None:
    script = SCRIPTS[name]
    theirs = await converse(oracle.port, script)
    ours = await converse(broker.port, script)
    assert ours.frames == theirs.frames or (theirs.reset and ours.agrees(theirs))


@pytest.mark.parametrize("name", ["publish", "wildcards", "headers", "unsub max", "payload with CRLF", "no responders"])
async def test_same_answer_byte_by_byte(name: str, oracle: Oracle, broker: Broker) -> None:
    script = SCRIPTS[name]
    theirs = await converse(oracle.port, script)
    ours = await converse(broker.port, *(script[i : i + 1] for i in range(len(script))))
    assert ours.frames == theirs.frames


async def test_full_payload(oracle: Oracle, broker: Broker) -> None:
    script = QUIET + b"SUB foo 1\r\nPUB foo 1048576\r\n" + b"x" * 1048576 + b"\r\nPUB foo 3\r\nend\r\n"
    theirs = await converse(oracle.port, script)
    ours = await converse(broker.port, script)
    assert ours == theirs
    assert ours.frames[-1] == b"MSG foo 1 3\r\nend\r\n"
