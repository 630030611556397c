"""Requests that a server may rightly never answer, told from those that a busy machine answers late."""

from __future__ import annotations

import asyncio

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError

_MOMENT = 0.2


async def answer_of(client: Client, subject: str, data: bytes, headers: dict[str, str] | None = None) -> Msg:
    """The answer to a request. Raises `nats.errors.TimeoutError` when the server stays silent.

    It is silent when it has answered another request since, and still nothing comes: so the more time it needs for
    anything, the longer it is waited for.
    """
    request = asyncio.ensure_future(client.request(subject, data, timeout=60, headers=headers))
    try:
        if not (await asyncio.wait([request], timeout=_MOMENT))[0]:
            await client.request("$JS.API.INFO", b"", timeout=20)
            await asyncio.wait([request], timeout=_MOMENT)
        if not request.done():
            raise TimeoutError
        return request.result()
    finally:
        request.cancel()
