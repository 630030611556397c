"""Jet: the one place where the forest touches the NATS client library.

Owns: a small typed face over nats-py (publish with acknowledgement, read the last message of a subject, make sure a
stream or a durable consumer exists, pull messages) and the translation of the library's errors into the forest's
three answers: `Unavailable`, `Refused`, `RevisionConflict`. Everything here is public JetStream API, so any NATS
server will do. It keeps no state beside the connection.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError

from forest.errors import Refused, RevisionConflict, Unavailable

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

T = TypeVar("T")

MSG_ID = "Nats-Msg-Id"
EXPECTED_REVISION = "Nats-Expected-Last-Subject-Sequence"
_WRONG_REVISION = (10071, 10164)
_STREAM_EXISTS = 10058
_INVALID = 10052
"""A configuration that the server will not have: comes with status 500, and is a definite no all the same."""
_NO_ROOM = 10002  # account resources exceeded: a 400 that passes when there is room again
_API = "$JS.API"


@dataclass(frozen=True, slots=True)
class Stored:
    """A publish that the stream has taken over. `duplicate`: it had this identity already, `seq` is the old one."""

    seq: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Record:
    """One stored message. `headers` is empty when it has none."""

    subject: str
    seq: int
    data: bytes
    headers: Mapping[str, str]


async def _translated(action: str, call: Awaitable[T]) -> T:
    try:
        return await call
    except NoStreamResponseError as error:
        raise Unavailable(f"{action}: no stream answers") from error
    except APIError as error:
        code = error.err_code or error.code or 0
        detail = f"{action}: {error.description or error} ({code})"
        if code != _INVALID and (error.code is None or error.code >= 500 or code == _NO_ROOM):
            raise Unavailable(detail) from error
        raise Refused(detail, code) from error
    except nats.errors.MaxPayloadError as error:
        raise Refused(f"{action}: payload above the server's limit") from error
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise Unavailable(f"{action}: {error or type(error).__name__}") from error


class Jet:
    """JetStream as the forest needs it, over a connected `client`. `timeout` in seconds bounds each request."""

    def __init__(self, client: Client, timeout: float = 5.0) -> None:
        self.client = client
        self.timeout = timeout
        self._nc = cast(Any, client)  # nats-py's own annotations are partial
        self._js: Any = self._nc.jetstream(timeout=timeout)

    @property
    def reconnects(self) -> int:
        """How often the connection has been made anew: what was asked on the old one will not be answered."""
        return int(self._nc.stats["reconnects"])

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        msg_id: str = "",
        headers: Mapping[str, str] | None = None,
        expected_revision: int | None = None,
    ) -> Stored:
        """Publish and wait until a stream has stored it.

        `expected_revision` is the sequence that the subject's last message must have (0: none).
        Raises Unavailable, Refused, RevisionConflict.
        """
        fields = dict(headers or {})
        if msg_id:
            fields[MSG_ID] = msg_id
        if expected_revision is not None:
            fields[EXPECTED_REVISION] = str(expected_revision)
        try:
            ack = await _translated(f"publish to {subject}", self._js.publish(subject, payload, headers=fields or None))
        except Refused as error:
            if error.code in _WRONG_REVISION:
                raise RevisionConflict(subject, expected_revision or 0) from error
            raise
        return Stored(int(ack.seq), bool(ack.duplicate))

    async def last(self, stream: str, subject: str) -> Record | None:
        """The last message stored on `subject`, read from the stream's leader; None if there is none."""
        try:
            raw = await _translated(f"read {subject}", self._js.get_msg(stream, subject=subject, direct=False))
        except Refused as error:
            if error.code == 10037:  # no message found
                return None
            raise
        return Record(raw.subject, int(raw.seq), raw.data or b"", dict(raw.headers or {}))

    async def stream_config(self, name: str) -> StreamConfig | None:
        """The stream's configuration, None if it does not exist."""
        try:
            info = await _translated(f"stream {name}", self._js.stream_info(name))
        except Refused as error:
            if error.code == 10059:  # stream not found
                return None
            raise
        return cast(StreamConfig, info.config)

    async def ensure_stream(self, config: StreamConfig) -> StreamConfig:
        """Create the stream unless it exists; an existing one keeps the settings it has. Returns those."""
        assert config.name is not None
        have = await self.stream_config(config.name)
        if have is not None:
            return have
        try:
            info = await _translated(f"create stream {config.name}", self._js.add_stream(config))
        except Refused as error:
            if error.code != _STREAM_EXISTS:
                raise
            have = await self.stream_config(config.name)  # another node was faster, with another configuration
            if have is None:
                raise
            return have
        return cast(StreamConfig, info.config)

    async def update_stream(self, config: StreamConfig) -> None:
        """Change an existing stream."""
        await _translated(f"update stream {config.name}", self._js.update_stream(config))

    async def set_replicas(self, stream: str, replicas: int) -> bool:
        """Give the stream `replicas` copies; False if it has them (as wished) already."""
        config = await self.stream_config(stream)
        if config is None or config.num_replicas == replicas:
            return False
        config.num_replicas = replicas
        await self.update_stream(config)
        return True

    async def ensure_consumer(
        self, stream: str, durable: str, filters: Sequence[str], *, ack_wait: float, max_ack_pending: int
    ) -> None:
        """Create the durable pull consumer, or bring an existing one to this configuration."""
        config = ConsumerConfig(
            name=durable,
            durable_name=durable,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ack_wait,
            max_ack_pending=max_ack_pending,
            max_deliver=-1,
            filter_subject=filters[0] if len(filters) == 1 else None,
            filter_subjects=list(filters) if len(filters) > 1 else None,
        )
        await _translated(f"consumer {durable} on {stream}", self._js.add_consumer(stream, config=config))

    async def backlog(self, stream: str, durable: str) -> int:
        """Messages the consumer has yet to handle (undelivered and unacknowledged)."""
        info = await _translated(f"consumer {durable}", self._js.consumer_info(stream, durable))
        return int(info.num_pending or 0) + int(info.num_ack_pending or 0)

    async def consumers(self, stream: str) -> dict[str, int]:
        """The stream's consumers, with the messages that wait for each."""
        infos = await _translated(f"consumers of {stream}", self._js.consumers_info(stream))
        return {str(info.name): int(info.num_pending or 0) for info in infos}

    async def subscribe(self, subject: str, queue: str = "") -> Subscription:
        """A core subscription to be read with `receive`."""
        subscription = await _translated(f"subscribe to {subject}", self._nc.subscribe(subject, queue=queue))
        return cast("Subscription", subscription)

    async def receive(self, subscription: Subscription, timeout: float) -> Msg | None:
        """The next message, None after `timeout` seconds without one. Raises Unavailable on a closed connection."""
        try:
            return await subscription.next_msg(timeout=timeout)
        except (nats.errors.TimeoutError, TimeoutError):
            return None
        except nats.errors.Error as error:
            raise Unavailable(f"receive: {error}") from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; a connection that is gone has ended it already."""
        try:
            await subscription.unsubscribe()
        except nats.errors.Error:
            return

    async def pull(
        self, stream: str, durable: str, inbox: str, *, batch: int, expires: float, heartbeat: float
    ) -> None:
        """Ask the consumer for up to `batch` messages at `inbox` within `expires` seconds."""
        request = {"batch": batch, "expires": int(expires * 1e9), "idle_heartbeat": int(heartbeat * 1e9)}
        await _translated(
            f"pull from {durable}",
            self.client.publish(
                f"{_API}.CONSUMER.MSG.NEXT.{stream}.{durable}", json.dumps(request).encode(), reply=inbox
            ),
        )

    async def settle(self, msg: Msg, verdict: str, delay: float = 0.0) -> bool:
        """Send `ack`, `nak` (with `delay` seconds) or `term`; False if it could not be sent: it is redelivered."""
        try:
            match verdict:
                case "ack":
                    await msg.ack()
                case "nak":
                    await msg.nak(delay=delay or None)
                case _:
                    assert verdict == "term", verdict
                    await msg.term()
        except (nats.errors.Error, OSError):
            return False
        return True
