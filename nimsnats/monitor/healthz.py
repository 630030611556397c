"""`/healthz`: nats-server's yes or no, down to a stream or a consumer if asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.view import NodeView

if TYPE_CHECKING:
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.jetstream.meta import StreamRecord

_UNAVAILABLE = "unavailable"
_PLACED = 10.0
"""Seconds from a node's start until it has been given what it is to have: what is missing then goes elsewhere."""


@dataclass(slots=True)
class _Failure(Exception):
    """What is wrong, with the place it concerns; `status` is the HTTP status and the word that goes with it."""

    type: str
    error: str
    code: int = 503
    word: str = _UNAVAILABLE
    place: JsonObject = field(default_factory=JsonObject)


def healthz(
    view: NodeView,
    *,
    js_enabled_only: bool = False,
    js_server_only: bool = False,
    js_meta_only: bool = False,
    account: str = "",
    stream: str = "",
    consumer: str = "",
    details: bool = False,
) -> JsonObject:
    """`status`, an error or with `details` a list of them, and `status_code` for HTTP."""
    try:
        _check_parameters(account, stream, consumer)
        if not (js_server_only or view.jetstream is None):
            _check_jetstream(view)
            if not js_enabled_only:
                _check_meta(view.jetstream)
            if not (js_enabled_only or js_meta_only):
                _check_assets(view, account, stream, consumer)
                _check_replicas(view, account, stream)
    except _Failure as failure:
        if details:
            error = {"type": failure.type, **failure.place, "error": failure.error}
            return {"status": "error", "status_code": failure.code, "errors": [error]}
        return {"status": failure.word, "status_code": failure.code, "error": failure.error}
    return {"status": "ok", "status_code": 200}


def _check_parameters(account: str, stream: str, consumer: str) -> None:
    for missing, given, what in ((account, stream, "stream"), (stream, consumer, "consumer")):
        if given and not missing:
            needed = "account" if what == "stream" else "stream"
            text = f'"{needed}" must not be empty when checking {what} health'
            raise _Failure("BAD_REQUEST", text, 400, "error")


def _check_jetstream(view: NodeView) -> None:
    if view.storage is not None and view.storage.failure is not None:
        raise _Failure("JETSTREAM", f"JetStream storage failed: {view.storage.failure}")
    for problem in view.problems():
        raise _Failure("JETSTREAM", problem)


def _check_meta(jetstream: JetStream) -> None:
    """Whether this node knows what the cluster has decided."""
    cluster = jetstream.cluster
    if cluster is None or not cluster.several:
        return
    if cluster.joining or not cluster.group.leader:
        raise _Failure("JETSTREAM", "JetStream has not established contact with a meta leader")
    if cluster.group.applied < cluster.group.committed:
        raise _Failure("JETSTREAM", "JetStream is not current with the meta leader")


def _check_replicas(view: NodeView, account: str, stream: str) -> None:
    """Whether this node's replicas are full members of their groups that know their leaders and follow them.

    A node that has just come may still get replicas: streams leave it when it stops, where the rest is safer without.
    """
    jetstream = view.jetstream
    assert jetstream is not None
    if not jetstream.peers.several:
        return
    age = (view.broker.runtime.time_ns() - view.started_ns) / 1e9
    for record in jetstream.meta.streams.values():
        if record.account not in jetstream.accounts:
            continue  # not configured here any more: its streams stay closed
        if account not in ("", record.account) or stream not in ("", record.name):
            continue
        if jetstream.holds(record):
            served = jetstream.served(record)
            wrong = served is None or not served.current or jetstream.host.member not in served.stream.group.members
        else:
            wrong = age < _PLACED and len(record.members) < _wanted(jetstream, record)
        if wrong:
            place: JsonObject = {"account": record.account, "stream": record.name}
            text = f"JetStream stream '{record.account} > {record.name}' is not current"
            raise _Failure("STREAM", text, place=place)


def _wanted(jetstream: JetStream, record: StreamRecord) -> int:
    """Replicas that a stream can have with as many nodes as there are."""
    nodes = len(jetstream.cluster.nodes) if jetstream.cluster is not None else 1
    return min(int(record.config.get("num_replicas", 1)), nodes)


def _check_assets(view: NodeView, account: str, stream: str, consumer: str) -> None:
    assert view.jetstream is not None
    if not account:
        return
    place: JsonObject = {"account": account}
    held = view.jetstream.accounts.get(account)
    if held is None:
        raise _Failure("ACCOUNT", f'JetStream account "{account}" not found', 404, place=place)
    if not stream:
        return
    place |= {"stream": stream}
    found = held.streams.get(stream)
    if found is None and (account, stream) not in view.jetstream.meta.streams:
        raise _Failure("STREAM", f'JetStream stream "{stream}" not found on account "{account}"', 404, place=place)
    if consumer and found is not None and found.stream.consumers.get(consumer) is None:
        text = f'JetStream consumer "{consumer}" not found for stream "{stream}" on account "{account}"'
        raise _Failure("CONSUMER", text, 404, place={**place, "consumer": consumer})
