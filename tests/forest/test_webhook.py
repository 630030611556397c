"""The HTTP source: what Stripe sends gets in, everything else stays out, and 200 means stored."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web
from nats.aio.client import Client

from forest import Forest, ForestOptions
from forest.signature import BadSignature, sign, verify
from forest.webhook import Endpoint, endpoints, webhook_handler
from tests.forest.conftest import QUICK, Grow, settled, stored, task_of
from tests.forest.events import CHARGE_ID, succeeded

NOW = 1_731_513_850
OLD, NEW = "whsec_old_one", "whsec_new_one"
BODY = succeeded()


@asynccontextmanager
async def serving(forest: Forest, max_body: int = 64 * 1024) -> AsyncIterator[str]:
    """The forest's webhooks on a loopback port; the base URL. The clock stands at NOW."""
    application = web.Application(client_max_size=100)  # our own limit counts, not the application's
    handler = webhook_handler(
        forest.river,
        endpoints({"stripe": [NEW, OLD]}, ["plain"]),
        clock=lambda: NOW,
        metrics=forest.metrics,
        log=logging.getLogger("forest"),
        max_body=max_body,
    )
    application.router.add_post("/webhooks/{name}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/webhooks"
    finally:
        await runner.cleanup()


async def post(url: str, body: bytes | AsyncIterator[bytes], signature: str | None) -> int:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if signature is not None:
        headers["Stripe-Signature"] = signature
    async with ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        await response.read()
        return response.status


async def test_a_signed_event_flows_and_its_repetition_is_stored_once(grow: Grow, client: Client) -> None:
    forest = await grow()
    async with serving(forest) as url:
        assert await post(f"{url}/stripe", BODY, sign(BODY, NEW, NOW - 5)) == 200
        assert await post(f"{url}/stripe", BODY, sign(BODY, OLD, NOW + 5)) == 200
    assert (await task_of(client, CHARGE_ID))["amount"] == 150.0
    await settled(forest)
    assert forest.metrics.total("forest_items_received_total", consumer="tree-river-stripe-webhook") == 1
    assert forest.metrics.value("forest_webhooks_total", name="stripe", status="200") == 2


FORGED: list[str | None] = [
    None,
    "",
    "nonsense",
    f"t={NOW}",
    f"t={NOW},v1=",
    f"t={NOW},v0={'0' * 64}",
    sign(BODY, NEW, NOW).replace(f"t={NOW}", f"t={NOW + 1}"),
    sign(BODY, NEW, NOW).replace(f"t={NOW},", ""),
    sign(BODY, NEW, NOW).upper(),
    sign(BODY, "whsec_somebody_elses", NOW),
    sign(BODY + b" ", NEW, NOW),
    sign(BODY, NEW, NOW - 301),
    sign(BODY, NEW, NOW + 301),
    sign(BODY, NEW, NOW).replace("v1=", "v1=\u00e9"),
]


async def test_without_a_valid_signature_nothing_flows(grow: Grow, client: Client) -> None:
    forest = await grow()
    async with serving(forest) as url:
        for signature in FORGED:
            assert await post(f"{url}/stripe", BODY, signature) == 400, signature
    info = await client.jetstream().stream_info("RIVER")
    assert info.state.last_seq == 0


async def test_limits_names_and_methods(grow: Grow, client: Client) -> None:
    forest = await grow()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(1024)

    async with serving(forest, max_body=4096) as url:
        big = bytes(4097)
        assert await post(f"{url}/stripe", big, sign(big, NEW, NOW)) == 413
        assert await post(f"{url}/stripe", endless(), "t=1,v1=00") == 413
        assert await post(f"{url}/paypal", BODY, sign(BODY, NEW, NOW)) == 404
        assert await post(f"{url}/stripe", b"", sign(b"", NEW, NOW)) == 400
        exact = bytes(4096)
        assert await post(f"{url}/plain", exact, None) == 200
        assert await post(f"{url}/plain", exact, None) == 200
        async with ClientSession() as session, session.get(f"{url}/stripe") as response:
            assert response.status == 405
    info = await client.jetstream().stream_info("RIVER", subjects_filter="river.>")
    assert info.state.subjects == {"river.plain.webhook": 2}, "unsigned bodies are never taken for repetitions"


async def test_no_acknowledgement_no_200(grow: Grow, client: Client) -> None:
    forest = await grow()
    await client.jetstream().delete_stream("RIVER")
    async with serving(forest) as url:
        assert await post(f"{url}/stripe", BODY, sign(BODY, NEW, NOW)) == 503


async def test_a_full_river_says_try_again(nats_url: str, client: Client) -> None:
    forest = Forest(nats_url, ForestOptions(limits=QUICK, builtin=False))
    async with forest, serving(forest) as url:
        js = client.jetstream()
        config = (await js.stream_info("RIVER")).config
        config.max_msgs = 1
        await js.update_stream(config)
        other = succeeded("ch_second")
        assert await post(f"{url}/stripe", BODY, sign(BODY, NEW, NOW)) == 200
        assert await post(f"{url}/stripe", other, sign(other, NEW, NOW)) == 503
        assert await stored(client, "RIVER") == 1, "what was acknowledged is not dropped for something new"


def test_the_scheme_is_stripes() -> None:
    digest = hmac.new(b"whsec_x", b"1700000000.{}", hashlib.sha256).hexdigest()
    header = f"t=1700000000,v1={'ab' * 32},v1={digest},v0=ignored"
    verify(header, b"{}", ["whsec_y", "whsec_x"], 1_700_000_299.0)
    with pytest.raises(BadSignature, match="outside the tolerance"):
        verify(header, b"{}", ["whsec_x"], 1_700_000_301.0)
    with pytest.raises(BadSignature, match="no signature matches"):
        verify(header, b"{}", [], 1_700_000_000.0)


def test_configuration_is_checked() -> None:
    with pytest.raises(ValueError, match="secret"):
        Endpoint()
    with pytest.raises(ValueError, match="secret"):
        endpoints({"stripe": [""]})
    with pytest.raises(ValueError, match="cannot name"):
        endpoints({"a.b": ["s"]})
