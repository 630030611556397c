"""`$JS.API.>` of one account: from a request on the wire to a handler and back.

Owns the subscription, the table of endpoints, the rules about empty and non-empty bodies, the JSON envelope and the
counters of `$JS.API.INFO`. It knows no stream and no consumer: `api/*.py` register their endpoints here.

Handlers run at once on the loop and either return the response or an awaitable of it. What they raise as `ApiError`
becomes the `error` of the response.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import JsonObject, Struct, decode, encode
from nimsnats.jetstream.api.queue import RequestQueue
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.routed import nodes_group
from nimsnats.protocol.headers import header_value
from nimsnats.runtime import Runtime
from nimsnats.version import API_LEVEL

if TYPE_CHECKING:
    from nimsnats.broker.account import Account, Subscription
    from nimsnats.broker.client import ClientConnection

PREFIX: Final = "$JS.API."
_PREFIX: Final = PREFIX.encode()
TYPE_PREFIX: Final = "io.nats.jetstream.api.v1."
_PULL: Final = b"$JS.API.CONSUMER.MSG.NEXT."
"""Pulls do not wait in the queue: they cost little, and come before the acknowledgements that follow them."""
_DIGITS: Final = 18
"""More digits are beyond every level."""
MAX_WAITING: Final = 10_000
"""Requests of one account that may wait for a commit; more are dropped with a warning (nats-server's queue limit)."""


class Body(Enum):
    """What a request's body may be (an empty object counts as empty)."""

    PARSED = "parsed"
    """Decoded when there is one; absent fields are for the handler to judge."""
    OPTIONAL = "optional"
    """Decoded only when its first character is `{` or `[`; other text is ignored."""
    EMPTY = "empty"
    """Anything in it is error 10038."""
    REQUIRED = "required"
    """Nothing in it is error 10003."""
    RAW = "raw"
    """Left to the handler, which also answers by itself (`DIRECT.GET`, `CONSUMER.MSG.NEXT`)."""


@dataclass(slots=True)
class ApiRequest:
    """One request. `tokens` are the subject's tokens after `$JS.API.`; `params` the decoded body, canonical keys."""

    account: Account
    tokens: list[str]
    subject: bytes
    reply: bytes
    headers: bytes
    body: bytes
    origin: ClientConnection | None = None
    params: JsonObject = field(default_factory=JsonObject)
    hops: int = 0
    """Nodes that have passed it on."""


Response = JsonObject | bool | None
Handler = Callable[[ApiRequest], "Response | Awaitable[JsonObject | None]"]
"""Returns the response without `type` (or an awaitable of it); None when it answered itself or nobody is to be
answered; False (RAW only, and only at once) when the asset is not there, so that the requester gets a 503."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One API subject: `pattern` below `$JS.API.` with `*` for one token and a final `>` for at least one.

    `response` is the suffix of the response type; `zero` are fields that nats-server also sends beside an error.
    """

    pattern: str
    response: str
    handler: Handler
    body: Body = Body.PARSED
    request: Struct | None = None
    zero: JsonObject = field(default_factory=JsonObject)


def level_too_high(headers: bytes) -> bool:
    """Whether a request asks for an API level above ours (`Nats-Required-Api-Level`), or for none at all."""
    level = header_value(headers, b"Nats-Required-Api-Level")
    return level is not None and not (level.isdigit() and len(level) <= _DIGITS and int(level) <= API_LEVEL)


def _tokens(subject: bytes) -> list[str]:
    """The tokens below `$JS.API.`. None where a push consumer delivers to a subject of the API: what arrives shows the
    subject under which it was published, and is no request, whatever that is."""
    return subject.decode("utf-8", "replace").split(".")[2:] if subject.startswith(_PREFIX) else []


class ApiDispatcher:
    """Answers the JetStream API of one account until it is closed; `routed`: for clients of other servers, too."""

    def __init__(
        self,
        account: Account,
        runtime: Runtime,
        log: logging.Logger,
        requests: RequestQueue,
        *,
        strict: bool = True,
        routed: bool = True,
    ) -> None:
        self.account = account
        self._requests = requests
        self.total = 0
        self.failed = 0
        self.audit: Callable[[ApiRequest, bytes], None] | None = None
        """Told about every answer."""
        self.forward: Callable[[ApiRequest], bool | Awaitable[bool]] | None = None
        """Asked before a request is handled: True when another node answers it; an awaitable of that while nobody
        leads. May raise ApiError."""
        self.several: Callable[[], bool] = lambda: False
        """Whether there are other nodes: then their clients' requests with other answers than JSON come to `attracted`
        alone."""
        self._runtime = runtime
        self._log = log
        self._strict = strict
        self._routed = routed
        self._by_head: dict[str, list[tuple[list[str], Endpoint]]] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    def register(self, endpoints: Iterable[Endpoint]) -> None:
        """Add endpoints to the table. Patterns of one table never overlap, so their order does not matter."""
        for endpoint in endpoints:
            tokens = endpoint.pattern.split(".")
            self._by_head.setdefault(tokens[0], []).append((tokens, endpoint))

    def start(self) -> None:
        """Start to answer."""
        assert self._subscription is None
        self._subscription = self.account.subscribe(
            f"{PREFIX}>".encode(), self._receive, nodes_group("API"), routed=self._routed, costly=True
        )

    async def close(self) -> None:
        """Stop to answer; requests that wait for a commit are given up."""
        if self._subscription is not None:
            self.account.unsubscribe(self._subscription)
            self._subscription = None
        waiting = list(self._waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def _receive(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> bool | None:
        """The subscription's handler."""
        if origin is not None or subject.startswith(_PULL):
            return self._take(subject, reply, headers, payload, origin)
        self._requests.put(len(payload), self._routed_in, subject, reply, headers, payload)
        return None

    def take(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, hops: int) -> None:
        """Answer a request that another node passes on, when its turn has come."""
        self._requests.put(len(payload), self._routed_in, subject, reply, headers, payload, hops)

    def _routed_in(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, hops: int = 0) -> None:
        if self._subscription is not None:
            self._take(subject, reply, headers, payload, None, hops)

    def _take(
        self,
        subject: bytes,
        reply: bytes,
        headers: bytes,
        payload: bytes,
        origin: ClientConnection | None = None,
        hops: int = 0,
    ) -> bool | None:
        """Answer a request. Subjects that no endpoint knows get no answer at all, as in nats-server."""
        tokens = _tokens(subject)
        endpoint = self._find(tokens)
        if endpoint is None:
            return None
        request = ApiRequest(self.account, tokens, subject, reply, headers, payload, origin, hops=hops)
        if endpoint.body is Body.RAW:
            if origin is None and self.several():
                return False
            return self._call_raw(endpoint, request)
        self.total += 1
        try:
            elsewhere = self.forward(request) if self.forward is not None else False
            if isinstance(elsewhere, Awaitable):
                self._wait(endpoint, request, self._once_led(endpoint, request, elsewhere))
                return None
            if elsewhere:
                return None
            response = self._handled(endpoint, request)
            if isinstance(response, Awaitable):
                self._wait(endpoint, request, response)
            elif isinstance(response, dict):
                self.answer(endpoint, request, response)
        except ApiError as error:
            self._fail(endpoint, request, error)
        except Exception as error:
            self._broken(endpoint, request, error)
        return None

    def _handled(self, endpoint: Endpoint, request: ApiRequest) -> Response | Awaitable[JsonObject | None]:
        self._check_level(request)
        self._read_body(endpoint, request)
        return endpoint.handler(request)

    async def _once_led(self, endpoint: Endpoint, request: ApiRequest, elsewhere: Awaitable[bool]) -> JsonObject | None:
        """Handle a request that has come while nobody led, unless the leader is another node."""
        if await elsewhere:
            return None
        response = self._handled(endpoint, request)
        if isinstance(response, Awaitable):
            return await response
        return response if isinstance(response, dict) else None

    def _find(self, tokens: list[str]) -> Endpoint | None:
        for pattern, endpoint in self._by_head.get(tokens[0], ()) if tokens else ():
            if len(tokens) != len(pattern) and (pattern[-1] != ">" or len(tokens) < len(pattern)):
                continue
            if all(want in ("*", ">", got) for want, got in zip(pattern, tokens, strict=False)):
                return endpoint
        return None

    def _call_raw(self, endpoint: Endpoint, request: ApiRequest) -> bool | None:
        try:
            response = endpoint.handler(request)
        except Exception as error:  # there is no JSON to answer with: whoever asks here reads a status
            self.account.failed(endpoint.handler, request.subject, request.reply, error)
            return None
        assert response is None or isinstance(response, bool)
        return response

    def _check_level(self, request: ApiRequest) -> None:
        if request.headers and level_too_high(request.headers):
            raise errors.REQUIRED_API_LEVEL()

    def _read_body(self, endpoint: Endpoint, request: ApiRequest) -> None:
        body = request.body.strip(b" \t\r\n") if endpoint.body is not Body.PARSED else request.body
        empty = not body or body == b"{}"
        if endpoint.body is Body.EMPTY:
            if not empty:
                raise errors.NOT_EMPTY_REQUEST()
            return
        if endpoint.body is Body.REQUIRED and empty:
            raise errors.BAD_REQUEST()
        if endpoint.body is Body.OPTIONAL and body[:1] not in (b"{", b"["):
            return
        if endpoint.request is not None:
            request.params = decode(request.body, endpoint.request, self._strict)

    def answer(self, endpoint: Endpoint, request: ApiRequest, body: JsonObject) -> None:
        """Send a response with its type in front."""
        payload = encode({"type": TYPE_PREFIX + endpoint.response, **body})
        if request.reply:
            self.account.publish(request.reply, payload)
        if self.audit is not None and (endpoint.response != "stream_msg_get_response" or "error" in body):
            self.audit(request, payload)

    def attracted(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> bool | None:
        """The handler of what a stream's leader asks other nodes to send it: requests whose answer is not JSON."""
        if origin is not None:
            return False  # of a client of this node: `_receive` has it
        tokens = _tokens(subject)
        endpoint = self._find(tokens)
        if endpoint is None or endpoint.body is not Body.RAW:
            return False
        request = ApiRequest(self.account, tokens, subject, reply, headers, payload)
        if subject.startswith(_PULL):
            return self._call_raw(endpoint, request)
        self._requests.put(len(payload), self._call_raw, endpoint, request)
        return None

    def _fail(self, endpoint: Endpoint, request: ApiRequest, error: ApiError) -> None:
        self.failed += 1
        self.answer(endpoint, request, {"error": error.body(), **endpoint.zero})

    def _broken(self, endpoint: Endpoint, request: ApiRequest, error: Exception) -> None:
        """Our own bug: the server lives on, the log has the traceback, the client gets an error."""
        self.account.fence.caught(endpoint.handler, error)
        self._fail(endpoint, request, errors.STREAM_GENERAL_ERROR(err="internal error"))

    def _wait(self, endpoint: Endpoint, request: ApiRequest, response: Awaitable[JsonObject | None]) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._log.warning("JetStream API queue limit reached: request on %s refused", endpoint.pattern)
            if asyncio.iscoroutine(response):
                response.close()
            self._fail(endpoint, request, errors.CLUSTER_NOT_AVAIL())
            return
        task = self._runtime.spawn(self._finish(endpoint, request, response), f"api {endpoint.pattern}")
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _finish(self, endpoint: Endpoint, request: ApiRequest, response: Awaitable[JsonObject | None]) -> None:
        try:
            body = await response
            if body is not None:
                self.answer(endpoint, request, body)
        except ApiError as error:
            self._fail(endpoint, request, error)
        except Exception as error:
            self._broken(endpoint, request, error)
