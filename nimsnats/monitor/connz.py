"""`/connz`: client connections, open and closed, filtered, sorted and paged."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final

from nimsnats.broker.client import ClientConnection
from nimsnats.broker.closed import ClosedClient
from nimsnats.jetstream.clock import format_duration, format_time
from nimsnats.monitor.format import JsonObject, present, uptime
from nimsnats.monitor.query import ParameterError
from nimsnats.monitor.subsz import detail
from nimsnats.monitor.view import NodeView
from nimsnats.protocol.subject import collide
from nimsnats.protocol.x509 import Certificate

DEFAULT_LIMIT: Final = 1024
OPEN: Final = 0
CLOSED: Final = 1
ALL: Final = 2

Connection = ClientConnection | ClosedClient
"""Open, or what is remembered of it."""

_KEYS: Final[dict[str, Callable[[Connection, int], Any]]] = {
    "subs": lambda c, now: c.sub_count,
    "pending": lambda c, now: c.pending,
    "msgs_to": lambda c, now: c.out_msgs,
    "msgs_from": lambda c, now: c.in_msgs,
    "bytes_to": lambda c, now: c.out_bytes,
    "bytes_from": lambda c, now: c.in_bytes,
    "last": lambda c, now: c.last_ns,
    "idle": lambda c, now: now - c.last_ns,
    "uptime": lambda c, now: (c.stop_ns or now) - c.start_ns,
    "stop": lambda c, now: c.stop_ns,
    "reason": lambda c, now: c.reason.value if c.reason else "",
    "rtt": lambda c, now: c.rtt,
}
"""Sort keys by option."""
_BY_CID: Final = ("", "cid", "start")
_ASCENDING: Final = ("uptime", "reason")
"""Ascend as `cid` and `start` do; all others descend."""


def connz(
    view: NodeView,
    *,
    sort: str = "",
    auth: bool = False,
    subscriptions: bool = False,
    subscriptions_detail: bool = False,
    offset: int = 0,
    limit: int = 0,
    cid: int = 0,
    state: int = OPEN,
    user: str = "",
    acc: str = "",
    mqtt_client: str = "",
    filter_subject: str = "",
) -> JsonObject:
    """A page of connections. Raises ParameterError."""
    _check(sort, state, filter_subject, acc)
    now = view.now_ns()
    head: JsonObject = {
        "server_id": view.broker.server_id,
        "now": format_time(now),
        "num_connections": 0,
        "total": 0,
        "offset": max(offset, 0),
        "limit": 1 if cid else limit if limit > 0 else DEFAULT_LIMIT,
    }
    if acc and acc not in view.broker.accounts:
        return {**head, "server_id": "", "connections": None}
    chosen = [c for c in _candidates(view, state, cid) if _wanted(c, user, acc, mqtt_client, filter_subject)]
    _order(chosen, sort, now)
    page = chosen[head["offset"] :][: head["limit"]]
    head["num_connections"] = len(page)
    head["total"] = len(chosen)
    listing = _listing(subscriptions, subscriptions_detail)
    head["connections"] = [
        {**_connection(c, now), **_secured(c, peer=auth), **(_identity(c) if auth else {}), **listing(c)} for c in page
    ]
    return head


def _check(sort: str, state: int, filter_subject: str, acc: str) -> None:
    if sort not in _BY_CID and sort not in _KEYS:
        raise ParameterError(f"invalid sorting option: {sort}")
    if sort in ("stop", "reason") and state != CLOSED:
        raise ParameterError(f"sort by {sort} only valid on closed connections")
    if filter_subject and filter_subject != ">" and not acc:
        raise ParameterError("filter by subject only valid with account filtering")


def _candidates(view: NodeView, state: int, cid: int) -> list[Connection]:
    candidates: list[Connection] = []
    if state in (OPEN, ALL):
        candidates.extend(view.broker.clients.values())
    if state in (CLOSED, ALL):
        candidates.extend(view.broker.closed)
    return [c for c in candidates if c.cid == cid] if cid else candidates


def _wanted(c: Connection, user: str, acc: str, mqtt_client: str, filter_subject: str) -> bool:
    if mqtt_client or (acc and c.account.name != acc) or (user and c.user != user):
        return False
    if not filter_subject or filter_subject == ">":
        return True
    return any(collide(filter_subject.encode(), sub.subject) for sub in c.subs.values())


def _order(connections: list[Connection], sort: str, now: int) -> None:
    connections.sort(key=lambda c: c.cid)
    if sort not in _BY_CID:
        key = _KEYS[sort]
        connections.sort(key=lambda c: key(c, now), reverse=sort not in _ASCENDING)


def _connection(c: Connection, now: int) -> JsonObject:
    end = c.stop_ns or now
    closed = {"stop": format_time(c.stop_ns), "reason": c.reason.value if c.reason else ""} if c.stop_ns else {}
    return {
        "cid": c.cid,
        "kind": c.kind,
        "type": "nats",
        "ip": c.ip,
        "port": c.port,
        "start": format_time(c.start_ns),
        "last_activity": format_time(c.last_ns),
        **closed,
        "rtt": format_duration(round(c.rtt * 1e9)),
        "uptime": uptime(end - c.start_ns),
        "idle": uptime(end - c.last_ns),
        "pending_bytes": c.pending,
        "in_msgs": c.in_msgs,
        "out_msgs": c.out_msgs,
        "in_bytes": c.in_bytes,
        "out_bytes": c.out_bytes,
        **present({"stalls": c.stalls}),
        "subscriptions": c.sub_count,
        **present({"name": c.name, "lang": c.lang, "version": c.version}),
    }


def _secured(c: Connection, *, peer: bool) -> JsonObject:
    """TLS of a connection; with `peer` the certificate that the client has shown."""
    secured = c.secured
    if secured is None:
        return {}
    shown: JsonObject = {"tls_version": secured.version, "tls_cipher_suite": secured.cipher}
    if peer and secured.certificate:
        certificate = Certificate(secured.certificate)
        shown["tls_peer_certs"] = [
            {
                "subject": certificate.subject(),
                "spki_sha256": sha256(certificate.key).hexdigest(),
                "cert_sha256": sha256(secured.certificate).hexdigest(),
            }
        ]
    return shown


def _identity(c: Connection) -> JsonObject:
    """Who a connection is; the global account is not named, its display name is."""
    account = c.account.name
    return present({"authorized_user": c.user, "account": account if account != "$G" else "", "name_tag": account})


def _listing(subscriptions: bool, subscriptions_detail: bool) -> Callable[[Connection], JsonObject]:
    """What to add about subscriptions."""
    if subscriptions_detail:
        # nats-server names the account only where the connection, which would tell, is gone
        return lambda c: present(
            {
                "subscriptions_list_detail": [
                    detail(sub, c.account if c.closed else None, c.cid) for sub in c.subs.values()
                ]
            }
        )
    if subscriptions:
        return lambda c: present(
            {"subscriptions_list": [sub.subject.decode("utf-8", "replace") for sub in c.subs.values()]}
        )
    return lambda c: {}
