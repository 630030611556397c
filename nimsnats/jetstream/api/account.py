"""`$JS.API.INFO`, and what accounts without JetStream are told.

Owns AccountInfo. It changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import STRING, JsonObject, Struct
from nimsnats.jetstream.api.dispatch import ApiDispatcher, ApiRequest, Body, Endpoint
from nimsnats.version import API_LEVEL

if TYPE_CHECKING:
    from nimsnats.jetstream.account import JetStreamAccount
    from nimsnats.jetstream.engine import JetStream

_REMOVE: Final = Struct("JSApiMetaServerRemoveRequest", {"peer": STRING, "peer_id": STRING})
_LIMITS: Final[JsonObject] = {
    "max_memory": -1,
    "max_storage": -1,
    "max_streams": -1,
    "max_consumers": -1,
    "max_ack_pending": -1,
    "memory_max_stream_bytes": -1,
    "storage_max_stream_bytes": -1,
    "max_bytes_required": False,
}


class AccountApi:
    """The account endpoints of one account."""

    def __init__(self, account: JetStreamAccount, dispatcher: ApiDispatcher) -> None:
        self._account = account
        self._dispatcher = dispatcher

    def endpoints(self) -> list[Endpoint]:
        """What to register with the dispatcher."""
        return [Endpoint("INFO", "account_info_response", self.info, Body.OPTIONAL)]

    def info(self, request: ApiRequest) -> JsonObject:
        """`INFO`."""
        account = self._account
        memory, file = account.usage()
        reserved_memory, reserved_file = account.reserved()
        body: JsonObject = {
            "memory": memory,
            "storage": file,
            "reserved_memory": reserved_memory,
            "reserved_storage": reserved_file,
            "streams": len(account.records()),
            "consumers": sum(len(stream.consumers) for stream in account),
            "limits": dict(_LIMITS),
        }
        if account.engine.options.domain:
            body["domain"] = account.engine.options.domain
        counters = {"level": API_LEVEL, "total": self._dispatcher.total - 1, "errors": self._dispatcher.failed}
        body["api"] = counters
        return body


def system_endpoints(engine: JetStream) -> list[Endpoint]:
    """What the system account may do: purge an account. It has no JetStream, there is no cluster to administer."""

    async def purge(request: ApiRequest) -> JsonObject:
        """`ACCOUNT.PURGE.<account>`: delete every stream of an account, whether it exists or not."""
        await engine.purge_account(request.tokens[2])
        return {"initiated": True}

    async def step_down(request: ApiRequest) -> JsonObject:
        """`META.LEADER.STEPDOWN`: another node leads the catalogue."""
        if engine.cluster is None or not engine.cluster.several:
            raise errors.CLUSTER_REQUIRED()
        return {"success": await engine.cluster.step_down()}

    async def remove(request: ApiRequest) -> JsonObject:
        """`SERVER.REMOVE`: a node that does not come back leaves the cluster."""
        if engine.cluster is None or not engine.cluster.several:
            raise errors.CLUSTER_REQUIRED()
        await engine.cluster.remove(request.params.get("peer", ""))
        return {"success": True}

    return [
        Endpoint("ACCOUNT.PURGE.*", "account_purge_response", purge, Body.OPTIONAL),
        *disabled_endpoints(),
        Endpoint("META.LEADER.STEPDOWN", "meta_leader_stepdown_response", step_down, Body.OPTIONAL),
        Endpoint("META.RESCUE", "meta_rescue_response", _clustered, Body.OPTIONAL),
        Endpoint("SERVER.REMOVE", "meta_server_remove_response", remove, Body.OPTIONAL, _REMOVE),
        Endpoint("SERVER.EVACUATE", "meta_server_evacuate_response", _clustered, Body.OPTIONAL),
        Endpoint("ACCOUNT.STREAM.MOVE.*.*", "stream_update_response", _clustered, Body.OPTIONAL),
        Endpoint("ACCOUNT.STREAM.CANCEL_MOVE.*.*", "stream_cancel_move_response", _clustered, Body.OPTIONAL),
    ]


def disabled_endpoints() -> list[Endpoint]:
    """What an account without JetStream is told."""
    return [
        Endpoint("INFO", "account_info_response", _not_enabled, Body.OPTIONAL),
        Endpoint("STREAM.>", "system_response", _not_enabled, Body.OPTIONAL),
        Endpoint("CONSUMER.>", "system_response", _not_enabled, Body.OPTIONAL),
    ]


def _not_enabled(request: ApiRequest) -> JsonObject:
    raise errors.NOT_ENABLED_FOR_ACCOUNT()


def _clustered(request: ApiRequest) -> JsonObject:
    raise errors.CLUSTER_REQUIRED()
