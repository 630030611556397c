"""The Morpheus registry over HTTP, or any registry with the same API (ours: `server`).

Owns: which request means what, and the distrust of the answers. A registry that is down, slow or answers nonsense costs
this node nothing but its news: every request is bounded in time and size, every entry is checked, bad ones are skipped
and reported once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Literal, cast

import aiohttp

from nimsnats.registry.errors import (
    InvalidNodeError,
    RegistryAnswerError,
    RegistryConfigError,
    RegistryError,
    RegistryRefusedError,
    RegistryTimeoutError,
    UnknownNodeError,
    WatchUnsupportedError,
)
from nimsnats.registry.member import Grant, Listed, RegistryMember
from nimsnats.registry.node import NodeInfo, check_name
from nimsnats.registry.peers import PeerSet
from nimsnats.registry.registry import PeerEvent
from nimsnats.registry.transport import Answer, HttpTransport, RegistryTls, segment
from nimsnats.registry.watch import Mode, Watch, index_of
from nimsnats.runtime import Runtime

MAX_NODES: Final = 10_000
_FAREWELL: Final = 2.0
_NO_SUCH_WATCH: Final = (400, 404, 405, 406, 415, 422, 501)
_LADDER: Final[dict[str, Sequence[Mode]]] = {
    "auto": ("sse", "long-poll", "poll"),
    "sse": ("sse",),
    "long-poll": ("long-poll", "poll"),
    "poll": ("poll",),
}


class MorpheusRegistry(RegistryMember):
    """One node's access to one service of a registry over HTTP.

    All times in seconds: `heartbeat_interval`, `timeout` (one request), `poll_interval` (where watching is not to be
    had). `token` is sent as a bearer token; `secret`, the cluster's, is proven instead and never sent (see `trust`);
    `owner` is the key without which nobody changes this node's entry. `ttl` stands in for a registry that does not tell
    its own. `watch` limits how changes may arrive. Raises `RegistryConfigError` for a URL, token, service name or TLS
    file that cannot work.
    """

    def __init__(
        self,
        url: str,
        service: str = "nimsforest",
        *,
        runtime: Runtime,
        token: str = "",
        secret: str = "",
        owner: str = "",
        tls: RegistryTls | None = None,
        heartbeat_interval: float = 10.0,
        timeout: float = 5.0,
        poll_interval: float = 10.0,
        ttl: float = 0.0,
        watch: Literal["auto", "sse", "long-poll", "poll"] = "auto",
        log: logging.Logger | None = None,
    ) -> None:
        self._transport = HttpTransport(
            url, runtime.random, token=token, secret=secret, owner=owner, tls=tls, timeout=timeout
        )
        super().__init__(self._transport.url, service, runtime, heartbeat_interval=heartbeat_interval, ttl=ttl, log=log)
        try:
            check_name(service, "service")
        except InvalidNodeError as error:
            raise RegistryConfigError(f"registry service name: {error}") from error
        self._path = f"/v1/services/{segment(service)}/nodes"
        self._timeout = timeout
        self._poll_interval = poll_interval
        self._modes = _LADDER[watch]

    async def close(self) -> None:
        await super().close()
        await self._transport.close()

    def watch_peers(self, known: Iterable[NodeInfo] = ()) -> AsyncGenerator[PeerEvent]:
        def report(mode: Mode) -> None:
            self.status.watch = mode

        return Watch(self, self._modes, self._poll_interval, report, PeerSet(known)).events()

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _send_register(self, info: NodeInfo) -> Grant:
        try:
            answer = await self._transport.request("POST", self._path, body=info.to_json())
        except UnknownNodeError as error:
            raise RegistryAnswerError(f"{error}: is this a registry's URL?") from error
        return self._grant(answer)

    async def _send_heartbeat(self, info: NodeInfo) -> Grant:
        body = {"instance": info.instance} if info.instance else None
        return self._grant(await self._transport.request("PUT", f"{self._node(info)}/heartbeat", body=body))

    async def _send_deregister(self, info: NodeInfo) -> None:
        # whose entry it is: that of another instance which has come since, under this name, is to stay
        params = {"instance": info.instance} if info.instance else None
        await self._transport.request("DELETE", self._node(info), params=params, timeout=min(self._timeout, _FAREWELL))

    async def _send_list(self) -> Listed:
        try:
            answer = await self._transport.request("GET", self._path)
        except UnknownNodeError as error:
            raise RegistryAnswerError(f"{error}: is this a registry's URL?") from error
        nodes, skipped = self._read(answer.json())
        return Listed(nodes, index_of(answer), skipped)

    def _grant(self, answer: Answer) -> Grant:
        trust = self._transport.trust
        if trust.note != self.status.note:
            self.status.note = trust.note
            if trust.note:
                self._once(logging.WARNING, f"Registry at {self.status.url}: {trust.note}")
        return Grant(_ttl(answer), witness=trust.is_vouched)

    def _node(self, info: NodeInfo) -> str:
        return f"{self._path}/{segment(info.name)}"

    # -- what a watch needs -------------------------------------------------------------------------------------------

    async def fetch(self, index: int | None, wait: float | None) -> tuple[list[NodeInfo], int | None]:
        """A listing, held back by the registry for up to `wait` seconds while its revision is `index`."""
        if wait is None:
            listed = await self._ask(self._send_list())
            return list(listed.nodes), listed.index
        params = {"watch": "true", "wait": f"{wait:g}s"}
        if index is not None:
            params["index"] = str(index)
        return await self._ask(self._hold(params, wait + self._timeout))

    @asynccontextmanager
    async def stream(self, quiet: float) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Open the event stream, and close it afterwards. Raises `RegistryError`, also while it is read."""
        async with AsyncExitStack() as stack:
            yield await self._ask(self._open_stream(stack, quiet))

    async def _open_stream(self, stack: AsyncExitStack, quiet: float) -> aiohttp.ClientResponse:
        accept = {"Accept": "text/event-stream, application/json;q=0.5"}
        opening = self._transport.stream(self._path, {"watch": "true"}, accept, quiet)
        try:
            async with asyncio.timeout(self._timeout):
                response = await stack.enter_async_context(opening)
        except TimeoutError as error:
            raise WatchUnsupportedError(f"no event stream within {self._timeout:g}s") from error
        except RegistryRefusedError as error:
            raise _unsupported(error) from error
        if response.content_type != "text/event-stream":
            raise WatchUnsupportedError(f"answered {response.content_type} instead of an event stream")
        return response

    async def _hold(self, params: dict[str, str], timeout: float) -> tuple[list[NodeInfo], int | None]:
        """A long poll. A registry that does not come back in time does not know how to end one."""
        try:
            answer = await self._transport.request("GET", self._path, params=params, timeout=timeout)
        except RegistryTimeoutError as error:
            raise WatchUnsupportedError(str(error)) from error
        except RegistryRefusedError as error:
            raise _unsupported(error) from error
        return self.entries(answer.json()), index_of(answer)

    @property
    def streams_are_hints(self) -> bool:
        return self._transport.trust.must_prove

    def entries(self, value: object) -> list[NodeInfo]:
        """The valid entries of a listing. Skips and reports bad ones; raises `RegistryAnswerError` for a bad whole."""
        return self._read(value)[0]

    def _read(self, value: object) -> tuple[list[NodeInfo], frozenset[str]]:
        """The valid entries, and the names of the others."""
        if not isinstance(value, list):
            raise RegistryAnswerError("answered with JSON that is not a list of nodes")
        items = cast("list[object]", value)
        if len(items) > MAX_NODES:
            raise RegistryAnswerError(f"listed {len(items)} nodes, more than {MAX_NODES}")
        nodes: dict[str, NodeInfo] = {}
        skipped: set[str] = set()
        for item in items:
            try:
                node = NodeInfo.from_json(item)
            except InvalidNodeError as error:
                self._once(logging.WARNING, f"Registry at {self.status.url} lists a node that is skipped: {error}")
                skipped.add(_name_of(item))
                continue
            if node.name in nodes:
                skipped.add(node.name)
            self._accept(nodes, node)
        return list(nodes.values()), frozenset(skipped)

    def _accept(self, nodes: dict[str, NodeInfo], node: NodeInfo) -> None:
        """Take one entry in; of a name listed twice the first one counts, and of our own name the one that is us."""
        own = self._info
        is_own = own is not None and node.name == own.name
        if is_own and own is not None and node.cluster_addr != own.cluster_addr:
            self._once(
                logging.WARNING,
                f"Registry lists our name {node.name} at {node.cluster_addr}; node names must be unique",
            )
        if node.name not in nodes or (own is not None and node.same_endpoint(own)):
            nodes[node.name] = node
        elif not is_own and not nodes[node.name].same_endpoint(node):
            self._once(
                logging.WARNING,
                f"Registry lists {node.name} twice: using {nodes[node.name].cluster_addr}, not {node.cluster_addr}",
            )


def _name_of(item: object) -> str:
    """The name in an entry that is not valid, "" if it has none."""
    name = cast("Mapping[object, object]", item).get("name") if isinstance(item, Mapping) else None
    return name if isinstance(name, str) else ""


def _unsupported(error: RegistryRefusedError) -> RegistryError:
    """A refusal of the way of asking, rather than of us."""
    return WatchUnsupportedError(str(error)) if error.status in _NO_SUCH_WATCH else error


def _ttl(answer: Answer) -> float:
    """The TTL of a 2xx answer to a registration or heartbeat, 0 if it tells none. A web page is no acknowledgement."""
    if "html" in answer.headers.get("Content-Type", "").lower() or answer.body.lstrip()[:1] == b"<":
        raise RegistryAnswerError("answered with a web page")
    try:
        ttl = float(answer.headers.get("X-Registry-TTL", "0"))
    except ValueError:
        ttl = 0.0
    return ttl if 0.0 < ttl <= 86_400.0 else 0.0
