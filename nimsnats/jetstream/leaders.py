"""Who answers what: requests about the catalogue go to its leader, those about a stream to the stream's.

Owns the way of API requests between nodes, questions to a stream's leader, and what is told about leaders and replicas.
Any node takes any request of its clients; the leader answers them directly, through its own account.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import JsonObject
from nimsnats.jetstream.body import fields, headed, stored_config, text
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.info import stream_info
from nimsnats.jetstream.mail import Mail, Unreachable
from nimsnats.raft.machine import Group, NotLeader, TransferFailed
from nimsnats.raft.transport import node_of

if TYPE_CHECKING:
    from nimsnats.jetstream.api.dispatch import ApiRequest
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.jetstream.meta import StreamRecord
    from nimsnats.jetstream.serving import ServedStream

_PATIENCE: Final = 5.0
"""Seconds until a stream without a leader is given up."""
_SETTLE: Final = 2.0
"""Seconds that an answer waits for all replicas to be there; clients wait for five."""
_ELECTION: Final = 3.0
"""Seconds that a request waits for somebody to lead: an election takes less, and clients wait longer."""
_SHORT: Final = 0.5
"""Seconds that a node has to tell what an account uses there, or what it knows of a group."""
_AGAIN: Final = 0.05
_SOON: Final = 0.005
"""Seconds until one looks again for who leads, and the same for the first time: a new stream has a leader soon."""
_MOST_HOPS: Final = 4
_CATALOGUE: Final = frozenset({"CREATE", "UPDATE", "DELETE", "NAMES", "LIST", "PEER", "RESTORE"})
"""Requests about streams that only the leader of the catalogue answers: it alone knows at once what is gone."""
_NOT_AVAIL: Final = 10008
_NOT_LEADER: Final = 10009


def stream_of(tokens: Sequence[str]) -> str:
    """The stream that a request is about; empty when it is about the catalogue."""
    if len(tokens) < 3 or tokens[0] not in ("STREAM", "CONSUMER"):
        return ""
    if tokens[0] == "STREAM":
        if tokens[1] in _CATALOGUE:
            return ""
        return tokens[3] if tokens[1] in ("MSG", "LEADER") and len(tokens) > 3 else tokens[2]
    return tokens[3] if tokens[1] in ("DURABLE", "LEADER", "PEER") and len(tokens) > 3 else tokens[2]


class Leaders:
    """See the module. `mail` is None on a server that never has peers: then everything is answered here."""

    def __init__(self, engine: JetStream, mail: Mail | None) -> None:
        self._engine = engine
        self._mail = mail
        self._questions: dict[str, Callable[[ServedStream, Any], Any]] = {
            "check": self._check,
            "settled": self._settled,
            "info": self._info,
            "members": lambda served, _: list(served.stream.group.attached),
        }
        if mail is not None:
            mail.listen("api", self._on_api)
            mail.listen("stream", self._on_question)
            mail.listen("usage", lambda sender, account: self._usage(text(account)))

    # API requests

    def forward(self, request: ApiRequest) -> bool | Awaitable[bool]:
        """Whether another node answers a request, to which it was sent; an awaitable of that while nobody leads. Raises
        ApiError when nobody can answer."""
        cluster = self._engine.cluster
        if cluster is None or not cluster.several:
            return False
        try:
            return self._elsewhere(request)
        except ApiError as error:
            if error.err_code != _NOT_AVAIL or request.hops >= _MOST_HOPS:
                raise
        return self._once_led(request)

    async def _once_led(self, request: ApiRequest) -> bool:
        """`forward` for a request in the time of an election, or while this node joins a cluster: it waits."""
        runtime = self._engine.runtime
        deadline = runtime.monotonic() + _ELECTION
        while True:
            await runtime.sleep(_AGAIN)
            try:
                return self._elsewhere(request)
            except ApiError as error:
                if error.err_code != _NOT_AVAIL or runtime.monotonic() > deadline:
                    raise

    def _elsewhere(self, request: ApiRequest) -> bool:
        """`forward` as things are now. Raises ApiError, 10008 while nobody leads."""
        cluster = self._engine.cluster
        assert cluster is not None
        if cluster.joining or request.hops >= _MOST_HOPS:
            raise errors.CLUSTER_NOT_AVAIL()
        name = stream_of(request.tokens)
        if not name:
            if request.tokens == ["INFO"]:
                return False
            return self._to_catalogue(request)
        record = self._engine.meta.streams.get((request.account.name, name))
        if record is None:
            return self._to_catalogue(request)  # it may know more than we have heard so far
        served = self._engine.served(record)
        if served is not None and served.stream.leading:
            return False
        if self.offline(record):
            raise errors.CONSUMER_OFFLINE() if _about_consumer(request.tokens) else errors.STREAM_OFFLINE()
        for node in self._candidates(record, served):
            if self._send(node, request):
                return True
        raise errors.CLUSTER_NOT_AVAIL()

    def leader(self, record: StreamRecord) -> str:
        """The node that leads a stream, as far as this node knows without asking; empty when it does not."""
        served = self._engine.served(record)
        return served.stream.group.leader if served is not None else ""

    def offline(self, record: StreamRecord) -> bool:
        """Whether every node that holds a stream is lost: nobody can answer for it, and it is begun nowhere else."""
        host = self._engine.host
        return bool(record.members) and all(host.is_lost(member) for member in record.members)

    def _to_catalogue(self, request: ApiRequest) -> bool:
        group = self._engine.meta.group
        if group.leading:
            return False
        if not group.leader or not self._send(group.leader, request):
            raise errors.CLUSTER_NOT_AVAIL()
        return True

    def _send(self, node: str, request: ApiRequest) -> bool:
        assert self._mail is not None
        body = [
            request.account.name,
            request.subject,
            request.reply,
            request.headers,
            request.body,
            request.hops + 1,
        ]
        return self._mail.tell(node, "api", body)

    def _on_api(self, sender: str, body: Any) -> None:
        account, subject, reply, headers, payload, hops = fields(body, str, bytes, bytes, bytes, bytes, int)
        dispatcher = self._engine.dispatcher(account)
        if dispatcher is not None:
            dispatcher.take(subject, reply, headers, payload, hops)

    def _candidates(self, record: StreamRecord, served: ServedStream | None) -> list[str]:
        """Nodes that lead a stream or may know who does."""
        if served is not None and self._engine.holds(record):
            leader = served.stream.group.leader
            return [leader] if leader and leader != node_of(self._engine.host.member) else []
        return [node_of(member) for member in record.members if member != self._engine.host.member]

    # Questions to a stream's leader

    async def ask(self, record: StreamRecord, what: str, body: Any, patience: float = _PATIENCE) -> Any:
        """Ask the leader of a stream, wherever it is. Raises ApiError."""
        loop = self._engine.runtime
        deadline, pause = loop.monotonic() + patience, _SOON
        while True:
            served = self._engine.served(record)
            if served is not None and served.stream.leading:
                answer = self._questions[what](served, body)
                return await answer if asyncio.iscoroutine(answer) else answer
            if self._mail is None:
                raise errors.CLUSTER_NOT_AVAIL()
            if self.offline(record):
                raise errors.STREAM_OFFLINE()
            leader = served.stream.group.leader if served is not None else ""
            for node in dict.fromkeys([leader, *map(node_of, record.members)]):
                if node in ("", node_of(self._engine.host.member)):
                    continue
                try:
                    question = [record.account, record.name, record.group, what, body]
                    return await self._mail.ask(node, "stream", question, patience)
                except Unreachable:
                    continue
                except ApiError as error:
                    if error.err_code != _NOT_LEADER:
                        raise
            if loop.monotonic() > deadline:
                raise errors.CLUSTER_NOT_AVAIL()
            await loop.sleep(pause)
            pause = min(2 * pause, _AGAIN)

    async def _on_question(self, sender: str, question: Any) -> Any:
        (account, name, group, what), body = headed(question, str, str, str, str)
        if what in ("check", "settled"):
            stored_config(body)
        record = self._engine.meta.streams.get((account, name))
        served = self._engine.served(record) if record is not None else None
        if served is None or served.group_name != group or not served.stream.leading or what not in self._questions:
            raise errors.CLUSTER_NOT_LEADER()
        answer = self._questions[what](served, body)
        return await answer if asyncio.iscoroutine(answer) else answer

    def _check(self, served: ServedStream, stored: dict[str, Any]) -> None:
        self._engine.accounts[served.record.account].check_consumers(served.stream, stored)

    async def _settled(self, served: ServedStream, config: dict[str, Any]) -> bool:
        """Wait until the stream has this configuration, and the members that it should have, or leaves this node."""
        runtime = self._engine.runtime
        deadline = runtime.monotonic() + _SETTLE
        while runtime.monotonic() < deadline and served.stream.leading:
            if served.stream.unsettled:
                await served.stream.settled_down()
                deadline = runtime.monotonic() + _SETTLE
            if served.record.config == config and served.ready:
                return True
            await runtime.sleep(0.005)
        return False

    async def members(self, record: StreamRecord) -> list[str]:
        """Who may be needed in a stream's group, as its leader knows; this node among them when nobody tells."""
        try:
            return await self.ask(record, "members", None, 0.5)
        except ApiError:
            return [self._engine.host.member]

    async def survivors(self, record: StreamRecord) -> list[str]:
        """Who is in a stream's group as its leader knows it, whoever the catalogue says that has it; empty when nobody
        in the cluster leads it."""
        served, question = self._engine.served(record), [record.account, record.name, record.group, "members", None]
        if served is not None and served.stream.leading:
            return list(served.stream.group.attached)
        for member in self._engine.meta.group.members:
            if self._mail is not None and member != self._engine.host.member:
                with suppress(Unreachable, ApiError):
                    return await self._mail.ask(member, "stream", question, _SHORT)
        return []

    # What is told

    async def usage(self, account: str) -> list[int]:
        """What an account has in the cluster: bytes of all replicas in memory and in files, consumers. A node that does
        not answer is left out."""

        async def ask(member: str) -> list[int]:
            if member == self._engine.host.member or self._mail is None:
                return self._usage(account)
            try:
                return await self._mail.ask(member, "usage", account, _SHORT)
            except (Unreachable, ApiError):
                return [0, 0, 0]

        found = await asyncio.gather(*map(ask, self._engine.meta.group.members))
        return [sum(column) for column in zip(*found, strict=True)]

    def _usage(self, account: str) -> list[int]:
        """This node's part; consumers count where their stream is led."""
        held = self._engine.accounts.get(account)
        if held is None:
            return [0, 0, 0]
        return [*held.usage(), sum(len(stream.consumers) for stream in held if stream.leading)]

    async def info(self, record: StreamRecord, *, wait: bool = False) -> JsonObject:
        """StreamInfo from the leader; `wait` until all replicas are there. Raises ApiError."""
        if wait and self._engine.clustered:
            await self.ask(record, "settled", record.config)
        return await self.ask(record, "info", True)

    async def infos(self, records: Sequence[StreamRecord]) -> list[JsonObject | None]:
        """StreamInfo of many, as lists have it; None where nobody answers."""

        async def one(record: StreamRecord) -> JsonObject | None:
            try:
                return await self.ask(record, "info", False, 1.0)
            except ApiError:
                return None

        if self._mail is None:
            return [await self._own_info(record) for record in records]
        return list(await asyncio.gather(*map(one, records)))

    async def _own_info(self, record: StreamRecord) -> JsonObject | None:
        served = self._engine.served(record)
        if served is None:
            return None
        await served.stream.settled_down()
        return stream_info(served.stream, dynamic=False)

    async def _info(self, served: ServedStream, dynamic: object) -> JsonObject:
        await served.stream.settled_down()
        body = stream_info(served.stream, dynamic=dynamic is True)
        if self._engine.peers.several:
            moment = body.pop("ts")
            body |= {"cluster": self.cluster_info(served), "ts": moment}
        return body

    def cluster_info(self, served: ServedStream) -> JsonObject:
        """Leader and replicas of a stream."""
        return self._engine.peers.cluster(served.stream.group, served.stream.led_since)

    async def step_down(self, group: Group, placement: JsonObject | None) -> JsonObject:
        """Let another member lead a group, the one that `placement` asks for. Raises ApiError."""
        if len(group.members) > 1:
            to = self._engine.peers.successor(group, placement)
            try:
                await group.transfer(to)
            except (NotLeader, TransferFailed) as error:
                raise errors.CLUSTER_NO_PEERS(err=str(error)) from error
        return {"success": True}


def _about_consumer(tokens: Sequence[str]) -> bool:
    """Whether a request names a consumer."""
    return tokens[0] == "CONSUMER" and tokens[1] not in ("CREATE", "NAMES", "LIST", "DURABLE")
