"""Registries that are down, slow, wrong or hostile: the client reports it in one line and carries on."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from typing import Any

import pytest
from aiohttp import web

from nimsnats.registry import (
    NodeInfo,
    RegistryAnswerError,
    RegistryConfigError,
    RegistryError,
    RegistryRefusedError,
    RegistryUnavailableError,
)
from nimsnats.registry.morpheus import MorpheusRegistry
from nimsnats.registry.transport import RegistryTls
from nimsnats.runtime import Runtime
from tests.registry.watching import until, watching
from tests.registry.zoo import Handler, zoo

ME = NodeInfo("me", "127.0.0.1", 6222)
GOOD = {"name": "good", "address": "10.0.0.1", "port": 6222}


def client(url: str, **more: Any) -> MorpheusRegistry:
    return MorpheusRegistry(url, runtime=Runtime.real(), **{"timeout": 0.3, "poll_interval": 0.02, **more})


def says(body: object, status: int = 200, **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        if isinstance(body, bytes):
            return web.Response(body=body, status=status, headers=headers)
        return web.json_response(body, status=status, headers=headers)

    return handler


async def hangs(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def drips(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.02)


async def floods(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def drops(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize(
    ("handler", "error", "text"),
    [
        (says(b"<html>hello</html>", **{"Content-Type": "text/html"}), RegistryAnswerError, "text/html"),
        (says(b""), RegistryAnswerError, "not JSON"),
        (says(b"\xff\xfe\x00"), RegistryAnswerError, "not JSON"),
        (says(b"[" * 200_000), RegistryAnswerError, "not JSON"),
        (says(b"1" * 10_000), RegistryAnswerError, "not JSON"),
        (says({"nodes": []}), RegistryAnswerError, "not a list"),
        (says(None), RegistryAnswerError, "not a list"),
        (says([GOOD] * 10_001), RegistryAnswerError, "10001 nodes"),
        (says(gzip.compress(b"[]"), **{"Content-Encoding": "gzip"}), RegistryAnswerError, "not JSON"),
        (floods, RegistryAnswerError, "more than 2048 KiB"),
        (hangs, RegistryUnavailableError, "no answer within 0.3s"),
        (drips, RegistryUnavailableError, "no answer within 0.3s"),
        (drops, RegistryUnavailableError, "isconnected"),
        (says({"error": "on fire"}, 500), RegistryUnavailableError, "500 Internal Server Error: on fire"),
        (says(b"<h1>Bad Gateway", 502), RegistryUnavailableError, "502 Bad Gateway"),
        (says({"error": "token, please"}, 401), RegistryRefusedError, "401 Unauthorized: token, please"),
        (says({"error": "\x1b[2J"}, 403), RegistryRefusedError, "^answered 403 Forbidden$"),
        (says([], 404), RegistryAnswerError, "is this a registry's URL"),
        (says(b"", 302, Location="http://127.0.0.1:1/"), RegistryAnswerError, "pointing to http://127.0.0.1:1/"),
    ],
)
async def test_an_answer_that_is_none(handler: Handler, error: type[RegistryError], text: str) -> None:
    async with zoo(handler) as registry, client(registry.url) as one:
        with pytest.raises(error, match=text):
            await one.get_peers()
        assert not one.status.connected and one.status.last_error and one.status.failures == 1
        assert "\n" not in one.status.last_error


async def test_nobody_listens() -> None:
    async with zoo() as registry:
        url = registry.url
    async with client(url) as one:
        with pytest.raises(RegistryUnavailableError, match=r"Connect call failed|refused"):
            await one.get_peers()


async def test_another_protocol_answers() -> None:
    async def ssh(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        await writer.drain()
        writer.close()

    async with (
        await asyncio.start_server(ssh, "127.0.0.1", 0) as server,
        client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as one,
    ):
        with pytest.raises(RegistryUnavailableError):
            await one.get_peers()


async def test_bad_entries_are_skipped_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    listing = [
        GOOD,
        {**GOOD, "name": "negative", "port": -1},
        {**GOOD, "name": "text", "port": "6222"},
        {**GOOD, "name": ""},
        {**GOOD, "name": "nowhere", "address": ""},
        {**GOOD, "name": "extra", "zone": {"a": [1]}, "registered_at": 5},
        {"address": "10.0.0.1"},
        7,
        None,
        [],
        "node",
    ]
    async with zoo(says(listing)) as registry, client(registry.url) as one:
        for _ in range(3):
            assert [peer.name for peer in await one.get_peers()] == ["good", "extra"]
        assert one.status.connected
        listed = await one.list_nodes()
        assert listed.skipped == {"negative", "text", "nowhere", ""} and listed.may_hide("any name at all")
    async with zoo(says([GOOD, {**GOOD, "name": "text", "port": "6222"}])) as registry, client(registry.url) as one:
        listed = await one.list_nodes()
        assert listed.may_hide("text") and not listed.may_hide("good") and not listed.may_hide("other")
    assert caplog.text.count("is skipped") == 10, "each fault once, however often it is listed"
    assert caplog.text.count("'port' must be between") == 1


async def test_names_listed_twice(caplog: pytest.LogCaptureFixture) -> None:
    me = ME.to_json()
    listing = [{**me, "port": 1}, me, GOOD, {**GOOD, "port": 7}, me]
    async with zoo(says(listing)) as registry, client(registry.url) as one:
        await one.register(ME)
        assert [(peer.name, peer.port) for peer in await one.get_peers()] == [("good", 6222)]
        listed = await one.list_nodes()
        found = listed.find("me")
        assert listed.may_hide("good"), "the second entry may be the real one"
        assert found is not None and found.port == 6222, "of our own name the entry that is us counts"
    assert caplog.text.count("names must be unique") == 1
    assert caplog.text.count("lists good twice: using 10.0.0.1:6222, not 10.0.0.1:7") == 1


async def test_a_web_page_is_not_an_acknowledgement() -> None:
    portal = says(b"<html>Please log in", **{"Content-Type": "text/html"})
    async with zoo(portal) as registry, client(registry.url) as one:
        with pytest.raises(RegistryAnswerError, match="web page"):
            await one.register(ME)
        assert not one.status.registered and not one.lease.unbroken(one.runtime.boot_time_ns())


@pytest.mark.parametrize("ttl", ["", "abc", "-3", "nan", "inf", "1e12"])
async def test_a_ttl_that_makes_no_sense_is_unknown(ttl: str) -> None:
    async with zoo(says({}, **{"X-Registry-TTL": ttl})) as registry, client(registry.url) as one:
        await one.register(ME)
        assert one.lease.ttl_ns == 0 and not one.lease.unbroken(one.runtime.boot_time_ns())


async def test_register_again_when_the_heartbeat_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def forgetful(request: web.Request) -> web.StreamResponse:
        return web.Response(status=404 if request.method == "PUT" else 201)

    async with zoo(forgetful) as registry, client(registry.url, heartbeat_interval=0.01) as one:
        await one.register(ME)
        await until(lambda: registry.seen("POST") > 3)
        await until(lambda: one.status.registered and one.status.connected)  # the last answer is still on its way
        await one.deregister()
    assert caplog.text.count("Registered in registry") == 1, "without heartbeats this is routine, not news"


async def test_heartbeats_go_on_through_errors_and_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with zoo(says({})) as registry, client(registry.url, heartbeat_interval=0.01) as one:
        await one.register(ME)
        registry.handler = says({"error": "maintenance"}, 503)
        beats = registry.seen("PUT")
        await until(lambda: registry.seen("PUT") > beats + 3)
        assert not one.status.connected
        registry.handler = says({})
        await until(lambda: one.status.connected)
    assert caplog.text.count("503 Service Unavailable: maintenance; the cluster goes on") == 1
    assert caplog.text.count("answers again") == 1


async def test_a_ttl_shorter_than_the_interval_quickens_the_heart(caplog: pytest.LogCaptureFixture) -> None:
    hasty = says({}, **{"X-Registry-TTL": "0.03"})
    async with zoo(hasty) as registry, client(registry.url, heartbeat_interval=3600) as one:
        await one.register(ME)
        await until(lambda: registry.seen("PUT") > 2)
    assert caplog.text.count("is too long for the registry's TTL 0.03s: using 0.01s") == 1


async def test_token_and_names_travel_as_they_should() -> None:
    async with zoo(says([])) as registry:
        async with client(registry.url + "/prefix/", service="my+svc", token="t0ken") as one:
            await one.register(NodeInfo("a@b", "127.0.0.1", 1))
            await one.heartbeat()
            await one.get_peers()
            await one.deregister()
        assert registry.requests == [
            ("POST", "/prefix/v1/services/my%2Bsvc/nodes"),
            ("PUT", "/prefix/v1/services/my%2Bsvc/nodes/a%40b/heartbeat"),
            ("GET", "/prefix/v1/services/my%2Bsvc/nodes"),
            ("DELETE", "/prefix/v1/services/my%2Bsvc/nodes/a%40b"),
        ]
        assert {headers["Authorization"] for headers in registry.headers} == {"Bearer t0ken"}


# -- watching a registry that is not ours ---------------------------------------------------------------------------


async def test_watch_falls_back_to_polling_where_watch_is_ignored() -> None:
    async with zoo(says([GOOD])) as registry, client(registry.url) as one, watching(one) as seen:
        assert await seen.next() == ("added", "good")
        await until(lambda: one.status.watch == "poll")
        registry.handler = says([])
        assert await seen.next() == ("removed", "good")
        assert any("watch=true" not in path for _, path in registry.requests)


@pytest.mark.parametrize("refusal", [400, 404, 406, 500, 501])
async def test_watch_falls_back_to_polling_where_watch_is_refused(
    refusal: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=refusal) if "watch" in request.query else web.json_response([GOOD])

    async with zoo(handler) as registry, client(registry.url) as one, watching(one) as seen:
        assert await seen.next() == ("added", "good")
        await until(lambda: one.status.watch == "poll")
    assert refusal == 500 or not caplog.records, "a registry without watch is no trouble"


async def test_watch_falls_back_where_watching_hangs() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await hangs(request) if "watch" in request.query else web.json_response([GOOD])

    async with zoo(handler) as registry, client(registry.url, timeout=0.05) as one, watching(one) as seen:
        assert await seen.next() == ("added", "good")
        assert one.status.watch == "long-poll"


async def test_a_stream_in_another_dialect_is_a_hint_to_look() -> None:
    nodes: list[dict[str, Any]] = []
    messages: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response(nodes)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        while True:
            await response.write(await messages.get())

    async with zoo(handler) as registry, client(registry.url) as one, watching(one) as seen:
        await until(lambda: one.status.watch == "sse")
        for number, hint in enumerate(
            [b"data: changed\n\n", b"event: added\ndata: {\r\n\r\n", b"event: added\ndata: {}\n\n", b"data: 5\r\r"]
        ):
            nodes.append({**GOOD, "name": f"n{number}"})
            messages.put_nowait(hint)
            assert await seen.next() == ("added", f"n{number}")
        messages.put_nowait(b'event: whatever\ndata: [{"name": "n0",\ndata: "address": "10.0.0.1", "port": 6222}]\n\n')
        assert sorted([await seen.next() for _ in range(3)]) == [("removed", f"n{n}") for n in (1, 2, 3)]
        messages.put_nowait(b'event: removed\ndata: {"name":"n0","address":"10.0.0.1","port":6222}\n\n')
        assert await seen.next() == ("removed", "n0")


@pytest.mark.parametrize("chunk", [b"data: " + b"x" * 70_000, b"\xff\x00\n", b"event: added\ndata: []\n\n"])
async def test_a_stream_of_garbage_ends_in_a_listing(chunk: bytes) -> None:
    nodes: list[dict[str, Any]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response(nodes)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(40):
            await response.write(chunk)
        return response

    async with zoo(handler) as registry, client(registry.url) as one, watching(one) as seen:
        await until(lambda: registry.seen("GET") > 2)
        nodes.append(GOOD)
        assert await seen.next() == ("added", "good")


async def test_a_stream_that_breaks_off_is_a_registry_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """A registry that is killed: the answer ends in the middle, which is no fault of ours."""
    nodes: list[dict[str, Any]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response(nodes)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": hello\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with zoo(handler) as registry, client(registry.url) as one, watching(one) as seen:
        await until(lambda: registry.seen("GET") > 2)
        nodes.append(GOOD)
        assert await seen.next() == ("added", "good")
    assert not [record for record in caplog.records if record.exc_info]


# -- settings that cannot work --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "more", "text"),
    [
        ("", {}, "must look like"),
        ("morpheus:8500", {}, "must look like"),
        ("ftp://host", {}, "must look like"),
        ("http://", {}, "must look like"),
        ("http://host:99999", {}, "must look like"),
        ("http://ho st", {}, "must look like"),
        ("http://user:pass@host", {}, "must not hold credentials"),
        ("http://host/?a=b", {}, "must not have a query"),
        ("http://host", {"token": "a\nb"}, "registry token"),
        ("http://host", {"service": "a/b"}, "service name"),
        ("https://host", {"tls": RegistryTls(ca_file="/nonexistent.pem")}, "CA file /nonexistent.pem: No such file"),
        ("https://host", {"tls": RegistryTls(cert_file="/nonexistent.pem")}, "certificate /nonexistent.pem"),
        ("https://host", {"tls": RegistryTls(key_file="/k.pem")}, "needs a certificate"),
    ],
)
async def test_settings_that_cannot_work(url: str, more: dict[str, Any], text: str) -> None:
    with pytest.raises(RegistryConfigError, match=text) as caught:
        MorpheusRegistry(url, **{"service": "nimsforest", "runtime": Runtime.real(), **more})
    assert "pass" not in str(caught.value)


def test_listing_json_is_what_the_server_takes() -> None:
    full = NodeInfo("n", "fd00::1", 6222, instance="i", http="http://[fd00::1]:8222")
    assert NodeInfo.from_json(json.loads(json.dumps(full.to_json()))) == full
    assert full.cluster_addr == "[fd00::1]:6222"
