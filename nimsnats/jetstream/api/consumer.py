"""`$JS.API.CONSUMER.…`: one handler for each subject.

Owns what a request means and the shape of its answer. It finds a stream's consumers through the function that it is
given, checks configurations with `consumer.rules`, and changes state only through `ConsumerSet`'s proposals.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from nimsnats.identity import node_hash, nuid
from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import INT, STRING, TIME, UINT64, JsonObject, Struct
from nimsnats.jetstream.api.dispatch import ApiRequest, Body, Endpoint, level_too_high
from nimsnats.jetstream.clock import FARTHEST, ZERO_TIME, format_time, parse_time
from nimsnats.jetstream.consumer.config import CREATE_REQUEST, ConsumerConfig
from nimsnats.jetstream.consumer.consumer import Consumer
from nimsnats.jetstream.consumer.pull import PullSide
from nimsnats.jetstream.consumer.push import PushSide
from nimsnats.jetstream.consumer.request import API_LEVEL as LEVEL_STATUS
from nimsnats.jetstream.consumer.request import PUSH_BASED
from nimsnats.jetstream.consumer.rules import GROUP_NAME, ServerLimits, check, check_update, with_defaults
from nimsnats.jetstream.consumer.set import ConsumerSet
from nimsnats.jetstream.peers import STEP_DOWN, named
from nimsnats.raft.machine import Group
from nimsnats.runtime import Runtime

NAMES_LIMIT: Final = 1024
LIST_LIMIT: Final = 256

_PAGE: Final = Struct("JSApiConsumersRequest", {"offset": INT})
_PAUSE: Final = Struct("JSApiConsumerPauseRequest", {"pause_until": TIME})
_PEER: Final = Struct("JSApiConsumerRemovePeerRequest", {"peer": STRING})
_RESET: Final = Struct("JSApiConsumerResetRequest", {"seq": UINT64}, strict=False)
_UNPIN: Final = Struct("JSApiConsumerUnpinRequest", {"group": STRING}, strict=False)


class ConsumerApi:
    """The consumer endpoints of one account.

    `find` gives the consumers of a stream by its name, `group` its group (ApiError 10010 where there is but one node),
    `step_down` lets another member lead a group.
    """

    def __init__(
        self,
        find: Callable[[str], ConsumerSet | None],
        limits: ServerLimits,
        runtime: Runtime,
        group: Callable[[str], Group],
        step_down: Callable[[Group, JsonObject | None], Awaitable[JsonObject]],
    ) -> None:
        self._find = find
        self._limits = limits
        self._runtime = runtime
        self._group = group
        self._step_down = step_down

    def endpoints(self) -> list[Endpoint]:
        """What to register with the dispatcher."""
        paged: JsonObject = {"total": 0, "offset": 0, "limit": 0, "consumers": []}
        return [
            Endpoint("CONSUMER.CREATE.*", "consumer_create_response", self.create, request=CREATE_REQUEST),
            Endpoint("CONSUMER.CREATE.*.*", "consumer_create_response", self.create, request=CREATE_REQUEST),
            Endpoint("CONSUMER.CREATE.*.*.>", "consumer_create_response", self.create, request=CREATE_REQUEST),
            Endpoint(
                "CONSUMER.DURABLE.CREATE.*.*", "consumer_create_response", self.create_durable, request=CREATE_REQUEST
            ),
            Endpoint("CONSUMER.INFO.*.*", "consumer_info_response", self.info, Body.EMPTY),
            Endpoint("CONSUMER.NAMES.*", "consumer_names_response", self.names, Body.OPTIONAL, _PAGE, paged),
            Endpoint("CONSUMER.LIST.*", "consumer_list_response", self.list, Body.OPTIONAL, _PAGE, paged),
            Endpoint("CONSUMER.DELETE.*.*", "consumer_delete_response", self.delete, Body.EMPTY),
            Endpoint("CONSUMER.PAUSE.*.*", "consumer_pause_response", self.pause, Body.OPTIONAL, _PAUSE, _NOT_PAUSED),
            Endpoint(
                "CONSUMER.RESET.*.*", "consumer_reset_response", self.reset, Body.PARSED, _RESET, {"reset_seq": 0}
            ),
            Endpoint("CONSUMER.UNPIN.*.*", "consumer_unpin_response", self.unpin, Body.PARSED, _UNPIN),
            Endpoint("CONSUMER.MSG.NEXT.*.*", "", self.next_message, Body.RAW),
            Endpoint(
                "CONSUMER.LEADER.STEPDOWN.*.*",
                "consumer_leader_stepdown_response",
                self.step_down,
                Body.OPTIONAL,
                STEP_DOWN,
            ),
            Endpoint(
                "CONSUMER.PEER.REMOVE.*.*", "consumer_remove_peer_response", self.remove_peer, Body.REQUIRED, _PEER
            ),
            Endpoint(
                "CONSUMER.PEER.EVACUATE.*.*", "consumer_evacuate_peer_response", self.remove_peer, Body.REQUIRED, _PEER
            ),
        ]

    # --- create

    async def create(self, request: ApiRequest) -> JsonObject:
        """`CREATE.<stream>[.<consumer>[.<filter…>]]`."""
        params, tokens = request.params, request.tokens
        stream = tokens[2]
        if params.get("stream_name", "") != stream:
            raise errors.STREAM_MISMATCH()
        body: JsonObject = dict(params.get("config", {}))
        if len(tokens) == 3:
            if body.get("durable_name"):
                raise errors.CONSUMER_EPHEMERAL_WITH_DURABLE_NAME()
        else:
            self._apply_subject(body, tokens)
        return await self._create(stream, body, params)

    def _apply_subject(self, body: JsonObject, tokens: list[str]) -> None:
        """Name and filter out of the subject."""
        name = tokens[3]
        _check_path(name)
        if body.get("durable_name") and body["durable_name"] != name:
            raise errors.CONSUMER_DURABLE_NAME_NOT_MATCH_SUBJECT()
        body["name"] = name
        if len(tokens) > 4:
            if body.get("filter_subjects"):
                raise errors.CONSUMER_MULTIPLE_FILTERS_NOT_ALLOWED()
            if body.get("filter_subject", "") != ".".join(tokens[4:]):
                raise errors.CONSUMER_CREATE_FILTER_SUBJECT_MISMATCH()

    async def create_durable(self, request: ApiRequest) -> JsonObject:
        """`DURABLE.CREATE.<stream>.<consumer>`, the older form for durables."""
        params, (stream, name) = request.params, request.tokens[3:]
        if params.get("stream_name", "") != stream:
            raise errors.STREAM_MISMATCH()
        body: JsonObject = dict(params.get("config", {}))
        _check_path(name)
        if not body.get("durable_name"):
            raise errors.CONSUMER_DURABLE_NAME_NOT_SET()
        if body["durable_name"] != name:
            raise errors.CONSUMER_DURABLE_NAME_NOT_MATCH_SUBJECT()
        return await self._create(stream, body, params)

    async def _create(self, stream: str, body: JsonObject, params: JsonObject) -> JsonObject:
        consumers = self._consumers(stream)
        traits = consumers.traits()
        config = ConsumerConfig.from_json(body)
        config = with_defaults(config, traits, self._limits, bool(params.get("pedantic", False)))
        check(config, traits, self._limits)
        generated = not (config.durable_name or config.name)
        name = config.durable_name or config.name or self._draw_name(consumers)
        if config.durable and not config.name:
            config.name = name
        existing = consumers.get(name)
        action = str(params.get("action", ""))
        if existing is not None and action != "create":
            side = existing.side
            check_update(existing.config, config, bound=isinstance(side, PushSide) and side.bound)
        return await consumers.propose_create(config, name=name, generated=generated, action=action)

    def _draw_name(self, consumers: ConsumerSet) -> str:
        while True:
            name = node_hash(nuid(self._runtime.random))
            if consumers.get(name) is None:
                return name

    # --- look

    def info(self, request: ApiRequest) -> JsonObject | Awaitable[JsonObject]:
        """`INFO.<stream>.<consumer>`."""
        consumer = self._consumer(request.tokens[2], request.tokens[3])
        counted = consumer.owner.counted(consumer)
        return consumer.info() if counted is None else _once(counted, consumer.info)

    def names(self, request: ApiRequest) -> JsonObject:
        """`NAMES.<stream>`: names, a page at a time."""
        names = self._consumers(request.tokens[2]).names()
        offset = min(max(request.params.get("offset", 0), 0), len(names))
        page = names[offset : offset + NAMES_LIMIT]
        return {"total": len(names), "offset": offset, "limit": NAMES_LIMIT, "consumers": page}

    async def list(self, request: ApiRequest) -> JsonObject:
        """`LIST.<stream>`: infos, a page at a time."""
        consumers = self._consumers(request.tokens[2])
        names = consumers.names()
        offset = min(max(request.params.get("offset", 0), 0), len(names))
        found = [consumers.get(name) for name in names[offset : offset + LIST_LIMIT]]
        page: list[JsonObject] = []
        for consumer in found:
            if consumer is not None:
                if (counted := consumers.counted(consumer)) is not None:
                    await counted
                page.append(consumer.info(listed=True))
        return {"total": len(names), "offset": offset, "limit": LIST_LIMIT, "consumers": page}

    # --- change

    async def delete(self, request: ApiRequest) -> JsonObject:
        """`DELETE.<stream>.<consumer>`."""
        stream, name = request.tokens[2:]
        consumer = self._consumer(stream, name)
        await consumer.owner.propose_delete(name)
        return {"success": True}

    async def pause(self, request: ApiRequest) -> JsonObject:
        """`PAUSE.<stream>.<consumer>` until a time; none, or one that has passed, resumes."""
        stream, name = request.tokens[2:]
        consumer = self._consumer(stream, name)
        text = request.params.get("pause_until", ZERO_TIME)
        until = parse_time(text)
        info = await consumer.owner.propose_pause(name, until if until > self._runtime.time_ns() else 0)
        if not info.get("paused"):
            return {"paused": False, "pause_until": text if abs(until) == FARTHEST else format_time(until)}
        return {"paused": True, "pause_until": format_time(until), "pause_remaining": info["pause_remaining"]}

    async def reset(self, request: ApiRequest) -> JsonObject | None:
        """`RESET.<stream>.<consumer>`: deliver again from the acknowledgement floor, or from a sequence."""
        consumers = self._find(request.tokens[2])
        consumer = consumers.get(request.tokens[3]) if consumers is not None else None
        if consumers is None or consumer is None:
            return None
        seq = int(request.params.get("seq", 0))
        start = seq or consumer.state.floor_seq + 1
        if seq:
            _check_reset(consumer, consumers, seq)
        return {**await consumers.propose_reset(consumer.name, start), "reset_seq": start}

    def unpin(self, request: ApiRequest) -> JsonObject:
        """`UNPIN.<stream>.<consumer>`: the pinned client of a priority group loses its place."""
        group = request.params.get("group", "")
        if not request.body:
            raise errors.INVALID_JSON(err="unexpected end of JSON input")
        if not group:
            raise errors.INVALID_JSON(err="consumer group not specified")
        if not GROUP_NAME.fullmatch(group):
            raise errors.CONSUMER_INVALID_GROUP_NAME()
        consumer = self._consumer(request.tokens[2], request.tokens[3])
        if group not in consumer.config.priority_groups:
            raise errors.CONSUMER_INVALID_PRIORITY_GROUP()
        if isinstance(consumer.side, PullSide):
            consumer.side.groups.unpin("admin")
        return {}

    # --- replicas

    async def step_down(self, request: ApiRequest) -> JsonObject:
        """`LEADER.STEPDOWN.<stream>.<consumer>`: a consumer is led with its stream, so the stream gets a new leader."""
        stream, name = request.tokens[3:]
        group = self._group(stream)
        self._consumer(stream, name).owner.write_down()
        return await self._step_down(group, request.params.get("placement"))

    def remove_peer(self, request: ApiRequest) -> JsonObject:
        """`PEER.REMOVE.<stream>.<consumer>` and `PEER.EVACUATE`: refused, as a consumer is where its stream is."""
        stream, name = request.tokens[3:]
        group = self._group(stream)
        self._consumer(stream, name)
        peer = request.params.get("peer", "")
        if not peer:
            raise errors.BAD_REQUEST()
        if not any(named(member, peer) for member in group.members):
            raise errors.CLUSTER_PEER_NOT_MEMBER()
        raise errors.PEER_REMAP()

    # --- messages

    def next_message(self, request: ApiRequest) -> bool | None:
        """`MSG.NEXT.<stream>.<consumer>`: a pull request. False (no responders) when there is no such consumer."""
        consumers = self._find(request.tokens[3])
        consumer = consumers.get(request.tokens[4]) if consumers is not None else None
        if consumer is None or consumers is None or consumer.side is None:
            return False
        if not request.reply:
            return None
        if request.headers and level_too_high(request.headers):
            request.account.publish(request.reply, headers=LEVEL_STATUS)
        elif isinstance(consumer.side, PullSide):
            consumer.side.request(request.body, request.reply, consumers.now())
        else:
            request.account.publish(request.reply, headers=PUSH_BASED)
        return None

    # --- look-up

    def _consumers(self, stream: str) -> ConsumerSet:
        consumers = self._find(stream)
        if consumers is None:
            raise errors.STREAM_NOT_FOUND()
        return consumers

    def _consumer(self, stream: str, name: str) -> Consumer:
        consumer = self._consumers(stream).get(name)
        if consumer is None:
            raise errors.CONSUMER_NOT_FOUND()
        return consumer


async def _once(counted: Awaitable[None], told: Callable[[], JsonObject]) -> JsonObject:
    await counted
    return told()


_NOT_PAUSED: Final[JsonObject] = {"paused": False, "pause_until": ZERO_TIME}


def _check_path(name: str) -> None:
    if "/" in name or "\\" in name:
        raise errors.CONSUMER_NAME_CONTAINS_PATH_SEPARATORS()


def _check_reset(consumer: Consumer, consumers: ConsumerSet, seq: int) -> None:
    config = consumer.config
    if config.deliver_policy in ("last", "new", "last_per_subject"):
        raise errors.CONSUMER_INVALID_RESET(err="not allowed")
    if config.deliver_policy == "by_start_sequence" and seq < config.opt_start_seq:
        raise errors.CONSUMER_INVALID_RESET(err="below start seq")
    if config.deliver_policy == "by_start_time":
        first = consumers.source.seq_at_time(parse_time(config.opt_start_time))
        if seq < first:
            raise errors.CONSUMER_INVALID_RESET(err="below start time")
