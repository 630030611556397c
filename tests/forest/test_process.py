"""`python -m forest` as a process: it starts, serves webhooks, stops politely, and survives kill -9 in a loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process

import pytest
from aiohttp import ClientSession
from nats.aio.client import Client

from forest.__main__ import secrets_from
from forest.signature import sign
from tests.forest.conftest import stored, task_of, until
from tests.forest.events import CHARGE_ID, succeeded
from tests.ports import free_port


async def start(url: str, *arguments: str, **environment: str) -> Process:
    """Start `python -m forest`; returns when it says that it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "forest", "--nats-url", url, *arguments),
        stdout=PIPE,
        stderr=STDOUT,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        async for line in process.stdout:
            if b"forest is ready" in line:
                return process
    raise AssertionError("the forest ended before it was ready")


async def test_the_command_serves_and_stops(nats_url: str, client: Client) -> None:
    import time

    port = free_port()
    process = await start(nats_url, "--listen", f"127.0.0.1:{port}", FOREST_WEBHOOK_STRIPE="whsec_a,whsec_b")
    try:
        headers = {"Stripe-Signature": sign(succeeded(), "whsec_b", int(time.time()))}
        url = f"http://127.0.0.1:{port}/webhooks/stripe"
        async with ClientSession() as session, session.post(url, data=succeeded(), headers=headers) as response:
            assert response.status == 200
        assert (await task_of(client, CHARGE_ID))["amount"] == 150.0
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_secrets_come_from_the_environment() -> None:
    environment = {"FOREST_WEBHOOK_STRIPE": "a, b,", "FOREST_WEBHOOK_EMPTY": " ", "OTHER": "x"}
    assert secrets_from(environment) == {"stripe": ["a", "b"]}


@pytest.mark.extended
@pytest.mark.timeout(300)
async def test_kill_minus_nine_in_a_loop(nats_url: str, client: Client) -> None:
    """Twenty deaths under load, at whatever point they hit: one task per charge, one compost per task."""
    charges: list[str] = []
    js = client.jetstream()
    process = await start(nats_url)
    try:
        for death in range(20):
            for number in range(25):
                charges.append(f"ch_kill{death:02d}n{number:02d}")
                await js.publish("river.stripe.webhook", succeeded(charges[-1]))
            await asyncio.sleep(0.002 * death)  # another point each time
            process.kill()
            await process.wait()
            process = await start(nats_url)

        async def complete() -> bool:
            return await stored(client, "KV_SOIL") >= len(charges) and await stored(client, "RIVER") == 0

        await until(complete, "tasks are missing", limit=60)
        state = (await js.stream_info("KV_SOIL", subjects_filter="$KV.SOIL.>")).state
        assert state.subjects == {f"$KV.SOIL.task-{charge}": 1 for charge in charges}
        assert await stored(client, "HUMUS") == len(charges)
    finally:
        process.kill()
        await process.wait()
