"""Scripts of requests that are sent to the Go server and to ours, and what is compared of the answers.

A step is (subject, body[, headers]). Bodies that are dicts are sent as JSON. `PUB` in front of a subject publishes with
a reply and shows the acknowledgement; `SLEEP` waits (for expiry). Times, names of servers and versions are left out.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import nats.errors
from nats.aio.client import Client

from tests.jetstream.silence import answer_of

Step = tuple[Any, ...]
Answer = Any

_VOLATILE = {"ts", "created", "first_ts", "last_ts", "time", "cluster", "_nats.ver", "_nats.level", "api"}
_LATER_MARKS = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def comparable(value: Any) -> Any:
    """Without what differs from run to run and from server to server."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return value


async def play(client: Client, steps: list[Step]) -> list[Answer]:
    """The answers to all steps, in order."""
    return [await _step(client, *step) for step in steps]


async def _step(client: Client, subject: str, body: Any = b"", headers: dict[str, str] | None = None) -> Answer:
    if subject == "SLEEP":
        await asyncio.sleep(body)
        return None
    publish = subject.startswith("PUB ")
    subject = subject.removeprefix("PUB ") if publish else f"$JS.API.{subject}"
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    if "DIRECT.GET" in subject:
        return await _direct(client, subject, data, headers)
    try:
        message = await answer_of(client, subject, data, headers)
    except nats.errors.Error as error:
        return type(error).__name__
    if message.data:
        try:
            answer: Any = comparable(json.loads(message.data))
        except ValueError:
            answer = message.data
    else:
        answer = None
    status = dict(message.headers or {})
    return (answer, status) if status else answer


async def _direct(client: Client, subject: str, data: bytes, headers: dict[str, str] | None) -> Answer:
    """All messages of a direct get: until the end of a batch, or the first one when it is no batch."""
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    await client.publish(subject, data, reply=inbox, headers=headers)
    answers: list[Any] = []
    batch = b"batch" in data or b"multi_last" in data
    while True:
        try:
            message = await subscription.next_msg(timeout=20)
        except nats.errors.Error as error:
            answers.append(type(error).__name__)
            break
        shown = {key: value for key, value in (message.headers or {}).items() if key != "Nats-Time-Stamp"}
        answers.append((message.data, shown))
        if not batch or "Status" in shown:
            break
    await subscription.unsubscribe()
    return answers
