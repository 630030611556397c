"""`$JS.API.STREAM.…`: creating, changing, listing, purging and deleting streams.

Owns what these requests mean and the shape of the answers. Changes go through `JetStreamAccount` and `Stream.change`.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import BOOL, INT, STRING, UINT64, JsonObject, Struct
from nimsnats.jetstream.api.dispatch import ApiRequest, Body, Endpoint
from nimsnats.jetstream.config import REQUEST, StreamConfig, asks_for_unsupported
from nimsnats.jetstream.config_rules import invalid, name_required
from nimsnats.jetstream.info import detailed_info, stream_info
from nimsnats.jetstream.kinds import STREAM_PURGE
from nimsnats.jetstream.meta import StreamRecord
from nimsnats.jetstream.peers import STEP_DOWN
from nimsnats.protocol.subject import collide

if TYPE_CHECKING:
    from nimsnats.jetstream.account import JetStreamAccount
    from nimsnats.jetstream.leaders import Leaders
    from nimsnats.jetstream.serving import ServedStream

NAMES_LIMIT: Final = 1024
LIST_LIMIT: Final = 256

_NAMES: Final = Struct("JSApiStreamNamesRequest", {"offset": INT, "subject": STRING})
_LIST: Final = Struct("JSApiStreamListRequest", {"offset": INT, "subject": STRING})
_INFO: Final = Struct("JSApiStreamInfoRequest", {"offset": INT, "deleted_details": BOOL, "subjects_filter": STRING})
_PURGE: Final = Struct("JSApiStreamPurgeRequest", {"seq": UINT64, "filter": STRING, "keep": UINT64})
_PEER: Final = Struct("JSApiStreamRemovePeerRequest", {"peer": STRING})
_PAGE: Final[JsonObject] = {"total": 0, "offset": 0, "limit": 0}


class StreamApi:
    """The stream endpoints of one account."""

    def __init__(self, account: JetStreamAccount) -> None:
        self._account = account

    def endpoints(self) -> list[Endpoint]:
        """What to register with the dispatcher."""
        names: JsonObject = {**_PAGE, "streams": None}
        listed: JsonObject = {**_PAGE, "streams": []}
        return [
            Endpoint("STREAM.CREATE.*", "stream_create_response", self.create, request=REQUEST),
            Endpoint("STREAM.UPDATE.*", "stream_update_response", self.update, request=REQUEST),
            Endpoint("STREAM.NAMES", "stream_names_response", self.names, Body.OPTIONAL, _NAMES, names),
            Endpoint("STREAM.LIST", "stream_list_response", self.list, Body.OPTIONAL, _LIST, listed),
            Endpoint("STREAM.INFO.*", "stream_info_response", self.info, Body.OPTIONAL, _INFO, dict(_PAGE)),
            Endpoint("STREAM.DELETE.*", "stream_delete_response", self.delete, Body.EMPTY),
            Endpoint("STREAM.PURGE.*", "stream_purge_response", self.purge, Body.OPTIONAL, _PURGE, {"purged": 0}),
            Endpoint(
                "STREAM.LEADER.STEPDOWN.*", "stream_leader_stepdown_response", self.step_down, Body.OPTIONAL, STEP_DOWN
            ),
            Endpoint("STREAM.PEER.REMOVE.*", "stream_remove_peer_response", self.remove_peer, Body.REQUIRED, _PEER),
            Endpoint("STREAM.PEER.EVACUATE.*", "stream_evacuate_peer_response", self.remove_peer, Body.REQUIRED, _PEER),
            Endpoint("STREAM.CANCEL_MOVE.*", "stream_cancel_move_response", self.cancel_move, Body.OPTIONAL),
        ]

    async def create(self, request: ApiRequest) -> JsonObject:
        """`STREAM.CREATE.<stream>`."""
        config = asked_config(request.params, request.tokens[2])
        record = await self._account.create(config, pedantic=request.params.get("pedantic", False))
        return {**await self._account.engine.leaders.info(record, wait=True), "did_create": True}

    async def update(self, request: ApiRequest) -> JsonObject:
        """`STREAM.UPDATE.<stream>`."""
        if not request.params.get("name"):
            raise name_required()
        config = asked_config(request.params, request.tokens[2])
        record = await self._account.update(config, pedantic=request.params.get("pedantic", False))
        return await self._account.engine.leaders.info(record)

    def _matching(self, request: ApiRequest) -> list[StreamRecord]:
        wanted = request.params.get("subject", "").encode()
        return [
            record
            for record in self._account.records()
            if not wanted or any(collide(wanted, subject.encode()) for subject in record.config.get("subjects") or ())
        ]

    def names(self, request: ApiRequest) -> JsonObject:
        """`STREAM.NAMES`."""
        names = [record.name for record in self._matching(request)]
        offset = _offset(request, len(names))
        page = names[offset : offset + NAMES_LIMIT]
        return {"total": len(names), "offset": offset, "limit": NAMES_LIMIT, "streams": page or None}

    async def list(self, request: ApiRequest) -> JsonObject:
        """`STREAM.LIST`; streams whose leader does not answer are named as `missing`."""
        await self._account.engine.broker.slices.rest()  # a page is milliseconds: many at a time would add up
        records = self._matching(request)
        offset = _offset(request, len(records))
        page = records[offset : offset + LIST_LIMIT]
        found = await self._account.engine.leaders.infos(page)
        body: JsonObject = {"total": len(records), "offset": offset, "limit": LIST_LIMIT}
        body["streams"] = [info for info in found if info is not None]
        missing = [record.name for record, info in zip(page, found, strict=True) if info is None]
        return {**body, "missing": missing} if missing else body

    def info(self, request: ApiRequest) -> JsonObject | Coroutine[Any, Any, JsonObject]:
        """`STREAM.INFO.<stream>`."""
        served = self._account.served(request.tokens[2])
        stream, params = served.stream, request.params
        if stream.unsettled or params.get("deleted_details") or params.get("subjects_filter"):
            return self._detailed(served, params)
        return self._placed(served, {**_PAGE, **stream_info(stream)})

    async def _detailed(self, served: ServedStream, params: JsonObject) -> JsonObject:
        await served.stream.settled_down()
        return self._placed(served, await detailed_info(served.stream, params))

    def _placed(self, served: ServedStream, body: JsonObject) -> JsonObject:
        moment = body.pop("ts")
        return {**body, "cluster": self._account.engine.leaders.cluster_info(served), "ts": moment}

    async def delete(self, request: ApiRequest) -> JsonObject:
        """`STREAM.DELETE.<stream>`."""
        await self._account.delete(request.tokens[2])
        return {"success": True}

    async def purge(self, request: ApiRequest) -> JsonObject:
        """`STREAM.PURGE.<stream>`."""
        stream = self._account.stream(request.tokens[2])
        params = request.params
        if stream.config.sealed:
            raise errors.STREAM_SEALED()
        if stream.config.deny_purge:
            raise errors.STREAM_PURGE_FAILED(err="stream purge not permitted")
        if params.get("seq") and params.get("keep"):
            raise errors.BAD_REQUEST()
        fields = {
            "filter": params.get("filter", "").encode(),
            "seq": params.get("seq", 0),
            "keep": params.get("keep", 0),
        }
        return {"success": True, "purged": await stream.change(STREAM_PURGE, fields)}

    async def step_down(self, request: ApiRequest) -> JsonObject:
        """`STREAM.LEADER.STEPDOWN.<stream>`."""
        leaders = self._clustered()
        stream = self._account.stream(request.tokens[3])
        stream.consumers.write_down()
        return await leaders.step_down(stream.group, request.params.get("placement"))

    async def remove_peer(self, request: ApiRequest) -> JsonObject:
        """`STREAM.PEER.REMOVE.<stream>` and `PEER.EVACUATE`: another node takes a replica over."""
        self._clustered()
        peer = request.params.get("peer", "")
        record = self._account.record(request.tokens[3])
        if not peer:
            raise errors.BAD_REQUEST()
        await self._account.evict(record.name, peer)
        return {"success": True}

    def cancel_move(self, request: ApiRequest) -> JsonObject:
        """`STREAM.CANCEL_MOVE.<stream>`: a stream that moves is soon there, and moves back when it is told to."""
        self._clustered()
        self._account.record(request.tokens[2])
        raise errors.STREAM_RECONFIGURE_NOT_IN_PROGRESS()

    def _clustered(self) -> Leaders:
        """Refuse operations on replicas where there is one node. Raises ApiError 10010."""
        if not self._account.engine.peers.several:
            raise errors.CLUSTER_REQUIRED()
        return self._account.engine.leaders


def asked_config(params: JsonObject, name: str) -> StreamConfig:
    """The configuration that a request about the stream `name` asks for. Raises ApiError for what this server does not
    know."""
    if params.get("name", "") != name:
        raise errors.STREAM_MISMATCH()
    if "/" in name or "\\" in name:
        raise errors.STREAM_NAME_CONTAINS_PATH_SEPARATORS()
    complaint = asks_for_unsupported(params)
    if complaint is not None:
        raise invalid(complaint)
    return StreamConfig.from_request(params)


def _offset(request: ApiRequest, total: int) -> int:
    return min(max(request.params.get("offset", 0), 0), total)
