"""The registry server's HTTP: what it answers to good and bad requests, watching, limits, and being embedded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from nimsnats.registry import RegistryConfigError, RegistryListenError
from nimsnats.registry.server import RegistryServer, parse_listen, serve
from nimsnats.runtime import Runtime
from tests.registry.clock import ManualRuntime
from tests.registry.watching import until

ONE = {"name": "node-1", "address": "192.168.1.10", "port": 6222}
NODES = "/v1/services/nimsforest/nodes"


class Http:
    """A bare HTTP client of one server."""

    def __init__(self, session: aiohttp.ClientSession, server: RegistryServer, runtime: ManualRuntime) -> None:
        self.session, self.server, self.runtime = session, server, runtime

    async def __call__(self, method: str, path: str, **more: Any) -> tuple[int, Any, Any]:
        async with self.session.request(method, self.server.url + path, **more) as response:
            assert response.content_type == "application/json", await response.text()
            return response.status, await response.json(), response.headers


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    runtime = ManualRuntime()
    server = RegistryServer(runtime, ttl=30)
    await server.start("127.0.0.1:0")
    async with aiohttp.ClientSession() as session:
        yield Http(session, server, runtime)
    await server.stop()


async def test_the_api_of_the_specification(http: Http) -> None:
    assert (await http("GET", NODES))[:2] == (200, [])
    status, body, headers = await http("POST", NODES, json=ONE)
    assert status == 201 and ONE.items() <= body.items() and body["registered_at"].endswith("Z")
    assert headers["X-Registry-TTL"] == "30"
    status, listed, headers = await http("GET", NODES)
    assert (status, listed) == (200, [body]) and int(headers["X-Registry-Index"]) > 0
    assert (await http("PUT", NODES + "/node-1/heartbeat"))[0] == 200
    assert (await http("GET", "/v1/services"))[1] == {"nimsforest": {"nodes": 1}}
    assert (await http("DELETE", NODES + "/node-1"))[:2] == (200, {"name": "node-1"})
    assert (await http("GET", NODES))[:2] == (200, [])
    status, health, _ = await http("GET", "/health")
    assert status == 200
    assert health == {"status": "healthy", "services": 0, "ttl": 30, "persistent": False}


async def test_heartbeats_extend_and_silence_expires(http: Http) -> None:
    await http("POST", NODES, json=ONE)
    await http("POST", "/v1/services/other/nodes", json=ONE)
    await http.runtime.advance(20)
    await http("PUT", NODES + "/node-1/heartbeat")
    await http.runtime.advance(20)
    assert (await http("GET", "/v1/services"))[1] == {"nimsforest": {"nodes": 1}}
    await http.runtime.advance(10)
    assert (await http("GET", NODES))[1] == []
    status, body, _ = await http("PUT", NODES + "/node-1/heartbeat")
    assert status == 404 and "not registered" in body["error"]


async def test_expiry_counts_at_the_moment_of_asking_not_of_sweeping(http: Http) -> None:
    await http("POST", NODES, json=ONE)
    http.runtime.now += 30  # no timer has run yet
    assert (await http("PUT", NODES + "/node-1/heartbeat"))[0] == 404
    await http("POST", NODES, json=ONE)
    http.runtime.now += 30
    assert (await http("GET", NODES))[1] == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "JSON"),
        (b"<html>", "JSON"),
        (b"[" * 20_000, "larger"),
        (b"[" * 9_000, "JSON"),
        (b"[]", "an array"),
        (b"{}", "'name'"),
        ({**ONE, "name": ""}, "'name'"),
        ({**ONE, "name": "a/b"}, "'name'"),
        ({**ONE, "name": ".."}, "'name'"),
        ({**ONE, "name": "n" * 254}, "'name'"),
        ({**ONE, "name": 7}, "a number"),
        ({**ONE, "address": None}, "'address'"),
        ({**ONE, "address": "0.0.0.0"}, "cannot|not an address"),
        ({**ONE, "address": "a b"}, "'address'"),
        ({**ONE, "address": "1.2.3.999"}, "'address'"),
        ({**ONE, "address": "[::1]"}, "'address'"),
        ({**ONE, "port": -1}, "'port'"),
        ({**ONE, "port": 0}, "'port'"),
        ({**ONE, "port": 65536}, "'port'"),
        ({**ONE, "port": "6222"}, "'port'"),
        ({**ONE, "port": True}, "'port'"),
        ({**ONE, "port": 6222.5}, "'port'"),
        ({**ONE, "instance": "a b"}, "'instance'"),
        ({**ONE, "http": "javascript:1"}, "'http'"),
    ],
)
async def test_a_bad_registration_is_refused_and_named(http: Http, body: Any, fault: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer, _ = await http("POST", NODES, data=data, headers={"Content-Type": "application/json"})
    assert status == (413 if fault == "larger" else 400)
    assert any(part in answer["error"] for part in fault.split("|")), answer
    assert (await http("GET", NODES))[1] == []


async def test_wrong_paths_methods_and_parameters(http: Http) -> None:
    assert (await http("GET", "/nothing"))[0] == 404
    assert (await http("GET", "/v1/services/nimsforest"))[0] == 404
    status, _, headers = await http("PATCH", NODES)
    assert status == 405 and headers["Allow"] == "GET, POST"
    assert (await http("POST", NODES + "/node-1/heartbeat"))[0] == 405
    assert (await http("DELETE", NODES + "/node-1"))[0] == 404
    assert (await http("GET", "/v1/services/a%20b/nodes"))[0] == 400
    for query in ("watch=maybe", "watch=true&index=abc", "watch=true&index=-1", "watch=true&wait=long"):
        assert (await http("GET", f"{NODES}?{query}"))[0] == 400, query


async def test_too_many_nodes_and_services_are_refused(http: Http) -> None:
    http.server.directory._catalog._max_nodes = 2
    http.server.directory._catalog._max_services = 2
    for name in ("a", "b"):
        assert (await http("POST", NODES, json={**ONE, "name": name}))[0] == 201
    status, body, _ = await http("POST", NODES, json={**ONE, "name": "c"})
    assert status == 507 and "2 nodes" in body["error"]
    assert (await http("POST", NODES, json={**ONE, "name": "b", "port": 1}))[0] == 201
    await http("POST", "/v1/services/second/nodes", json=ONE)
    assert (await http("POST", "/v1/services/third/nodes", json=ONE))[0] == 507
    await http("DELETE", "/v1/services/second/nodes/node-1")
    assert (await http("POST", "/v1/services/third/nodes", json=ONE))[0] == 201


async def test_long_poll_waits_for_the_index_to_move(http: Http) -> None:
    _, _, headers = await http("POST", NODES, json=ONE)
    index = (await http("GET", NODES))[2]["X-Registry-Index"]
    poll = asyncio.create_task(http("GET", f"{NODES}?watch=true&index={index}&wait=60s"))
    await until(lambda: http.server.directory._waiters)
    assert not poll.done()
    await http("POST", NODES, json={**ONE, "name": "node-2"})
    status, nodes, headers = await poll
    assert status == 200 and [entry["name"] for entry in nodes] == ["node-1", "node-2"]
    assert int(headers["X-Registry-Index"]) > int(index)
    # An index that is not the current one, older or from another life of the server, is answered at once.
    for stale in (index, "999999999999999999"):
        assert len((await http("GET", f"{NODES}?watch=true&index={stale}"))[1]) == 2


async def test_long_poll_ends_empty_handed_after_its_wait(http: Http) -> None:
    poll = asyncio.create_task(http("GET", f"{NODES}?watch=true&wait=5s"))
    await until(lambda: http.runtime.timers)
    await http.runtime.advance(5)
    assert (await poll)[:2] == (200, [])


async def read_events(response: aiohttp.ClientResponse, count: int) -> list[dict[str, str]]:
    events = []
    while len(events) < count:
        lines = (await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10)).decode().strip().split("\n")
        events.append(dict(line.split(": ", 1) for line in lines))
    return events


async def test_event_stream_and_its_resumption(http: Http) -> None:
    await http("POST", NODES, json=ONE)
    accept = {"Accept": "text/event-stream"}
    url = http.server.url + NODES + "?watch=true"
    async with http.session.get(url, headers=accept) as stream:
        assert stream.content_type == "text/event-stream"
        (first,) = await read_events(stream, 1)
        assert first["event"] == "nodes" and [node["name"] for node in json.loads(first["data"])] == ["node-1"]
        await http("POST", NODES, json={**ONE, "name": "node-2"})
        await http("DELETE", NODES + "/node-1")
        added, removed = await read_events(stream, 2)
        assert (added["event"], json.loads(added["data"])["name"]) == ("added", "node-2")
        assert (removed["event"], json.loads(removed["data"])["name"]) == ("removed", "node-1")
        await until(lambda: http.runtime.timers)
        await http.runtime.advance(10)
        assert await read_events(stream, 1) == [{"": "keep-alive"}]
    async with http.session.get(url, headers={**accept, "Last-Event-ID": added["id"]}) as stream:
        assert await read_events(stream, 1) == [removed]
    async with http.session.get(url, headers={**accept, "Last-Event-ID": "12"}) as stream:
        assert (await read_events(stream, 1))[0]["event"] == "nodes"


async def test_watchers_are_bounded_and_released_when_it_stops(http: Http) -> None:
    http.server._api._max_watchers = 1
    poll = asyncio.create_task(http("GET", f"{NODES}?watch=true"))
    await until(lambda: http.server._api._watchers == 1)
    assert (await http("GET", f"{NODES}?watch=true"))[0] == 503
    async with asyncio.timeout(10):
        await http.server.stop()
        assert (await poll)[:2] == (200, [])


async def test_a_token_is_asked_of_everyone() -> None:
    server = RegistryServer(Runtime.real(), token="s3cret")
    await server.start("127.0.0.1:0")
    async with aiohttp.ClientSession() as session:
        for header in (None, "Bearer wrong", "Basic s3cret", "Bearer", "Bearer s3cret\u00e9"):
            headers = {"Authorization": header} if header else {}
            async with session.get(server.url + NODES, headers=headers) as response:
                assert response.status == 401 and "WWW-Authenticate" in response.headers
                assert "token" in (await response.json())["error"]
        async with session.get(server.url + NODES, headers={"Authorization": "Bearer s3cret"}) as response:
            assert response.status == 200
        async with session.get(server.url + "/health") as response:
            assert response.status == 200
    await server.stop()


async def test_embedded_in_another_application() -> None:
    server = RegistryServer(Runtime.real())
    await server.open()
    app = web.Application()

    async def own_health(_: web.Request) -> web.Response:
        return web.json_response({"status": "the node's"})

    app.router.add_get("/health", own_health)
    server.add_routes(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        async with session.post(url + NODES, json=ONE) as response:
            assert response.status == 201
        async with session.get(url + "/health") as response:
            assert (await response.json())["status"] == "the node's"
        async with session.get(url + "/v1/services/x") as response:
            assert response.status == 404 and "error" in await response.json()
        poll = asyncio.create_task(session.get(url + NODES + "?watch=true"))
        await until(lambda: server.directory._waiters)
        async with asyncio.timeout(10):
            await runner.cleanup()
        (await poll).close()
    await server.stop()


async def test_a_port_in_use_is_one_clear_line(http: Http) -> None:
    with pytest.raises(RegistryListenError, match=f"registry cannot listen on 127.0.0.1:{http.server.port}: .*in use"):
        await RegistryServer(Runtime.real()).start(f"127.0.0.1:{http.server.port}")


async def test_serve_runs_until_it_is_told_to_stop() -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(serve("127.0.0.1:0", stop=stop))
    await asyncio.sleep(0)
    stop.set()
    async with asyncio.timeout(5):
        await task


def test_listen_addresses() -> None:
    assert parse_listen("127.0.0.1:8500") == ("127.0.0.1", 8500)
    assert parse_listen("[::1]:0") == ("::1", 0)
    assert parse_listen(":8500") == ("", 8500)
    assert parse_listen("8500") == ("", 8500)
    for bad in ("", "host", "host:", "host:70000", "::1:8500", "host:-1", "host:1e3"):
        with pytest.raises(RegistryConfigError, match="must look like"):
            parse_listen(bad)


async def test_an_impossible_ttl_is_refused() -> None:
    for ttl in (0, -1, 1e9, float("nan")):
        with pytest.raises(RegistryConfigError, match="TTL"):
            RegistryServer(Runtime.real(), ttl=ttl)
