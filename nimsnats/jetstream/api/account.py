"""`$JS.API.INFO`, and what accounts without JetStream are told.

Owns AccountInfo. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import STRING, STRINGS, JsonObject, Struct
from nimsnats.jetstream.api.dispatch import ApiDispatcher, ApiRequest, Body, Endpoint
from nimsnats.jetstream.peers import STEP_DOWN, named
from nimsnats.version import API_LEVEL

if TYPE_CHECKING:
    from nimsnats.jetstream.account import JetStreamAccount
    from nimsnats.jetstream.cluster import Cluster
    from nimsnats.jetstream.engine import JetStream

_REMOVE: Final = Struct("JSApiMetaServerRemoveRequest", {"peer": STRING, "peer_id": STRING})
_MOVE: Final = Struct(
    "JSApiMetaServerStreamMoveRequest", {"server": STRING, "cluster": STRING, "domain": STRING, "tags": STRINGS}
)
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

    def info(self, request: ApiRequest) -> JsonObject | Awaitable[JsonObject]:
        """`INFO`."""
        account = self._account
        if account.engine.peers.several:
            return self._info_of_all(self._dispatcher.total - 1)
        used = [*account.usage(), account.consumers()]
        return self._info(used, self._dispatcher.total - 1)

    async def _info_of_all(self, total: int) -> JsonObject:
        """With what all nodes hold."""
        return self._info(await self._account.engine.leaders.usage(self._account.name), total)

    def _info(self, used: list[int], total: int) -> JsonObject:
        account = self._account
        census = account.engine.meta.census.account(account.name)
        memory, file, consumers = used
        body: JsonObject = {
            "memory": memory,
            "storage": file,
            "reserved_memory": census.reserved["memory"],
            "reserved_storage": census.reserved["file"],
            "streams": len(census.records),
            "consumers": consumers,
            "limits": dict(_LIMITS),
        }
        if account.engine.options.domain:
            body["domain"] = account.engine.options.domain
        return {**body, "api": {"level": API_LEVEL, "total": total, "errors": self._dispatcher.failed}}


def system_endpoints(engine: JetStream) -> list[Endpoint]:
    """What the system account may do: purge an account, administer the cluster. It has no JetStream of its own."""

    async def purge(request: ApiRequest) -> JsonObject:
        """`ACCOUNT.PURGE.<account>`: delete every stream of an account, whether it exists or not."""
        await engine.purge_account(request.tokens[2])
        return {"initiated": True}

    def cluster() -> Cluster:
        if engine.cluster is None or not engine.cluster.several:
            raise errors.CLUSTER_REQUIRED()
        return engine.cluster

    async def step_down(request: ApiRequest) -> JsonObject:
        """`META.LEADER.STEPDOWN`: another node leads the catalogue."""
        return await engine.leaders.step_down(cluster().group, request.params.get("placement"))

    async def remove(request: ApiRequest) -> JsonObject:
        """`SERVER.REMOVE`: a node that does not come back leaves the cluster."""
        await cluster().remove(request.params.get("peer") or request.params.get("peer_id", ""))
        return {"success": True}

    async def move(request: ApiRequest) -> JsonObject:
        """`ACCOUNT.STREAM.MOVE.<account>.<stream>`: a stream leaves a node."""
        group = cluster().group
        account = engine.accounts.get(request.tokens[3])
        if account is None:
            raise errors.NO_ACCOUNT()
        record = account.record(request.tokens[4])
        server = request.params.get("server", "")
        if not any(named(member, server) for member in group.members):
            raise errors.CLUSTER_SERVER_NOT_MEMBER()
        await account.evict(record.name, server)
        return await engine.leaders.info(record)

    def cancel_move(request: ApiRequest) -> JsonObject:
        """`ACCOUNT.STREAM.CANCEL_MOVE.<account>.<stream>`: as `STREAM.CANCEL_MOVE`."""
        cluster()
        account = engine.accounts.get(request.tokens[3])
        if account is None:
            raise errors.NO_ACCOUNT()
        account.record(request.tokens[4])
        raise errors.STREAM_RECONFIGURE_NOT_IN_PROGRESS()

    def unsupported(request: ApiRequest) -> JsonObject:
        """What this server does not do: evacuate a whole node (it does so when it stops), rescue a cluster."""
        cluster()
        raise errors.CLUSTER_UNSUPPORTED_FEATURE()

    return [
        Endpoint("ACCOUNT.PURGE.*", "account_purge_response", purge, Body.OPTIONAL),
        *disabled_endpoints(),
        Endpoint("META.LEADER.STEPDOWN", "meta_leader_stepdown_response", step_down, Body.OPTIONAL, STEP_DOWN),
        Endpoint("META.RESCUE", "meta_rescue_response", unsupported, Body.OPTIONAL),
        Endpoint("SERVER.REMOVE", "meta_server_remove_response", remove, Body.REQUIRED, _REMOVE),
        Endpoint("SERVER.EVACUATE", "meta_server_evacuate_response", unsupported, Body.OPTIONAL),
        Endpoint("ACCOUNT.STREAM.MOVE.*.*", "stream_update_response", move, Body.REQUIRED, _MOVE),
        Endpoint("ACCOUNT.STREAM.CANCEL_MOVE.*.*", "stream_cancel_move_response", cancel_move, Body.OPTIONAL),
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
