"""Nobody gets into a cluster by way of its registry, and no false registry is believed."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from nimsnats.config import ConfigError, NodeFlags, load_node
from nimsnats.config.exposure import contradiction, exposure
from nimsnats.config.settings import Settings, for_node, for_server
from nimsnats.registry import NameTakenError, NodeInfo, RegistryAnswerError, RegistryError
from nimsnats.registry.catalog import Catalog
from nimsnats.registry.errors import RegistryFullError
from nimsnats.registry.guard import MAX_REQUEST
from nimsnats.registry.member import RegistryMember
from nimsnats.registry.morpheus import MorpheusRegistry
from nimsnats.registry.owner import FILE, owner_key
from nimsnats.registry.proof import CHALLENGE, CHALLENGE_LIFE, OWNER, PROOF, Challenges, parse_credential
from nimsnats.registry.server import RegistryServer
from nimsnats.runtime import Runtime
from tests.broker.peer import until as until_soon
from tests.cluster.test_route_nodes import node, registry_of, size
from tests.registry.clock import ManualRuntime
from tests.registry.watching import until, watching
from tests.registry.zoo import zoo

SECRET, TOKEN = "a secret that nobody guesses", "a-token"
NODES = "/v1/services/nimsforest/nodes"
ONE = NodeInfo("one", "127.0.0.1", 6222, instance="i1")
EVIL = {"name": "evil", "address": "203.0.113.66", "port": 6222}
PAGE = {"Origin": "http://evil.example"}


@asynccontextmanager
async def registry(runtime: Runtime | None = None, listen: str = "127.0.0.1:0", **more: Any) -> AsyncIterator[Any]:
    server = RegistryServer(runtime or Runtime.real(), **more)
    await server.start(listen)
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def client(url: str, **more: Any) -> AsyncIterator[MorpheusRegistry]:
    made = MorpheusRegistry(url, runtime=Runtime.real(), **{"timeout": 2.0, "poll_interval": 0.02, **more})
    try:
        yield made
    finally:
        await made.close()


async def ask(url: str, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.request(method, url + path, **more) as response:
        return response.status, await response.json()


class Between:
    """Somebody on the way: passes requests on, remembers them, and changes answers as a test says."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.tamper: Any = None

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name not in ("Host", "Content-Length")}
        self.seen.append((request.method, request.raw_path, headers, body))
        if "watch=true" in request.raw_path:
            return web.Response(status=404)
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, self.upstream + request.raw_path, headers=headers, data=body) as response,
        ):
            kept = {name: value for name, value in response.headers.items() if name.startswith("X-Registry")}
            data, status = await response.read(), response.status
        if self.tamper is not None:
            status, kept, data = self.tamper(status, kept, data)
        return web.Response(status=status, headers=kept, body=data, content_type="application/json")


# -- who may write ----------------------------------------------------------------------------------------------------

STRANGERS: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": f"Bearer {SECRET}"},
    {"Authorization": "Bearer"},
    {PROOF: ""},
    {PROOF: "é"},
    {PROOF: SECRET},
    {PROOF: f"challenge={'0' * 64}.0.{'0' * 64}, nonce={'ab' * 32}, mac={'0' * 64}"},
    {PROOF: f"challenge={'.' * 160}, nonce={'ab' * 32}, mac={'0' * 64}"},
    {OWNER: "x" * 128},
]


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("doors", [{"secret": SECRET}, {"secret": SECRET, "token": TOKEN}, {"token": TOKEN}])
async def test_a_stranger_neither_reads_nor_writes(doors: dict[str, str], stranger: dict[str, str]) -> None:
    async with registry(**doors) as server, client(server.url, **doors, owner="k") as member:
        await member.register(ONE)
        for method, path, body in (
            ("POST", NODES, EVIL),
            ("POST", NODES, {**EVIL, "name": "one"}),
            ("PUT", f"{NODES}/one/heartbeat", {"instance": "i1"}),
            ("DELETE", f"{NODES}/one?instance=i1", None),
            ("GET", NODES, None),
            ("GET", f"{NODES}?watch=true", None),
            ("GET", "/v1/services", None),
        ):
            status, answer = await ask(server.url, method, path, json=body, headers=stranger)
            assert status == 401, (method, path, answer)
            assert "error" in answer and SECRET not in json.dumps(answer)
        assert [info.name for info in (await member.list_nodes()).nodes] == ["one"]


async def test_a_challenge_alone_helps_nobody() -> None:
    async with registry(secret=SECRET) as server:
        _, hello = await ask(server.url, "GET", f"/v1/proof?nonce={'ab' * 31}cd")
        for mac in (hello["mac"], "0" * 64):
            shown = {PROOF: f"challenge={hello['challenge']}, nonce={'ab' * 31}cd, mac={mac}"}
            assert (await ask(server.url, "POST", NODES, json=EVIL, headers=shown))[0] == 401
        for nonce in ("", "x", "0" * 64, "ab" * 33, "é"):
            assert (await ask(server.url, "GET", f"/v1/proof?nonce={nonce}"))[0] == 400
    async with registry(token=TOKEN) as server:
        assert (await ask(server.url, "GET", f"/v1/proof?nonce={'ab' * 31}cd"))[0] == 404


async def test_the_secret_is_enough_and_never_sent() -> None:
    async with registry(secret=SECRET, token=TOKEN) as server, zoo(Between(server.url)) as way:
        between = way.handler
        assert isinstance(between, Between)
        async with client(way.url, secret=SECRET, token=TOKEN, owner="k") as member:
            await member.register(ONE)
            await member.heartbeat()
            async with watching(member):
                await until(lambda: member.status.watch == "poll")
            await member.deregister()
        sent = repr(between.seen)
        assert SECRET not in sent and TOKEN not in sent
        assert {method for method, *_ in between.seen} == {"GET", "POST", "PUT", "DELETE"}


async def test_an_overheard_request_is_good_for_nothing() -> None:
    async with registry(secret=SECRET) as server, zoo(Between(server.url)) as way:
        between = way.handler
        assert isinstance(between, Between)
        async with client(way.url, secret=SECRET, owner="k") as member:
            await member.register(ONE)
            await member.heartbeat()
            await member.deregister()
        signed = [(method, path, headers, body) for method, path, headers, body in between.seen if PROOF in headers]
        assert len(signed) == 3
        for method, path, headers, body in signed:
            variants = [(method, path, headers, body), ("DELETE", f"{NODES}/two", headers, b"")]
            variants += [(method, path + "?a=b", headers, body), (method, path, headers, json.dumps(EVIL).encode())]
            variants += [
                ("POST", NODES, headers, json.dumps(EVIL).encode()),
                (method, path, {**headers, OWNER: "x"}, body),
            ]
            for again, where, shown, data in variants:
                shown = {**shown, "Content-Type": "application/json"}
                status, answer = await ask(server.url, again, where, data=data or None, headers=shown)
                assert status == 401, answer
        assert server.directory.nodes("nimsforest")[0] == []


def test_a_credential_is_spent_once_and_only_while_its_challenge_lives() -> None:
    runtime_random = __import__("random").Random(3)
    challenges = Challenges(runtime_random)
    issued = challenges.issue(1000.0)
    assert challenges.is_fresh(issued, 1000.0) and challenges.is_fresh(issued, 1000.0 + CHALLENGE_LIFE)
    assert not challenges.is_fresh(issued, 1001.0 + CHALLENGE_LIFE)
    assert not Challenges(runtime_random).is_fresh(issued, 1000.0), "another life of the server"
    for forged in ("", "é", issued[:-1], issued + "0", issued.upper(), issued.replace(".", "..", 1)):
        assert not challenges.is_fresh(forged, 1000.0)
    credential = parse_credential(f"challenge={issued}, nonce={'ab' * 32}, mac={'0' * 64}")
    assert credential is not None
    assert challenges.spend(credential, 1000.0)
    assert not challenges.spend(credential, 1000.0 + CHALLENGE_LIFE), "remembered for as long as it could be used"


async def test_neither_old_challenges_nor_wrong_clocks_disturb_a_member() -> None:
    runtime = ManualRuntime()
    async with registry(runtime, secret=SECRET, ttl=3600) as server, client(server.url, secret=SECRET) as member:
        runtime.time_ns = lambda: 86_400 * 365 * 10**9  # the registry's wall clock is decades behind
        await member.register(ONE)
        for _ in range(3):
            await runtime.advance(CHALLENGE_LIFE + 1)
            await member.heartbeat()
        assert member.lease.lapses == 0 and (await member.list_nodes()).nodes[0].name == "one"


# -- which registry is believed ---------------------------------------------------------------------------------------


async def fake(request: web.Request) -> web.StreamResponse:
    """A registry that says yes to everything, and names one address of its own."""
    if "watch=true" in request.raw_path:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"event: added\nid: 9\ndata: {json.dumps(EVIL)}\n\n".encode())
        await asyncio.sleep(30)
        return response
    if request.path.startswith("/v1/proof"):
        return web.json_response({"error": "no such path"}, status=404)
    listed = [{**EVIL, "registered_at": "2026-01-01T00:00:00Z"}]
    return web.json_response(listed, headers={"X-Registry-TTL": "30", "X-Registry-Index": "7"})


async def liar(request: web.Request) -> web.StreamResponse:
    """One that claims to know the secret."""
    if request.path.startswith("/v1/proof"):
        return web.json_response({"challenge": f"{'ab' * 31}cd.0.{'0' * 64}", "mac": "0" * 64})
    return await fake(request)


@pytest.mark.parametrize("answering", [fake, liar])
async def test_a_false_registry_is_not_believed(answering: Any) -> None:
    async with zoo(answering) as place, client(place.url, secret=SECRET, owner="k") as member:
        for request in (member.register(ONE), member.list_nodes(), member.heartbeat()):
            with pytest.raises(RegistryAnswerError, match="secret"):
                await request
        async with watching(member) as watched:
            await until(lambda: place.seen("GET") > 12)
            assert watched.nothing()
        assert not member.status.registered and member.lease.since_ns == 0
        assert {path.partition("?")[0] for _, path in place.requests} == {"/v1/proof"}, "nothing is said to it"


async def test_another_clusters_registry_is_refused_even_with_a_token() -> None:
    async with registry(secret="another", token=TOKEN) as server:
        async with client(server.url, secret=SECRET, token=TOKEN) as member:
            with pytest.raises(RegistryAnswerError, match="another secret"):
                await member.register(ONE)
        assert server.directory.nodes("nimsforest")[0] == []


def _evil_list(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    return status, headers, json.dumps([EVIL]).encode() if body.startswith(b"[") else body


def _expired(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    return (404, headers, b'{"error": "not registered"}') if b"ttl" in body else (status, headers, body)


def _longer(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    return status, {**headers, **({"X-Registry-TTL": "86400"} if "X-Registry-TTL" in headers else {})}, body


def _bare(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    return status, {name: value for name, value in headers.items() if name not in (PROOF, CHALLENGE)}, body


@pytest.mark.parametrize("tamper", [_evil_list, _expired, _longer, _bare])
async def test_an_answer_that_was_changed_on_the_way_is_not_believed(tamper: Any) -> None:
    async with registry(secret=SECRET) as server, zoo(Between(server.url)) as way:
        between = way.handler
        assert isinstance(between, Between)
        async with client(way.url, secret=SECRET) as member:
            await member.register(ONE)
            between.tamper = tamper
            with pytest.raises(RegistryAnswerError, match="does not prove"):
                await member.heartbeat()
                await member.list_nodes()


async def test_who_has_proven_itself_once_must_go_on_doing_so() -> None:
    """Not even a token lets something else take the place of a registry that knew the secret."""
    async with registry(secret=SECRET) as server, zoo(Between(server.url)) as way:
        async with client(way.url, secret=SECRET, token=TOKEN) as member:
            await member.register(ONE)
            way.handler = fake
            with pytest.raises(RegistryAnswerError, match="does not prove"):
                await member.list_nodes()
            async with watching(member) as watched:
                await until(lambda: member.status.failures > 3)
                assert watched.nothing()
        assert TOKEN not in repr(way.headers)


async def test_a_registry_without_proofs_is_a_source_of_addresses_if_the_operator_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Morpheus: the specification's plain API with a token."""
    async with (
        registry(token=TOKEN) as server,
        client(server.url, secret=SECRET, token=TOKEN) as one,
        client(server.url, token=TOKEN) as two,
    ):
        with caplog.at_level(logging.WARNING):
            await one.register(ONE)
            await one.heartbeat()
        assert caplog.text.count("taken as a source of addresses") == 1
        assert "not as a witness" in one.status.note
        assert one.status.registered and one.lease.ttl_ns == 0, "its word is not the end of another node"
        async with watching(one) as watched:
            await two.register(NodeInfo("two", "127.0.0.1", 6223))
            assert await watched.next() == ("added", "two")
            assert one.status.watch == "sse"
            await two.deregister()
            assert await watched.next() == ("removed", "two")
        await one.deregister()


@pytest.mark.parametrize("watch", ["sse", "long-poll", "poll"])
async def test_members_watch_through_proofs(watch: Any) -> None:
    async with registry(secret=SECRET) as server, AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(client(server.url, secret=SECRET, watch=watch)) for _ in range(2)]
        await one.register(ONE)
        async with watching(one) as watched:
            await until(lambda: one.status.watch)
            await two.register(NodeInfo("two", "127.0.0.1", 6223))
            assert await watched.next() == ("added", "two")
            await two.deregister()
            assert await watched.next() == ("removed", "two")
        assert one.status.watch == watch


# -- whose entry it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("doors", [{}, {"secret": SECRET}])
async def test_an_entry_is_its_owners_alone_also_after_a_restart(doors: dict[str, str], tmp_path: Path) -> None:
    """Knowing name and instance, which everybody can read, is not enough."""
    port = 0
    for _ in range(2):
        async with (
            registry(listen=f"127.0.0.1:{port}", data_dir=tmp_path, **doors) as server,
            client(server.url, **doors, owner="the-owners-key") as owner,
        ):
            port = server.port
            for key in ("", "another-key"):
                async with client(server.url, **doors, owner=key) as other:
                    if [info.name for info in (await owner.list_nodes()).nodes]:
                        await _cannot_touch(other)
            await owner.register(ONE)
            async with client(server.url, **doors, owner="another-key") as other:
                await _cannot_touch(other)
            await owner.heartbeat()
            assert [info.cluster_addr for info in (await owner.list_nodes()).nodes] == [ONE.cluster_addr]
    async with (
        registry(listen=f"127.0.0.1:{port}", data_dir=tmp_path, **doors) as server,
        client(server.url, **doors, owner="the-owners-key") as owner,
    ):
        await owner.register(NodeInfo("one", "127.0.0.1", 7000, instance="i1"))
        await owner.deregister()
        assert (await owner.list_nodes()).nodes == ()


async def _cannot_touch(other: RegistryMember) -> None:
    evil = NodeInfo("one", "203.0.113.66", 6222, instance="i1")
    with pytest.raises(NameTakenError):
        await other.register(evil)
    other._enrolled = True
    with pytest.raises(NameTakenError):
        await other.heartbeat()
    with pytest.raises(NameTakenError):
        await other._send_deregister(evil)


async def test_a_silent_owner_loses_its_entry_with_its_time() -> None:
    runtime = ManualRuntime()
    async with registry(runtime, ttl=30) as server:
        shown = {OWNER: "k1"}
        assert (await ask(server.url, "POST", NODES, json=ONE.to_json(), headers=shown))[0] == 201
        assert (await ask(server.url, "POST", NODES, json=ONE.to_json()))[0] == 409
        await runtime.advance(30)
        assert (await ask(server.url, "POST", NODES, json=ONE.to_json()))[0] == 201
        assert (await ask(server.url, "DELETE", f"{NODES}/one", headers={OWNER: "é"}))[0] == 400


def test_the_owners_key_is_kept_and_hidden(tmp_path: Path) -> None:
    random = __import__("random").SystemRandom()
    key = owner_key(tmp_path / "data", random)
    path = tmp_path / "data" / FILE
    assert owner_key(tmp_path / "data", random) == key and path.stat().st_mode & 0o777 == 0o600
    for damage in (b"", b"short", b"x" * 1000):
        path.write_bytes(damage)
        assert owner_key(tmp_path / "data", random) == path.read_text() != key
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert len(owner_key(tmp_path / "data", random)) == 64 and not path.is_symlink()
    path.unlink()
    __import__("os").mkfifo(path)
    assert len(owner_key(tmp_path / "data", random)) == 64 and path.is_file()


# -- what strangers can fill, where there is neither secret nor token ------------------------------------------------


async def test_ghosts_do_not_lock_nodes_out() -> None:
    async with registry() as server, aiohttp.ClientSession() as session:
        refused = 0
        for number in range(200):
            service = f"/v1/services/{'nimsforest' if number % 2 else f's{number}'}/nodes"
            async with session.post(server.url + service, json={**EVIL, "name": f"ghost-{number}"}) as response:
                refused += response.status == 507
                if response.status == 507:
                    assert "most from one address" in (await response.json())["error"]
        assert refused == 200 - 64
        elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
        async with (
            aiohttp.ClientSession(connector=elsewhere) as other,
            other.post(server.url + NODES, json=ONE.to_json()) as response,
        ):
            assert response.status == 201
        async with session.put(f"{server.url}{NODES}/ghost-1/heartbeat") as response:
            assert response.status == 200, "whoever is there stays"


def test_a_full_catalog_keeps_its_members_and_lets_the_expired_go_first() -> None:
    catalog, at = Catalog(0, 30.0, max_nodes=8, max_per_source=4), datetime.fromtimestamp(0, UTC)
    for number in range(8):
        catalog.register("s", NodeInfo(f"n{number}", "10.0.0.1", 1), float(number), at, source=f"10.0.0.{number // 4}")
    with pytest.raises(RegistryFullError):
        catalog.register("s", NodeInfo("late", "10.0.0.1", 1), 9.0, at, source="10.0.0.9")
    for number in range(8):
        catalog.heartbeat("s", f"n{number}", "", 10.0)
        catalog.register("s", NodeInfo(f"n{number}", "10.0.0.1", 2), 10.0 + number, at, source=f"10.0.0.{number // 4}")
    catalog.register("s", NodeInfo("late", "10.0.0.1", 1), 41.0, at, source="10.0.0.9")
    assert len(catalog.nodes("s", 41.0)[0]) == 7
    catalog.register("s", NodeInfo("again", "10.0.0.1", 1), 80.0, at, source="10.0.0.0")
    assert [info.name for info in catalog.nodes("s", 80.0)[0]] == ["again"]
    assert not math.isinf(catalog.next_deadline() or 0.0)


async def test_watchers_of_one_address_leave_room_for_others() -> None:
    async with registry() as server, aiohttp.ClientSession() as session:
        url = f"{server.url}{NODES}?watch=true&wait=60s"
        polls = [asyncio.create_task(session.get(url)) for _ in range(64)]
        await until(lambda: server._api._watchers == 64)
        async with session.get(url) as response:
            assert response.status == 503 and "most from one address" in (await response.json())["error"]
        async with session.get(server.url + NODES) as response:
            assert response.status == 200, "listings always go through"
        elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
        async with (
            aiohttp.ClientSession(connector=elsewhere) as other,
            other.get(f"{server.url}{NODES}?watch=true&wait=1ms") as response,
        ):
            assert response.status == 200
        for poll in polls[:32]:
            poll.cancel()
        await until(lambda: server._api._watchers == 32)
        server.directory.release()
        await asyncio.gather(*polls, return_exceptions=True)


BODIES: list[tuple[bytes, int]] = [
    (b"[" * 16_000, 400),
    (b'{"name": "n", "address": "10.0.0.1", "port": ' + b"9" * 5000 + b"}", 400),
    (b'{"name": "n", "address": "10.0.0.1", "port": 1e999}', 400),
    (b'{"name": "n", "address": "10.0.0.1", "port": NaN}', 400),
    (b'{"name": "n\\ud800", "address": "10.0.0.1", "port": 1}', 400),
    (b'{"name": "n\\u0000", "address": "10.0.0.1", "port": 1}', 400),
    (b'{"name": "<b>", "address": "10.0.0.1", "port": 1}', 400),
    (b'{"name": "n", "address": "10.0.0.1\\n", "port": 1}', 400),
    (b'{"name": "n", "address": "fe80::1%<b>", "port": 1}', 400),
    (b'{"name": "n", "address": {"a": 1}, "port": 1}', 400),
    (b'{"name": "n", "address": "10.0.0.1", "port": 1, "instance": {"a": 1}}', 400),
    (b'{"name": "n", "address": "10.0.0.1", "port": 1, "http": "http://a\\u0000"}', 400),
    (b"\xff\xfe", 400),
    (b" " * (MAX_REQUEST + 1), 413),
]


@pytest.mark.parametrize(("body", "expected"), BODIES)
async def test_hostile_registrations_are_refused(body: bytes, expected: int) -> None:
    async with registry() as server:
        kind = {"Content-Type": "application/json"}
        status, answer = await ask(server.url, "POST", NODES, data=body, headers=kind)
        assert status == expected and answer["error"]
        assert server.directory.services() == {}


# -- web pages --------------------------------------------------------------------------------------------------------

FORM = "application/x-www-form-urlencoded"
ATTEMPTS: list[tuple[str, str, dict[str, str], str]] = [
    ("POST", NODES, {"Content-Type": "text/plain"}, json.dumps(EVIL)),
    ("POST", NODES, {"Content-Type": FORM}, '{"name":"evil","address":"203.0.113.66","port":6222,"x":"="}'),
    ("POST", NODES, {"Content-Type": "multipart/form-data; boundary=x"}, json.dumps(EVIL)),
    ("POST", NODES, {"Content-Type": "application/json", **PAGE}, json.dumps(EVIL)),
    ("POST", NODES, {"Content-Type": "application/json", "Origin": "null"}, json.dumps(EVIL)),
    ("POST", NODES, {"Content-Type": "application/json", "Origin": "HOST"}, json.dumps(EVIL)),
    ("POST", NODES, {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}, json.dumps(EVIL)),
    ("POST", NODES, {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}, json.dumps(EVIL)),
    ("PUT", f"{NODES}/one/heartbeat", PAGE, ""),
    ("DELETE", f"{NODES}/one", PAGE, ""),
    ("DELETE", f"{NODES}/one", {"Origin": "HOST"}, ""),
    ("GET", NODES, PAGE, ""),
    ("GET", f"{NODES}?watch=true", {**PAGE, "Accept": "text/event-stream"}, ""),
    ("GET", NODES, {"Sec-Fetch-Site": "cross-site"}, ""),
    ("GET", NODES, {"Sec-Fetch-Site": "same-origin", "Host": "evil.example:8222"}, ""),
    ("OPTIONS", NODES, {**PAGE, "Access-Control-Request-Method": "POST"}, ""),
]


@pytest.mark.parametrize("embedded", [False, True])
async def test_a_web_page_changes_and_reads_nothing(embedded: bool, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        if embedded:
            running = await stack.enter_async_context(node(tmp_path, "n1"))
            url, directory = registry_of(running), running._own_registry.directory  # type: ignore[union-attr]
        else:
            server = await stack.enter_async_context(registry())
            url, directory = server.url, server.directory
        await directory.register("nimsforest", ONE)
        before = directory.nodes("nimsforest")
        session = await stack.enter_async_context(aiohttp.ClientSession())
        for method, path, headers, body in ATTEMPTS:
            shown = {name: url if value == "HOST" else value for name, value in headers.items()}
            data = body.encode() if body else None
            async with session.request(method, url + path, data=data, headers=shown) as response:
                assert response.status in (403, 405, 415), (method, headers, await response.text())
                assert not [name for name in response.headers if name.lower().startswith("access-control")]
                assert b"127.0.0.1" not in await response.read()
            assert directory.nodes("nimsforest") == before, (method, headers)


# -- the takeover, end to end -----------------------------------------------------------------------------------------


async def test_a_node_with_a_secret_dials_nobody_that_a_stranger_names(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(b"connection")
        heard.append(await reader.read(4096))
        writer.close()

    trap = await asyncio.start_server(peer, "127.0.0.1", 0)
    port = trap.sockets[0].getsockname()[1]
    async with trap, node(tmp_path, "n1", secret=SECRET) as first:
        url = registry_of(first)
        evil = {"name": "evil", "address": "127.0.0.1", "port": port, "instance": "x"}
        for headers in STRANGERS:
            assert (await ask(url, "POST", NODES, json=evil, headers=headers))[0] == 401
        async with client(url, secret="a guess") as guess:
            with pytest.raises(RegistryError):
                await guess.register(NodeInfo("evil", "127.0.0.1", port))
        async with node(tmp_path, "n2", url, secret=SECRET):  # time goes by, and members still get in
            await until_soon(lambda: size(first) == 2)
            assert [peer.name for peer in first.cluster.known_peers] == ["n2"]  # type: ignore[union-attr]
    assert heard == []


async def test_a_node_believes_no_false_registry(tmp_path: Path) -> None:
    heard: list[str] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append("connection")
        writer.close()

    trap = await asyncio.start_server(peer, "127.0.0.1", 0)
    port = trap.sockets[0].getsockname()[1]

    async def lists_the_trap(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/v1/proof"):
            return web.json_response({}, status=404)
        return web.json_response([{"name": "evil", "address": "127.0.0.1", "port": port}])

    async with trap, zoo(lists_the_trap) as place, node(tmp_path, "n1", place.url, secret=SECRET) as alone:
        await until_soon(lambda: place.seen("GET") > 4)
        assert size(alone) == 1 and alone.registry is not None
        assert "does not prove" in alone.registry.status.last_error
    assert heard == []


async def test_three_nodes_with_nothing_but_the_secret_and_a_url_form_a_cluster(tmp_path: Path) -> None:
    async with node(tmp_path, "n1", secret=SECRET) as first, AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(node(tmp_path, name, registry_of(first), secret=SECRET))
            for name in ("n2", "n3")
        ]
        await until_soon(lambda: [size(one) for one in (first, *others)] == [3, 3, 3])
        for one in others:
            assert one.registry is not None and one.registry.status.registered and not one.registry.status.note
        assert {entry.name for entry in first._own_registry.directory.nodes("nimsforest")[0]} == {"n1", "n2", "n3"}  # type: ignore[union-attr]


async def test_a_node_that_starts_again_takes_its_entry_over(tmp_path: Path) -> None:
    """Killed, not stopped: its entry still lives, and its key is in its data directory."""
    async with registry(secret=SECRET) as server:
        async with node(tmp_path, "n2", server.url, secret=SECRET):
            key = (tmp_path / "n2" / FILE).read_text()
        async with client(server.url, secret=SECRET, owner=key) as dead:
            await dead.register(NodeInfo("n2", "127.0.0.1", 6222))
        async with node(tmp_path, "n2", server.url, secret=SECRET) as back:
            assert back.registry is not None and back.registry.status.registered


# -- who is told ------------------------------------------------------------------------------------------------------


def _settings(**more: Any) -> Settings:
    settings = for_node()
    for name, value in more.items():
        part, _, key = name.partition("_")
        setattr(getattr(settings, part), key, value)
    return settings


def test_who_can_join_is_said_and_sometimes_refused(tmp_path: Path) -> None:
    assert "6222 or 8222" in exposure(for_node(), embeds_registry=True)
    assert "8222" not in exposure(_settings(registry_token="t"), embeds_registry=True)
    assert exposure(for_server(), embeds_registry=False) == ""
    for closed in ({"cluster_password": "p"}, {"cluster_host": "127.0.0.1"}, {"cluster_enabled": False}):
        assert exposure(_settings(**closed), embeds_registry=True) == ""
        assert contradiction(_settings(broker_token="t", **closed)) == ""
    assert contradiction(for_node()) == "" and "NATS_CLUSTER_SECRET" in contradiction(_settings(broker_token="t"))


ASKING = (
    'authorization { token: "t0ken" }',
    "authorization { user: a, password: b }",
    "authorization { users: [ { user: a, password: b } ] }",
    "accounts { A { users: [ { user: a, password: b } ] } }",
    "accounts { A { users: [{ user: a, password: b }] }, B { users: [{ user: c, password: d }] } }\nno_auth_user: a",
)


@pytest.mark.parametrize("block", ASKING)
def test_an_open_cluster_port_beside_authenticated_clients_is_refused(block: str, tmp_path: Path) -> None:
    path = tmp_path / "node.conf"
    environ = {"HOME": str(tmp_path)}
    path.write_text(block)
    flags = NodeFlags(config=str(path), data_dir=str(tmp_path / "d"))
    with pytest.raises(ConfigError, match=r"clients must authenticate.*set NATS_CLUSTER_SECRET"):
        load_node(flags, environ)
    assert load_node(flags, {**environ, "NATS_CLUSTER_SECRET": SECRET}).cluster.password == SECRET
    path.write_text(block + '\ncluster { listen: "127.0.0.1:6222" }')
    assert load_node(flags, environ).cluster.host == "127.0.0.1"
    path.write_text(block + "\ncluster { authorization { user: u, password: p } }")
    assert load_node(flags, environ).cluster.password == "p"


ASKING_NOBODY = (
    "accounts { $SYS { users: [ { user: admin, password: secret } ] } }",
    "accounts { OPS { users: [ { user: admin, password: secret } ] } }\nsystem_account: OPS",
    "accounts: [A, B]",
    "accounts { A { jetstream: enabled } }",
    "authorization { timeout: 3 }",
    "accounts { A { users: [ { user: a, password: b } ] } }\nno_auth_user: a",
)


@pytest.mark.parametrize("block", ASKING_NOBODY)
def test_an_open_cluster_port_is_taken_where_clients_need_no_credentials(block: str, tmp_path: Path) -> None:
    path = tmp_path / "node.conf"
    path.write_text(block)
    settings = load_node(NodeFlags(config=str(path), data_dir=str(tmp_path / "d")), {"HOME": str(tmp_path)})
    assert exposure(settings, embeds_registry=True).startswith("Whoever reaches")


async def test_an_open_node_says_so_and_is_healthy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from nimsnats.node import Node

    settings = for_node()
    settings.node_name = settings.broker.server_name = "n1"
    settings.data_dir = settings.jetstream.store_dir = tmp_path / "n1"
    settings.broker.host = settings.monitor.host = "127.0.0.1"
    settings.broker.port = settings.cluster.port = settings.monitor.port = -1
    settings.broker.cluster_name, settings.cluster.advertise = settings.cluster.name, "127.0.0.1"
    settings.forest.enabled = False
    with caplog.at_level(logging.WARNING):
        async with Node(settings) as running:
            status, health = await ask(registry_of(running), "GET", "/health")
            assert (status, health["status"]) == (200, "healthy")
            (note,) = health["notes"]
            assert note.startswith("Whoever reaches") and "NATS_CLUSTER_SECRET" in note
            async with (
                aiohttp.ClientSession(headers={"Accept": "text/html"}) as session,
                session.get(registry_of(running) + "/") as response,
            ):
                assert note in await response.text()
    assert [record.getMessage() for record in caplog.records].count(note) == 1
