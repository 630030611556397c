"""A client that talks to a JetStream server in raw requests, and a transcript of what it was answered.

Answers are recorded in comparable form: times and drawn names are replaced, version keys are left out.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError, TimeoutError

from tests.jetstream.silence import answer_of

SECOND = 1_000_000_000
_TIMES = ("created", "ts", "last_active", "timestamp", "pause_until", "pinned_ts")


def comparable(value: Any, key: str = "") -> Any:
    """A JSON value without what differs between two runs."""
    if isinstance(value, dict):
        return {k: comparable(v, k) for k, v in value.items() if k not in ("_nats.ver", "_nats.level", "id")}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if key in _TIMES and isinstance(value, str):
        return value if value.startswith("0001") else "TIME"
    if key in ("pause_remaining", "ack_time"):
        return "DURATION"
    return value


class Talk:
    """One run of a scenario."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.lines: list[Any] = []
        self._inboxes: dict[str, Any] = {}

    async def api(self, subject: str, body: Any = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """A JSON request whose answer is recorded."""
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        try:
            reply = await answer_of(self.client, f"$JS.API.{subject}", payload, headers)
        except (NoRespondersError, TimeoutError) as error:
            self.lines.append((subject, type(error).__name__))
            return {}
        answer = json.loads(reply.data)
        shown = comparable(answer)
        if "name" in shown and "config" in shown and "name" not in shown["config"]:
            shown["name"] = "DRAWN" if re.fullmatch(r"\w{8}", shown["name"]) else shown["name"]
        self.lines.append((subject, shown))
        return answer

    async def quiet(self, subject: str, body: Any = None) -> dict[str, Any]:
        """A JSON request that only prepares something."""
        reply = await self.client.request(f"$JS.API.{subject}", json.dumps(body or {}).encode(), timeout=20)
        answer = json.loads(reply.data)
        assert "error" not in answer, answer
        return answer

    async def stream(self, name: str = "S", **config: Any) -> None:
        await self.quiet(f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"{name.lower()}.>"], **config})

    async def consumer(self, name: str = "c", **config: Any) -> None:
        config = {"durable_name": name, "ack_policy": "explicit", **config}
        await self.quiet(f"CONSUMER.CREATE.S.{name}", {"stream_name": "S", "config": config})

    async def publish(self, *subjects: str, payload: bytes = b"x") -> None:
        for subject in subjects:
            await self.client.request(subject, payload, timeout=20)

    async def listen(self, inbox: str, queue: str = "") -> asyncio.Queue[Msg]:
        got: asyncio.Queue[Msg] = asyncio.Queue()
        self._inboxes[inbox] = await self.client.subscribe(inbox, queue, cb=got.put)
        await self.client.flush()
        return got

    async def ask(self, got: asyncio.Queue[Msg], inbox: str, body: Any, count: int, consumer: str = "c") -> list[Msg]:
        """A pull request; the next `count` messages at its inbox are recorded."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.S.{consumer}", payload, reply=inbox)
        return await self.expect(got, count)

    async def expect(self, got: asyncio.Queue[Msg], count: int, timeout: float = 20) -> list[Msg]:
        messages: list[Msg] = []
        try:
            while len(messages) < count:
                messages.append(await asyncio.wait_for(got.get(), timeout))
        except asyncio.TimeoutError:  # noqa: UP041
            self.lines.append("(nothing)")
        self.lines += [self.shown(message) for message in messages]
        return messages

    @staticmethod
    def shown(message: Msg) -> Any:
        reply = re.sub(r"\.\d{19}\.", ".TIME.", message.reply)
        reply = re.sub(r"(\$JS\.FC\.\w+\.\w+\.)\w+", r"\1ID", reply)
        headers = dict(message.headers or {})
        for name in ("Nats-Pin-Id", "Nats-Consumer-Stalled"):
            if name in headers:
                headers[name] = "DRAWN"
        return (message.subject, reply, headers, message.data[:20])

    async def answered(self, message: Msg, payload: bytes = b"") -> None:
        """A double ack, recorded."""
        try:
            reply = await answer_of(self.client, message.reply, payload)
            self.lines.append(("ack", payload, reply.data, dict(reply.headers or {})))
        except (NoRespondersError, TimeoutError) as error:
            self.lines.append(("ack", payload, type(error).__name__))

    async def info(self, consumer: str = "c") -> dict[str, Any]:
        return await self.api(f"CONSUMER.INFO.S.{consumer}")
