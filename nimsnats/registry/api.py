"""The registry's HTTP API on aiohttp, the same stand-alone and inside a node's HTTP port.

Owns: routes, validation of what comes in, watching (event stream and long poll), and limits. State is the directory's,
and who may ask is the guard's judgement.
Every answer is JSON (or an event stream), every refusal `{"error": "..."}` with a text that names what to change.

    POST   /v1/services/{service}/nodes                    register   201 the node as listed
    GET    /v1/services/{service}/nodes                    list       200 [nodes], X-Registry-Index
    GET    …/nodes?watch=true  Accept: text/event-stream   events     nodes, added, removed; Last-Event-ID resumes
    GET    …/nodes?watch=true&index=N&wait=30s             long poll  200 [nodes] once the index is another
    PUT    /v1/services/{service}/nodes/{node}/heartbeat   heartbeat  200, 404 unknown, 409 another instance
    DELETE /v1/services/{service}/nodes/{node}?instance=I  deregister 200, 404 unknown, 409 another instance
    GET    /v1/services                                    services   200 {name: {"nodes": n}}
    GET    /v1/proof?nonce=N                               proof      200 {"challenge": C, "mac": M}, see `proof`

`X-Registry-Owner` may carry a key: an entry that was registered with one is changed and removed only with it (409).
`X-Registry-TTL` carries the TTL in seconds; it is missing while the disk refuses to keep what is registered.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web

from nimsnats.registry.directory import Directory
from nimsnats.registry.errors import (
    InvalidNodeError,
    RegistryAnswerError,
    RegistryFullError,
    RegistryRefusedError,
)
from nimsnats.registry.guard import Caller, Guard, Refusal
from nimsnats.registry.node import NodeInfo, check_name
from nimsnats.registry.proof import PROOF_PATH
from nimsnats.registry.sse import KEEP_ALIVE, encode
from nimsnats.registry.transport import parse_json
from nimsnats.registry.watch import parse_index

KEEP_ALIVE_EVERY: Final = 10.0
MAX_WAIT: Final = 300.0
WATCHERS_PER_SOURCE: Final = 64
"""Streams and long polls that one stranger's address may have open."""
_DURATION: Final = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(ms|s|m)?")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}
_TRUE: Final = ("", "1", "true", "yes")
_FALSE: Final = ("0", "false", "no")

_Handler = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]
_Route = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RegistryApi:
    """Serves one directory to whom `guard` lets in.

    `max_watchers` bounds streams and long polls that are open at the same time. Whoever finds no place still gets
    every listing that he asks for.
    """

    def __init__(self, directory: Directory, guard: Guard, *, max_watchers: int = 1024) -> None:
        self._directory = directory
        self._guard = guard
        self._max_watchers = max_watchers
        self._watchers = 0
        self._sources: Counter[str] = Counter()
        """Of strangers' watchers."""

    def add_routes(self, app: web.Application) -> None:
        """Serve the API below `/v1/services` of an application."""
        nodes = "/v1/services/{service}/nodes"
        routes: list[tuple[str, str, _Handler]] = [
            ("GET", "/v1/services", self._services),
            ("GET", nodes, self._nodes),
            ("POST", nodes, self._register),
            ("DELETE", nodes + "/{node}", self._deregister),
            ("PUT", nodes + "/{node}/heartbeat", self._heartbeat),
        ]
        allowed: dict[str, list[str]] = {}
        for method, path, handler in routes:
            app.router.add_route(method, path, self._guarded(handler))
            allowed.setdefault(path, []).append(method)
        for path, methods in allowed.items():
            app.router.add_route("*", path, self._guarded(_not_allowed(", ".join(methods))))
        app.router.add_route("*", "/v1/services/{rest:.*}", self._guarded(_not_found))
        app.router.add_route("GET", PROOF_PATH, self._hello)

    def _guarded(self, handler: _Handler) -> _Route:
        """The guard before, one place that turns errors into answers, and the answer's proof after."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            caller: Caller | None = None
            try:
                caller = await self._guard.admit(request)
                response = await handler(request, caller)
            except Refusal as refusal:
                response = error_answer(refusal.status, str(refusal), refusal.headers)
            except InvalidNodeError as error:
                response = error_answer(400, str(error))
            except RegistryFullError as error:
                response = error_answer(507, str(error))
            except RegistryRefusedError as error:
                response = error_answer(error.status, str(error))
            if not response.prepared:
                self._guard.prove(caller, response)
            return response

        return guarded

    async def _hello(self, request: web.Request) -> web.StreamResponse:
        try:
            return answer(self._guard.hello(request.query.get("nonce", "")))
        except Refusal as refusal:
            return error_answer(refusal.status, str(refusal))

    # -- nodes --------------------------------------------------------------------------------------------------------

    async def _services(self, _request: web.Request, _caller: Caller) -> web.StreamResponse:
        return answer({name: {"nodes": count} for name, count in self._directory.services().items()})

    async def _register(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        service = check_name(request.match_info["service"], "service")
        info = NodeInfo.from_json(_json(caller.body))
        listed = await self._directory.register(service, info, owner=caller.owner, source=caller.source)
        return answer(listed.to_json(), status=201, headers=self._ttl())

    async def _heartbeat(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        service, node = _names(request)
        body = _json(caller.body, optional=True)
        instance = body.get("instance") if isinstance(body, Mapping) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        claimed = instance if isinstance(instance, str) else ""
        info = self._directory.heartbeat(service, node, claimed, caller.owner)
        granted = {"ttl": self._directory.granted} if self._directory.granted else {}
        return answer({"name": info.name, **granted}, headers=self._ttl())

    async def _deregister(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        service, node = _names(request)
        instance = request.query.get("instance", "")
        if not await self._directory.deregister(service, node, instance, caller.owner):
            raise Refusal(404, f"node {node!r} is not registered in service {service!r}")
        return answer({"name": node})

    async def _nodes(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        service = check_name(request.match_info["service"], "service")
        if not _flag(request, "watch"):
            return await self._listing(service)
        if self._watchers >= self._max_watchers:
            raise Refusal(503, f"{self._max_watchers} watchers are connected, the most this registry serves")
        if caller.source and self._sources[caller.source] >= WATCHERS_PER_SOURCE:
            raise Refusal(503, f"{caller.source} has {WATCHERS_PER_SOURCE} watchers, the most from one address")
        self._watchers += 1
        self._sources[caller.source] += 1
        try:
            if "text/event-stream" in request.headers.get("Accept", ""):
                return await self._stream(request, service, caller)
            return await self._long_poll(request, service)
        finally:
            self._watchers -= 1
            self._sources[caller.source] -= 1
            if not self._sources[caller.source]:
                del self._sources[caller.source]

    async def _listing(self, service: str) -> web.Response:
        nodes, index = await self._directory.listing(service)
        headers = {"X-Registry-Index": str(index), **self._ttl()}
        return answer([info.to_json() for info in nodes], headers=headers)

    def _ttl(self) -> dict[str, str]:
        granted = self._directory.granted
        return {"X-Registry-TTL": f"{granted:g}"} if granted else {}

    # -- watching -----------------------------------------------------------------------------------------------------

    async def _long_poll(self, request: web.Request, service: str) -> web.StreamResponse:
        """Without an index: the next change, whatever it is."""
        wait = min(_duration(request, "wait", 30.0), MAX_WAIT)
        since = self._directory.index(service)
        if (text := request.query.get("index")) is not None:
            index = parse_index(text)
            if index is None:
                raise Refusal(400, f"'index' must be a number, got {text[:32]!r}")
            since = index
        await self._directory.changed(service, since, wait)
        return await self._listing(service)

    async def _stream(self, request: web.Request, service: str, caller: Caller) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        self._guard.prove(caller, response)
        await response.prepare(request)
        since = parse_index(request.headers.get("Last-Event-ID", ""))
        try:
            while not self._directory.closed:
                changes = None if since is None else self._directory.changes(service, since)
                if changes is None:
                    nodes, since = self._directory.nodes(service)
                    await response.write(encode("nodes", _compact([info.to_json() for info in nodes]), since))
                else:
                    for change in changes:
                        since = change.index
                        data = _compact(change.event.node.to_json())
                        await response.write(encode(change.event.type, data, change.index))
                assert since is not None
                if not await self._directory.changed(service, since, KEEP_ALIVE_EVERY) and not self._directory.closed:
                    await response.write(KEEP_ALIVE)
        except ConnectionError:
            pass  # the watcher has left
        return response


def answer(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer that no cache keeps."""
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store", **(headers or {})})


def error_answer(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """A refusal, in the form that every refusal has."""
    return answer({"error": message}, status=status, headers=headers)


def _compact(body: object) -> str:
    return json.dumps(body, separators=(",", ":"))


def _not_allowed(methods: str) -> _Handler:
    async def refuse(request: web.Request, _caller: Caller) -> web.StreamResponse:
        raise Refusal(405, f"{request.method} is not possible here, only {methods}", {"Allow": methods})

    return refuse


async def _not_found(request: web.Request, _caller: Caller) -> web.StreamResponse:
    raise Refusal(404, f"no such path; nodes are at /v1/services/{{service}}/nodes, got {request.path[:200]}")


def _names(request: web.Request) -> tuple[str, str]:
    return check_name(request.match_info["service"], "service"), check_name(request.match_info["node"], "node")


def _json(body: bytes, *, optional: bool = False) -> object:
    """The body as JSON. `optional`: nothing at all, or nonsense, is None."""
    if optional and not body:
        return None
    try:
        return parse_json(body)
    except RegistryAnswerError:
        if optional:
            return None
        raise Refusal(400, "the body must be a JSON object") from None


def _flag(request: web.Request, key: str) -> bool:
    text = request.query.get(key)
    if text is None or text.lower() in _FALSE:
        return False
    if text.lower() not in _TRUE:
        raise Refusal(400, f"{key!r} must be true or false, got {text[:32]!r}")
    return True


def _duration(request: web.Request, key: str, default: float) -> float:
    """Seconds from `30s`, `500ms`, `2m` or a plain number of seconds."""
    text = request.query.get(key)
    if text is None:
        return default
    found = _DURATION.fullmatch(text)
    if found is None:
        raise Refusal(400, f"{key!r} must be a duration like 30s, got {text[:32]!r}")
    return float(found[1]) * _UNITS[found[2]]
