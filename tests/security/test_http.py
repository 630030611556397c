"""The HTTP port under strangers: slow ones, greedy ones, malformed ones, and pages in an operator's browser."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from forest import Forest, ForestOptions
from forest.signature import BadSignature, sign, verify
from forest.webhook import endpoints, webhook_handler
from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.server import Broker
from nimsnats.config import ConfigError, NodeFlags, load_node
from nimsnats.http_server import SAFE_HEADERS, Listener
from nimsnats.monitor import page as page_package
from nimsnats.monitor.endpoints import ENDPOINTS
from nimsnats.monitor.page.live import MOST_PER_SOURCE
from nimsnats.monitor.server import MonitorServer
from nimsnats.monitor.view import NodeView
from nimsnats.runtime import Runtime
from nimsnats.server import Server
from nimsnats.source import source_of
from tests.registry.watching import until

assert page_package

SECRET = "whsec_of_a_test"


@asynccontextmanager
async def listening(**limits: Any) -> AsyncIterator[tuple[int, Listener]]:
    """A small application behind the listener of production."""
    app = web.Application()

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def big(_: web.Request) -> web.Response:
        return web.Response(body=bytes(64 << 20))

    async def held(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def broken(_: web.Request) -> web.Response:
        raise KeyError("our own bug")

    app.router.add_route("*", "/echo", echo)
    app.router.add_get("/big", big)
    app.router.add_get("/held", held)
    app.router.add_get("/broken", broken)
    listener = Listener(app, asyncio.get_running_loop(), shutdown_timeout=0.1, **limits)
    port = await listener.start("127.0.0.1", 0)
    try:
        yield port, listener
    finally:
        await listener.stop()


async def answers(port: int) -> bool:
    async with aiohttp.ClientSession() as session, session.post(f"http://127.0.0.1:{port}/echo", data=b"x") as response:
        return response.status == 200 and await response.read() == b"x"


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came until the server ended the connection."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


SLOW = [
    b"",
    b"GET",
    b"GET /echo HTTP/1.1\r\nHost: x\r\nX-A: ",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n0123",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01",
    b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\nGET /echo HTTP/1.1\r\nX-A",
]


@pytest.mark.parametrize("beginning", SLOW[:5])
@pytest.mark.parametrize("drips", [False, True])
async def test_whoever_sends_slowly_is_cut_off(beginning: bytes, drips: bool) -> None:
    async with listening(read_timeout=0.3) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(beginning)

        async def drip() -> None:
            while True:
                writer.write(b"1")
                await writer.drain()
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip()) if drips and beginning else None
        assert await answers(port)
        await ended(reader)
        assert await answers(port)
        if dripping is not None:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
        writer.close()


async def test_whoever_does_not_take_his_answer_is_cut_off() -> None:
    async with listening(read_timeout=0.4, write_timeout=0.3) as (port, listener):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: len(listener._connections) == 1)
        assert await answers(port)
        await until(lambda: not listener._connections)
        assert reader is not None
        writer.close()


async def test_an_answer_in_the_making_is_not_cut_off() -> None:
    async with listening(read_timeout=0.1, write_timeout=0.1) as (port, listener):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.5)
        assert len(listener._connections) == 1 and not reader.at_eof()
        writer.close()
        await until(lambda: not listener._connections)


async def test_idle_connections_make_room_for_the_next() -> None:
    async with listening(max_connections=20, max_per_source=10) as (port, listener):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        assert await answers(port)
        assert len(listener._connections) <= 10
        elsewhere = [
            await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.0.{n}", 0)) for n in range(2, 30)
        ]
        assert await answers(port)
        assert len(listener._connections) <= 20
        for _, writer in (*held, *elsewhere):
            writer.close()
        await until(lambda: not listener._connections)
        assert not listener._sources


async def test_requests_under_way_are_not_pushed_out() -> None:
    async with listening(max_per_source=4) as (port, listener):
        busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, writer in busy:
            writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: sum(not one.is_idle for one in listener._connections) == 3)
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        assert await answers(port)
        assert sum(not one.is_idle for one in listener._connections) == 3
        for _, writer in (*busy, *idle):
            writer.close()


def test_sources_are_addresses_or_networks() -> None:
    assert source_of("10.0.0.1") == source_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert source_of("2001:db8::1") == source_of("2001:db8::ffff:2") != source_of("2001:db8:0:1::1")
    assert source_of("fe80::1%eth0") == source_of("fe80::2")
    assert source_of("") == "" and source_of("unix") == "unix"


MALFORMED = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"HELLO\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /echo HTTP/1.1\r\nHost x\r\n\r\n",
    b"GET /echo HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n",
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /echo HTTP/1.1\r\nHost: x\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(1000)) + b"\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 400 + b"\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Encoding: deflate\r\nContent-Length: 4\r\n\r\n\xff\xff\xff\xff",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: nonsense\r\nConnection: close\r\nContent-Length: 1\r\n\r\na",
]


@pytest.mark.parametrize("request_", MALFORMED)
async def test_a_malformed_request_is_its_senders_mistake(request_: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with listening(read_timeout=0.5) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_)
        await writer.drain()
        answer = await ended(reader)
        assert not answer or answer.split()[1].startswith(b"4"), answer[:300]
        assert await answers(port)
        writer.close()
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not loud, loud


async def test_our_own_mistake_is_logged_and_costs_one_answer(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as (port, _):
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/broken") as response:
            assert response.status == 500 and "our own bug" not in await response.text()
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert await answers(port)
    assert "our own bug" in caplog.text


# -- the monitor's port -----------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def port() -> AsyncIterator[str]:
    """A monitor on a broker without JetStream, and the URL of it."""
    broker = Broker(BrokerOptions(host="127.0.0.1", port=-1), Runtime.real())
    await broker.start()
    view = NodeView(broker)
    view.start()
    server = MonitorServer(view, "127.0.0.1", -1)
    await server.start()
    yield f"http://127.0.0.1:{server.port}"
    await server.stop()
    view.stop()
    await broker.stop()


BAD_VALUES = [
    "9" * 5000,
    "-" + "9" * 5000,
    "-1",
    "0x1",
    "1e9",
    "\u0661",
    "NaN",
    "\x00",
    "\ufffd",
    "<script>",
    "'\"",
    "%",
    "a" * 4000,
]
PATHS = [(endpoint.paths[0], name) for endpoint in ENDPOINTS if endpoint.paths for name in endpoint.readers]
PATHS += [("/metrics", "raft"), ("/metrics", "streams")]


async def test_every_parameter_with_every_bad_value_is_an_answer_or_a_400(
    port: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`js-...` of /healthz are switches as well: whatever they say, health answers 200 or 503."""
    async with aiohttp.ClientSession() as session:
        for path, name in PATHS:
            for value in BAD_VALUES:
                async with session.get(port + path, params={name: value}) as response:
                    assert response.status in (200, 400, 404, 503), (path, name, value[:20])
                    text = await response.text()
                    assert len(text) < 20_000 and "Traceback" not in text
                    if response.content_type == "application/json":
                        json.loads(text)
            async with session.get(f"{port}{path}?{name}=%ff%fe%zz&{name}=&=&{name}") as response:
                assert response.status in (200, 400, 404, 503)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(("value", "complaint"), [("9" * 5000, "out of range"), ("0" * 5000 + "x", "invalid syntax")])
async def test_numbers_of_thousands_of_digits_are_refused(port: str, value: str, complaint: str) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/connz", "/subsz", "/jsz"):
            async with session.get(port + path, params={"limit": value}) as response:
                assert response.status == 400 and complaint in await response.text()
        async with session.get(port + "/connz", params={"limit": "+" + "0" * 4000 + "7"}) as response:
            assert response.status == 200 and (await response.json())["limit"] == 7


async def test_every_answer_carries_the_safe_headers(port: str) -> None:
    paths = [path for endpoint in ENDPOINTS for path in endpoint.paths]
    paths += ["/", "/metrics", "/statusz", "/-/status.js", "/-/status.css", "/-/icon.svg", "/nothing", "/connz?limit=x"]
    async with aiohttp.ClientSession() as session:
        for path in paths:
            for accept in ("*/*", "text/html"):
                async with session.get(port + path, headers={"Accept": accept}) as response:
                    headers = response.headers
                    assert headers["X-Content-Type-Options"] == "nosniff", path
                    assert headers["Referrer-Policy"] == "no-referrer", path
                    policy = headers["Content-Security-Policy"]
                    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy, path
                    assert "Server" not in headers
        async with session.get(port + "/-/events") as response:
            assert response.headers["Content-Security-Policy"] == SAFE_HEADERS["Content-Security-Policy"]


async def test_a_page_posts_nothing_to_the_monitor(port: str) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/", "/varz", "/connz", "/metrics", "/webhooks/stripe", "/v1/services/a/nodes"):
            for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": port}):
                async with session.post(port + path, data=b"a=b", headers=headers) as response:
                    assert response.status == 403, (path, headers)
        async with session.get(port + "/-/events", headers={"Origin": "http://evil.example"}) as response:
            assert response.status == 403


async def test_one_address_does_not_take_all_places_at_the_live_page(port: str) -> None:
    async with aiohttp.ClientSession() as session:
        held = [await session.get(port + "/-/events") for _ in range(MOST_PER_SOURCE)]
        async with session.get(port + "/-/events") as response:
            assert response.status == 503
        elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
        async with aiohttp.ClientSession(connector=elsewhere) as other, other.get(port + "/-/events") as response:
            assert response.status == 200
        async with session.get(port + "/health") as response:
            assert response.status == 200
        for response in held:
            response.close()


NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</textarea>&lt;",
    "a\x00b",
    "\ud800",
    "x" * 200,
]


async def test_names_of_strangers_are_text_wherever_they_are_shown() -> None:
    async with Server(port=-1, monitor_port=-1) as server:
        assert server.monitor is not None
        url = f"http://127.0.0.1:{server.monitor.port}"
        writers: list[asyncio.StreamWriter] = []
        for name in NAMES:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            told = json.dumps({"verbose": False, "name": name, "lang": name, "version": name})
            writer.write(f"CONNECT {told}\r\nSUB a.<b>&\"' <q> 1\r\nPING\r\n".encode())
            await reader.readuntil(b"PONG\r\n")
            writers.append(writer)
        async with aiohttp.ClientSession() as session:
            for path in ("/connz?subs=1&auth=1", "/connz?subs=detail", "/subsz?subs=1", "/statusz", "/metrics"):
                async with session.get(url + path) as response:
                    text = await response.text()
                    assert response.status == 200 and "<script" not in text and "<img" not in text, path
            async with session.get(url + "/", headers={"Accept": "text/html"}) as response:
                text = await response.text()
                assert response.status == 200 and "<script>alert" not in text and "<img" not in text
                assert "&lt;script&gt;alert(1)" in text
        for writer in writers:
            writer.close()


async def test_a_page_of_subscriptions_is_built_alone() -> None:
    async with Server(port=-1, monitor_port=-1, jetstream=False) as server:
        client = await server.client()
        for number in range(300):
            await client.subscribe(f"many.{number}")
        await client.flush()
        assert server.monitor is not None
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{server.monitor.port}/subsz?subs=1&acc=$G&test=many.7"
            async with session.get(url) as response:
                found = await response.json()
                assert found["total"] == 1 and [sub["subject"] for sub in found["subscriptions_list"]] == ["many.7"]
            for query, count in (
                ("limit=7&offset=290", 7),
                ("limit=7&offset=9223372036854775807", 0),
                ("limit=9223372036854775807", 300),
            ):
                async with session.get(
                    f"http://127.0.0.1:{server.monitor.port}/subsz?subs=1&acc=$G&{query}"
                ) as response:
                    found = await response.json()
                    assert len(found.get("subscriptions_list", [])) == (found["total"] if count == 300 else count)
                    assert found["total"] >= 300
        await client.close()


# -- webhooks ---------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_731_513_850.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def hooked(server: Server, clock: Clock, tolerance: float = 300.0) -> AsyncIterator[str]:
    """A forest without trees on a server, and its webhooks on the listener of production."""
    async with Forest(server.url, ForestOptions(builtin=False, webhook_tolerance=tolerance)) as forest:
        handler = webhook_handler(
            forest.river, endpoints({"stripe": [SECRET]}), clock=clock, metrics=forest.metrics,
            log=logging.getLogger("forest"), tolerance=tolerance,
        )  # fmt: skip
        app = web.Application()
        app.router.add_post("/webhooks/{name}", handler)
        listener = Listener(app, asyncio.get_running_loop(), shutdown_timeout=0.1)
        yield f"http://127.0.0.1:{await listener.start('127.0.0.1', 0)}/webhooks/stripe"
        await listener.stop()


async def deliver(url: str, body: bytes, signature: str) -> int:
    shown = {"Stripe-Signature": signature}
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=shown) as response:
        return response.status


async def stored(server: Server) -> int:
    client = await server.client()
    info = await client.jetstream().stream_info("RIVER")
    await client.close()
    return int(info.state.last_seq)


@pytest.mark.parametrize("tolerance", [1.0, 300.0, 6 * 3600.0])
async def test_an_overheard_delivery_is_stored_once_for_as_long_as_it_is_accepted(tolerance: float) -> None:
    clock, body = Clock(), b'{"id": "evt_1"}'
    async with Server(port=-1) as server, hooked(server, clock, tolerance) as url:
        client = await server.client()
        window = (await client.jetstream().stream_info("RIVER")).config.duplicate_window
        assert window is not None and window > 2 * tolerance, "from the earliest moment to the last"
        await client.close()
        signature = sign(body, SECRET, int(clock.now + tolerance))
        assert await deliver(url, body, signature) == 200
        for moment in (0.0, tolerance, tolerance, 1.0):
            clock.now += moment
            assert await deliver(url, body, signature) == (200 if clock.now <= 1_731_513_850.0 + 2 * tolerance else 400)
        assert await stored(server) == 1
        assert await deliver(url, b'{"id": "evt_2"}', sign(b'{"id": "evt_2"}', SECRET, int(clock.now))) == 200
        assert await stored(server) == 2


async def test_a_river_of_before_remembers_longer_and_one_that_cannot_shortens_the_tolerance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, body = Clock(), b"{}"
    async with Server(port=-1) as server:
        client = await server.client()
        js = client.jetstream()
        await js.add_stream(name="RIVER", subjects=["river.>"], duplicate_window=120)
        async with hooked(server, clock):
            assert (await js.stream_info("RIVER")).config.duplicate_window == 660
        await js.delete_stream("RIVER")
        await js.add_stream(name="RIVER", subjects=["river.>"], duplicate_window=100, max_age=100)
        async with hooked(server, clock) as url:
            assert (await js.stream_info("RIVER")).config.duplicate_window == 100
            assert await deliver(url, body, sign(body, SECRET, int(clock.now) - 19)) == 200
            assert await deliver(url, body, sign(body, SECRET, int(clock.now) - 21)) == 400
        await client.close()
    assert "accepted for 20 s instead of 300 s" in caplog.text
    path = tmp_path / "node.conf"
    for value in ("0s", "7h", "-1s"):
        path.write_text(f"forest {{ webhook_tolerance: '{value}' }}")
        with pytest.raises(ConfigError, match="tolerance"):
            load_node(NodeFlags(config=str(path), data_dir=str(tmp_path / "d")), {"HOME": str(tmp_path)})


@pytest.mark.parametrize(
    "signature",
    [
        "é",
        "t=1,v1=é",
        "\udce9",
        "t=1,v1=\udce9",
        "t=" + "9" * 5000 + ",v1=0",
        "t=\u0661,v1=0",
        "t=1" + ",v1=0" * 900,
        ",=" * 900,
    ],
)
def test_a_strange_signature_is_a_bad_one(signature: str) -> None:
    with pytest.raises(BadSignature):
        verify(signature, b"body", [SECRET], 1.0)


async def test_strange_signatures_and_bodies_over_the_wire(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    async with Server(port=-1) as server, hooked(server, clock) as url:
        port = int(url.split(":")[2].split("/")[0])
        for header in (b"\xe9", b"t=1,v1=\xe9\xff", b"t=1,v1=" + b"0" * 7000):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
                         b"Stripe-Signature: " + header + b"\r\n\r\n{}")  # fmt: skip
            assert (await ended(reader)).startswith(b"HTTP/1.1 400")
            writer.close()
        huge = bytes(300 * 1024)
        assert await deliver(url, huge, sign(huge, SECRET, int(clock.now))) == 413
        both = sign(b"{}", SECRET, int(clock.now)).replace("v1=", f"v1={'0' * 64},v1=")
        assert await deliver(url, b"{}", both) == 200, "several v1 signatures, one of them ours"
        assert await stored(server) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
