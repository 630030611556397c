"""Events about streams and about the API itself, published only when somebody listens.

Owns their shape. Events about consumers are `consumer/advisory.py`'s.
"""

from __future__ import annotations

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
_AUDIT: Final = b"$JS.EVENT.ADVISORY.API"


class Advisories:
    """What one node publishes. `domain` is added to each event when there is one."""

    def __init__(self, runtime: Runtime, server_name: str, domain: str) -> None:
        self._runtime = runtime
        self._server_name = server_name
        self._domain = domain

    def stream(self, account: Account, action: str, name: str) -> None:
        """A stream was created, modified or deleted."""
        subject = f"$JS.EVENT.ADVISORY.STREAM.{_VERBS[action]}.{name}".encode()
        if account.has_interest(subject):
            account.publish(subject, encode(self._event("stream_action", {"stream": name, "action": action})))

    def audit(self, request: ApiRequest, response: bytes) -> None:
        """A request was answered."""
        account = request.account
        if not account.has_interest(_AUDIT):
            return
        fields: JsonObject = {
            "server": self._server_name,
            "client": {"acc": account.name},
            "subject": request.subject.decode("utf-8", "replace"),
        }
        origin = request.origin
        if origin is not None:
            options = origin.options
            known = {"id": origin.cid, "name": options.name, "lang": options.lang, "ver": options.version}
            fields["client"].update({key: value for key, value in known.items() if value})
        if request.body:
            fields["request"] = request.body.decode("utf-8", "replace")
        fields["response"] = response.decode()
        account.publish(_AUDIT, encode(self._event("api_audit", fields)))

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
