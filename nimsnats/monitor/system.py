"""Requests on `$SYS.REQ`: the monitoring endpoints for clients that speak NATS, such as the `nats` CLI.

Owns the internal subscriptions and who may ask what: the system account everything, any other account four subjects,
whose answers concern nothing but itself. What is in the answers is built by the same functions as for HTTP.
"""

from __future__ import annotations

import gzip
import re
from base64 import b64decode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from nimsnats.broker.account import Account
from nimsnats.broker.reasons import Reason
from nimsnats.broker.subscription import Subscription
from nimsnats.jetstream.api.decode import STRING, UINT64, Struct, decode, encode
from nimsnats.jetstream.errors import ApiError
from nimsnats.monitor.accountz import account_detail, accstatz
from nimsnats.monitor.endpoints import BY_NAME, ENDPOINTS, FILTERS, Endpoint
from nimsnats.monitor.events import ServerEvents
from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.jsz import account_jsz
from nimsnats.monitor.query import NotMeant, ParameterError
from nimsnats.monitor.statsz import server_object, statsz
from nimsnats.monitor.tracing import TraceReports
from nimsnats.monitor.view import NodeView
from nimsnats.protocol.headers import header_value

if TYPE_CHECKING:
    from nimsnats.broker.client import ClientConnection

_PREFIX: Final = "$SYS.REQ."
_SUBSCRIBERS: Final = b"$SYS.DEBUG.SUBSCRIBERS"
_OFFSET: Final = re.compile(r" at offset \d+$")
_STATSZ: Final = Endpoint(statsz, "STATSZ", struct="StatszEventOptions")
_ACCOUNT_STATZ: Final = next(endpoint for endpoint in ENDPOINTS if endpoint.build is accstatz)
_NSUBS: Final = Struct("accNumSubsReq", {"acc": STRING, "subject": STRING, "queue": STRING}, strict=False)
"""`queue` is bytes in Go, so base64 in JSON."""
_CID: Final = Struct("KickClientReq", {"cid": UINT64}, strict=False)
_GZIP_HEADER: Final = b"NATS/1.0\r\nContent-Encoding: gzip\r\n\r\n"


class _Request:
    """One request on its way to its answer."""

    __slots__ = ("account", "body", "headers", "origin", "reply", "subject")

    def __init__(
        self,
        account: Account,
        subject: bytes,
        reply: bytes,
        headers: bytes,
        body: bytes,
        origin: ClientConnection | None,
    ) -> None:
        self.account = account
        self.subject = subject
        self.reply = reply
        self.headers = headers
        self.body = body
        self.origin = origin


class _NoAnswer(Exception):
    """This server is not meant, or has nothing to say."""


class SystemServices:
    """Answers `$SYS.REQ` requests of one server between `start` and `stop`."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        self._sequence = 0
        self.events = ServerEvents(view, self._server)
        self._traces = TraceReports(view, self._server)
        self._subscriptions: list[tuple[Account, Subscription]] = []

    def start(self) -> None:
        """Subscribe in every account there is, those of configured users included."""
        broker = self._view.broker
        system = broker.system_account
        for user in broker.options.users:
            broker.account(user.account)
        self._listen(system, b"$SYS.REQ.>", self._system_request, routed=True)
        self._listen(system, _SUBSCRIBERS, self._count_subscribers)
        for account in broker.accounts.values():
            if account is not system:
                self._adopt(account)
        broker.account_listeners.append(self._adopt)
        self.events.start()
        self._traces.start()

    def _adopt(self, account: Account) -> None:
        """Let an ordinary account ask about itself."""
        self._listen(account, b"$SYS.REQ.USER.INFO", self._user_info)
        self._listen(account, b"$SYS.REQ.ACCOUNT.PING.STATZ", self._own_statz)
        self._listen(account, b"$SYS.REQ.ACCOUNT.PING.CONNZ", self._own_connz)
        self._listen(account, b"$SYS.REQ.SERVER.PING.CONNZ", self._own_connz)

    def stop(self) -> None:
        """Unsubscribe. Idempotent."""
        self.events.stop()
        self._traces.stop()
        listeners = self._view.broker.account_listeners
        if self._adopt in listeners:
            listeners.remove(self._adopt)
        for account, subscription in self._subscriptions:
            account.unsubscribe(subscription)
        self._subscriptions.clear()

    def _listen(
        self, account: Account, subject: bytes, handle: Callable[[_Request], bool | None], *, routed: bool = False
    ) -> None:
        def receive(
            subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
        ) -> bool | None:
            if not reply:
                return None
            return handle(_Request(account, subject, reply, headers, payload, origin))

        self._subscriptions.append((account, account.subscribe(subject, receive, routed=routed)))

    # -- requests of the system account ----------------------------------------------------------------------------

    def _system_request(self, request: _Request) -> bool | None:
        """Find the answer by subject; False, which becomes a 503, when there is no such request."""
        tokens = request.subject.decode("utf-8", "replace").removeprefix(_PREFIX).split(".")
        match tokens:
            case ["SERVER", "PING"] | ["SERVER", "PING", "STATSZ"]:
                return self._statsz(request)
            case ["SERVER", target, name] if target in ("PING", self._view.broker.server_id):
                return self._server_request(request, name)
            case ["ACCOUNT", "NSUBS"]:
                return self._count_interest(request)
            case ["ACCOUNT", "PING", "STATZ"]:
                return self._data(request, _ACCOUNT_STATZ)
            case ["ACCOUNT", name, what]:
                return self._account_request(request, name, what)
            case ["USER", "INFO"]:
                return self._user_info(request)
            case _:
                return False

    def _server_request(self, request: _Request, name: str) -> bool | None:
        endpoint = BY_NAME.get(name)
        if endpoint is not None:
            return self._data(request, endpoint)
        match name:
            case "STATSZ":
                return self._statsz(request)
            case "IDZ":
                broker = self._view.broker
                self._send(request, {"name": broker.server_name, "host": broker.options.host, "id": broker.server_id})
            case "KICK":
                self._acting(request, lambda: self._kick(request))
            case "LDM":
                self._acting(request, lambda: self._send_away(request))
            case "RELOAD":
                self._acting(request, self._reload)
            case "PROFILEZ" | "EXPVARZ":
                self._answer(request, error=(500, f"{name} is not available on this server"))
            case _:
                return False
        return None

    def _statsz(self, request: _Request) -> None:
        def answer() -> JsonObject:
            self._read(request, _STATSZ)
            return {"statsz": statsz(self._view)}

        self._answering(request, answer)

    def _data(self, request: _Request, endpoint: Endpoint, **forced: Any) -> None:
        """Answer with an endpoint's data; `forced` overrides what the request's body says."""

        def answer() -> JsonObject:
            options = {**self._read(request, endpoint), **forced}
            data = endpoint.build(self._view, **options)
            return {"data": {} if data is None else data}

        self._answering(request, answer)

    def _account_request(self, request: _Request, name: str, what: str) -> bool | None:
        account = self._view.broker.accounts.get(name)
        match what:
            case "CONNZ":
                return self._data(request, BY_NAME["CONNZ"], acc=name)
            case "SUBSZ":
                return self._data(request, BY_NAME["SUBSZ"], account=name, subscriptions=True)
            case "LEAFZ":
                return self._data(request, BY_NAME["LEAFZ"], account=name)
            case "INFO" | "JSZ" | "STATZ" | "CONNS" if account is None:
                unknown = (500, f"Account {name} does not exist")
                self._answer(request, {"data": None}, error=unknown)
            case "INFO":
                assert account is not None
                self._answer(request, {"data": account_detail(self._view, account)})
            case "JSZ":
                self._answering(request, lambda: {"data": account_jsz(self._view, name)})
            case "STATZ" | "CONNS":
                assert account is not None
                if account.clients:
                    self._account_traffic(request, account, what)
            case _:
                return False
        return None

    def _account_traffic(self, request: _Request, account: Account, what: str) -> None:
        if what == "STATZ":
            self._answer(request, {"data": accstatz(self._view, accounts=[account.name])})
            return
        self._send(request, self.events.connections(account))

    def _kick(self, request: _Request) -> None:
        """Close a connection by its cid."""
        cid = _decoded(request.body, _CID).get("cid", 0)
        client = self._view.broker.clients.get(cid)
        if client is None:
            raise ParameterError("no such client or leafnode id")
        client.close(Reason.KICKED)

    def _send_away(self, request: _Request) -> None:
        """Ask a client to go to another server; it is known by its cid."""
        client = self._view.broker.clients.get(_decoded(request.body, _CID).get("cid", 0))
        if client is None:
            raise ParameterError("no such client id")
        client.send_away()

    def _reload(self) -> None:
        """Read the configuration again."""
        reload = self._view.reload
        error = reload() if reload is not None else "config file not specified"
        if error:
            raise ParameterError(error)

    def _count_interest(self, request: _Request) -> None:
        try:
            wanted = _decoded(request.body, _NSUBS)
            queue = b64decode(wanted.get("queue", ""), validate=True)
        except (ApiError, ValueError):
            return
        account = self._view.broker.accounts.get(wanted.get("acc", ""))
        if account is not None:
            count = _interested(account, wanted.get("subject", "").encode(), queue)
            if count:
                request.account.publish(request.reply, str(count).encode())

    def _count_subscribers(self, request: _Request) -> None:
        subject, _, queue = request.body.strip().partition(b" ")
        count = sum(_interested(account, subject, queue.strip()) for account in self._view.broker.accounts.values())
        request.account.publish(request.reply, str(count).encode())

    # -- requests that any account may make ------------------------------------------------------------------------

    def _own_statz(self, request: _Request) -> None:
        self._data(request, _ACCOUNT_STATZ, accounts=[request.account.name])

    def _own_connz(self, request: _Request) -> None:
        self._data(request, BY_NAME["CONNZ"], acc=request.account.name)

    def _user_info(self, request: _Request) -> None:
        origin = request.origin
        if origin is None:
            return
        user = origin.identity.user if origin.identity is not None else ""
        name = origin.account.name
        self._answer(request, {"data": {"user": user, "account": name, "account_name": name}})

    # -- answers -----------------------------------------------------------------------------------------------------

    def _read(self, request: _Request, endpoint: Endpoint) -> dict[str, Any]:
        """The options in a request's body, in the builder's words. Raises ApiError, _NoAnswer."""
        given = _decoded(request.body, endpoint.request())
        self._check_filter(given)
        return {endpoint.renamed.get(key, key): value for key, value in given.items() if key not in FILTERS}

    def _check_filter(self, given: dict[str, Any]) -> None:
        """Raise _NoAnswer when the request's filter leaves this server out."""
        broker, exact = self._view.broker, given.get("exact_match", False)
        own = {"server_name": broker.server_name, "host": broker.options.host, "cluster": broker.options.cluster_name}
        for key, value in own.items():
            wanted = given.get(key, "")
            if wanted and (wanted != value if exact else wanted not in value):
                raise _NoAnswer
        domain = self._view.jetstream.options.domain if self._view.jetstream is not None else ""
        if not set(given.get("tags") or ()) <= set(broker.options.tags) or given.get("domain", domain) not in (
            "",
            domain,
        ):
            raise _NoAnswer

    def _answering(self, request: _Request, build: Callable[[], JsonObject]) -> None:
        """Send what `build` makes, or the error it raises."""
        try:
            answer = build()
        except (_NoAnswer, NotMeant):
            return
        except ApiError as error:
            self._answer(request, error=(400, _complaint(error)))
        except ParameterError as error:
            self._answer(request, {"data": None}, error=(500, str(error)))
        else:
            self._answer(request, answer)

    def _acting(self, request: _Request, act: Callable[[], None]) -> None:
        """Do something and say that it is done, or the error that it raises."""
        try:
            act()
        except ApiError as error:
            self._answer(request, error=(400, _complaint(error)))
        except ParameterError as error:
            self._answer(request, error=(500, str(error)))
        else:
            self._answer(request)

    def _answer(
        self, request: _Request, fields: JsonObject | None = None, error: tuple[int, str] | None = None
    ) -> None:
        body: JsonObject = {"server": self._server(), **(fields or {})}
        if error is not None:
            body["error"] = {"code": error[0], "description": error[1]}
        self._send(request, body)

    def _send(self, request: _Request, body: JsonObject) -> None:
        payload, headers = encode(body), b""
        if header_value(request.headers, b"Accept-Encoding") == b"gzip":
            payload, headers = gzip.compress(payload), _GZIP_HEADER
        request.account.publish(request.reply, payload, headers=headers)

    def _server(self) -> JsonObject:
        self._sequence += 1
        return server_object(self._view, self._sequence)


def _decoded(body: bytes, struct: Struct) -> dict[str, Any]:
    """The fields of a request's body. Raises ApiError with Go's text."""
    return decode(body, struct, strict=False)


def _complaint(error: ApiError) -> str:
    """What is wrong with a body; the Go decoder used here has its own words for one that ends too early."""
    text = _OFFSET.sub("", error.description.removeprefix("invalid JSON: "))
    return "unexpected end of JSON input" if text == "unexpected EOF" else text


def _interested(account: Account, subject: bytes, queue: bytes) -> int:
    """Clients' subscriptions that a message on `subject` would reach, of one queue group if given."""
    found = (sub for matched in account.interest.match(subject) for sub in matched)
    return sum(sub.client is not None and (not queue or sub.queue == queue) for sub in found)
