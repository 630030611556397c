"""Two servers with monitoring, ours and the Go one, seen through the same three questions: HTTP, client URL, `$SYS`."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import nats


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class Side:
    """A server under comparison; `client_port` and `http_port` on loopback."""

    name: str
    client_port: int
    http_port: int

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.client_port}"

    async def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """One request to the monitoring port; `path` begins with a slash."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, headers=headers, timeout=aiohttp.ClientTimeout(5)) as answer,
        ):
            return Answer(answer.status, dict(answer.headers), await answer.text())

    async def get(self, path: str) -> Any:
        """The JSON at a path."""
        return (await self.ask(path)).json

    async def request(self, subject: str, body: str = "", **credentials: str) -> Any:
        """The JSON answer to one request on a fresh connection."""
        client = await nats.connect(self.url, **credentials)
        try:
            return json.loads((await client.request(subject, body.encode(), timeout=20)).data)
        finally:
            await client.close()


_NAMES = ("app", "short")
"""Of the clients that `traffic` makes."""


async def traffic(side: Side) -> nats.NATS:
    """The same clients and messages on either server; returns the connection that stays open."""
    client = await nats.connect(side.url, name="app")
    received = asyncio.Event()

    async def take(message: Any) -> None:
        received.set()

    await client.subscribe("orders.*", cb=take)
    await client.subscribe("orders.>", queue="workers", cb=take)
    short = await nats.connect(side.url, name="short")
    await short.subscribe("once", cb=take)
    await short.publish("orders.new", b"hello")
    await short.flush()
    await received.wait()
    await short.close()
    await client.flush()
    await _until(side, lambda open_, closed: closed > 0)
    return client


async def gone(side: Side) -> None:
    """Wait until the server has noticed that no client is left."""
    await _until(side, lambda open_, closed: open_ == 0)


async def _until(side: Side, reached: Callable[[int, int], bool]) -> None:
    """Ask until the numbers of these clients' open and closed connections are right: a server notices the end of one by
    itself. Whoever else connects, as a client of an earlier server of this port does, is not one of them."""
    while not reached(  # noqa: ASYNC110 the other process has no event for us
        *[
            sum(each.get("name") in _NAMES for each in (await side.get(f"/connz?state={state}"))["connections"])
            for state in ("open", "closed")
        ]
    ):
        await asyncio.sleep(0.005)


def shape(value: Any) -> Any:
    """What a JSON value looks like: keys and types; a list of objects by everything that any of them has."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [functools.reduce(_merged, map(shape, value))] if value else []
    if isinstance(value, bool) or value is None:
        return type(value).__name__
    return "number" if isinstance(value, int | float) else "string"


def _merged(one: Any, other: Any) -> Any:
    """A shape with everything that either has."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {**one, **{key: _merged(one[key], item) if key in one else item for key, item in other.items()}}
    if isinstance(one, list) and isinstance(other, list):
        return [functools.reduce(_merged, one + other)] if one + other else []
    return other


def differences(theirs: Any, ours: Any, path: str = "") -> list[str]:
    """Where two shapes differ, as `path: theirs -> ours`; `+` and `-` mark keys that only one side has."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found: list[str] = []
        for key in theirs.keys() | ours.keys():
            below = f"{path}.{key}".lstrip(".")
            if key not in ours:
                found.append(f"-{below}")
            elif key not in theirs:
                found.append(f"+{below}")
            else:
                found.extend(differences(theirs[key], ours[key], below))
        return sorted(found)
    if isinstance(theirs, list) and isinstance(ours, list) and theirs and ours:
        return differences(theirs[0], ours[0], f"{path}[]")
    return [] if theirs == ours else [f"{path}: {theirs} -> {ours}"]


def keys_in_order(value: Any) -> list[str]:
    """Keys of an object in the order in which they came."""
    return list(value)
