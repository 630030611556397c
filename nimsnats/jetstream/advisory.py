"""Events about streams, their leaders, the catalogue's leader and the API itself, published only when somebody listens.

Owns their shape. What clients do to consumers is `consumer/advisory.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from nimsnats.identity import nuid
from nimsnats.jetstream.api.decode import JsonObject, encode
from nimsnats.jetstream.clock import format_time
from nimsnats.runtime import Runtime

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.jetstream.api.dispatch import ApiRequest

_TYPE: Final = "io.nats.jetstream.advisory.v1."
_VERBS: Final = {"create": "CREATED", "delete": "DELETED", "modify": "UPDATED"}
_ADVISORY: Final = "$JS.EVENT.ADVISORY."
_AUDIT: Final = b"$JS.EVENT.ADVISORY.API"

Replicas = Callable[[], list[JsonObject]]
"""Makes the PeerInfo of every member, this node's included."""


class Advisories:
    """What one node publishes. `domain` is added to each event when there is one, `system` is the system account."""

    def __init__(self, runtime: Runtime, server_name: str, domain: str, system: Account) -> None:
        self._system = system
        self._runtime = runtime
        self._server_name = server_name
        self._domain = domain

    def stream(self, account: Account, action: str, name: str) -> None:
        """A stream was created, modified or deleted."""
        subject = f"$JS.EVENT.ADVISORY.STREAM.{_VERBS[action]}.{name}".encode()
        if account.has_interest(subject):
            account.publish(subject, encode(self._event("stream_action", {"stream": name, "action": action})))

    def led(self, account: Account, stream: str, consumers: Iterable[str], leader: str, replicas: Replicas) -> None:
        """This node begins to lead a stream with its consumers."""
        fields: JsonObject = {"stream": stream, "leader": leader}
        self._elected(account, f"STREAM.LEADER_ELECTED.{stream}", "stream_leader_elected", fields, replicas)
        for name in consumers:
            fields = {"stream": stream, "consumer": name, "leader": leader}
            subject = f"CONSUMER.LEADER_ELECTED.{stream}.{name}"
            self._elected(account, subject, "consumer_leader_elected", fields, replicas)

    def quorum_lost(self, account: Account, stream: str, consumers: Iterable[str], replicas: Replicas) -> None:
        """This node has led a stream and cannot reach most of its members any more."""
        self._elected(account, f"STREAM.QUORUM_LOST.{stream}", "stream_quorum_lost", {"stream": stream}, replicas)
        for name in consumers:
            fields: JsonObject = {"stream": stream, "consumer": name}
            subject = f"CONSUMER.QUORUM_LOST.{stream}.{name}"
            self._elected(account, subject, "consumer_quorum_lost", fields, replicas)

    def catalogue_led(self, leader: str, cluster: str, replicas: Replicas) -> None:
        """This node begins to lead the catalogue; `leader` is its peer id."""
        subject = f"{_ADVISORY}DOMAIN.LEADER_ELECTED".encode()
        if self._system.has_interest(subject):
            fields = {"leader": leader, "replicas": replicas(), "cluster": cluster}
            self._system.publish(subject, encode(self._event("domain_leader_elected", fields)))

    def limit_reached(self, dropped: int) -> None:
        """Requests that came over routes were dropped, because too many waited."""
        subject = f"{_ADVISORY}API.LIMIT_REACHED".encode()
        if self._system.has_interest(subject):
            fields: JsonObject = {"server": self._server_name, "dropped": dropped}
            self._system.publish(subject, encode(self._event("api_limit_reached", fields)))

    def _elected(self, account: Account, subject: str, kind: str, fields: JsonObject, replicas: Replicas) -> None:
        """Tell the account, and the system account which account it is about."""
        name = f"{_ADVISORY}{subject}".encode()
        for hearing, about in ((account, {}), (self._system, {"account": account.name})):
            if hearing.has_interest(name):
                event = self._event(kind, {**about, **fields, "replicas": replicas()})
                hearing.publish(name, encode(event))

    def audit(self, request: ApiRequest, response: bytes) -> None:
        """A request was answered."""
        account = request.account
        if not account.has_interest(_AUDIT):
            return
        fields: JsonObject = {
            "server": self._server_name,
            "client": client_of(request),
            "subject": request.subject.decode("utf-8", "replace"),
        }
        if request.body:
            fields["request"] = request.body.decode("utf-8", "replace")
        fields["response"] = response.decode()
        account.publish(_AUDIT, encode(self._event("api_audit", fields)))

    def transfer(self, account: Account, kind: str, name: str, fields: JsonObject) -> None:
        """A snapshot or a restore of a stream began or ended: `kind` is `snapshot_create` and the like."""
        subject = f"$JS.EVENT.ADVISORY.STREAM.{kind.upper()}.{name}".encode()
        if account.has_interest(subject):
            account.publish(subject, encode(self._event(kind, {"stream": name, **fields})))

    def _event(self, kind: str, fields: JsonObject) -> JsonObject:
        event: JsonObject = {
            "type": _TYPE + kind,
            "id": nuid(self._runtime.random),
            "timestamp": format_time(self._runtime.time_ns()),
            **fields,
        }
        if self._domain:
            event["domain"] = self._domain
        return event


def client_of(request: ApiRequest) -> JsonObject:
    """Who asks, as far as it is known: clients of other nodes by their account only."""
    client: JsonObject = {"acc": request.account.name}
    if request.origin is not None:
        origin, options = request.origin, request.origin.options
        known = {"id": origin.cid, "name": options.name, "lang": options.lang, "ver": options.version}
        client.update({key: value for key, value in known.items() if value})
    return client
