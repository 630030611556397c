"""The forest's HTTP source: `POST /webhooks/<name>` puts the body on `river.<name>.webhook`.

Owns: the aiohttp handler and its answers. The route belongs to whoever runs the HTTP server:

    app.router.add_post("/webhooks/{name}", webhook_handler(river, endpoints, clock=time.time, ...))

    200  the river's stream has stored the body (the only answer after which the sender may forget it)
    400  signature missing, wrong or expired; empty body. Nothing flows
    404  no endpoint of that name
    408  the body did not arrive in time
    413  body larger than the limit
    503  the stream did not acknowledge: the sender shall try again (Stripe does, for days)

A body from a signed endpoint carries its hash as identity, so a sender's quick retry after a lost 200 is stored once,
and so is a delivery that somebody has overheard and sends again: the river remembers identities for longer than a
signature is accepted, whatever `tolerance` says.
This is the only module of the forest that knows aiohttp.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from forest.errors import ForestError
from forest.metrics import ForestMetrics
from forest.river import River
from forest.signature import TOLERANCE, BadSignature, verify

_NAME = re.compile(r"^[A-Za-z0-9_-]{1,64}$")
_HEADER = "Stripe-Signature"
READ_TIMEOUT = 5.0
"""Seconds in which a body must arrive."""

WebhookHandler = Callable[[web.Request], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One webhook. `secrets`: any of them may have signed (rotation). `unsigned` accepts everything, on purpose."""

    secrets: Sequence[str] = ()
    unsigned: bool = False

    def __post_init__(self) -> None:
        if not self.unsigned and not any(self.secrets):
            raise ValueError("a webhook needs a secret, or `unsigned`")


def endpoints(secrets: Mapping[str, Sequence[str]], unsigned: Sequence[str] = ()) -> dict[str, Endpoint]:
    """Endpoints from configuration. Raises ValueError for a name that cannot be part of a subject."""
    table = {name: Endpoint(tuple(secret for secret in given if secret)) for name, given in secrets.items()}
    table.update({name: Endpoint(unsigned=True) for name in unsigned if name not in table})
    for name in table:
        if not _NAME.match(name):
            raise ValueError(f"{name!r} cannot name a webhook")
    return table


def webhook_handler(
    river: River,
    table: Mapping[str, Endpoint],
    *,
    clock: Callable[[], float],
    metrics: ForestMetrics,
    log: logging.Logger,
    max_body: int = 256 * 1024,
    tolerance: float = TOLERANCE,
) -> WebhookHandler:
    """The handler for a route with a `{name}`. `clock`: seconds since the epoch; `max_body`: bytes; `tolerance`: how
    old a signature may be, in seconds, but never more than the river's."""
    if tolerance > river.tolerance:
        log.warning(
            "Signatures of webhooks are accepted for %g s instead of %g s: the river remembers no longer",
            river.tolerance, tolerance,
        )  # fmt: skip
        tolerance = river.tolerance

    async def receive(request: web.Request) -> tuple[int, str]:
        name = request.match_info.get("name", "")
        endpoint = table.get(name)
        if endpoint is None:
            return 404, "no such webhook"
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                body = await _read(request, max_body)
        except TimeoutError:
            return 408, f"the body did not arrive within {READ_TIMEOUT:g} s"
        if body is None:
            return 413, f"larger than {max_body} bytes"
        if not endpoint.unsigned:
            try:
                verify(request.headers.get(_HEADER, ""), body, endpoint.secrets, clock(), tolerance=tolerance)
            except BadSignature as error:
                log.warning("webhook %s: refused: %s", name, error)
                return 400, "invalid signature"
        if not body:
            return 400, "empty body"
        identity = "" if endpoint.unsigned else f"webhook:{name}:{hashlib.sha256(body).hexdigest()}"
        try:
            await river.flow(f"river.{name}.webhook", body, msg_id=identity)
        except ForestError as error:
            log.error("webhook %s: not stored: %s", name, error)
            return 503, "not stored, try again"
        return 200, "stored"

    async def handle(request: web.Request) -> web.Response:
        status, text = await receive(request)
        name = request.match_info.get("name", "") if status != 404 else ""
        metrics.count("forest_webhooks_total", name=name, status=str(status))
        headers = {"Retry-After": "5"} if status == 503 else None
        return web.json_response({"status": status, "detail": text}, status=status, headers=headers)

    return handle


async def _read(request: web.Request, limit: int) -> bytes | None:
    """The body, None if it is larger than `limit`: known from its length, or noticed while reading."""
    if (request.content_length or 0) > limit:
        return None
    parts: list[bytes] = []
    size = 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)
