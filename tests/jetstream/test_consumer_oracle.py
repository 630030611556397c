"""The same requests to nats-server and to this server: the same answers, statuses and deliveries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import nats
import pytest

from nimsnats.server import Server
from tests.conformance.oracle import Oracle
from tests.jetstream import consumer_management, consumer_scenarios
from tests.jetstream.consumer_talk import Talk

Scenario = Callable[[Talk], Awaitable[None]]


@pytest.fixture(scope="module")
def go_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    directory = tmp_path_factory.mktemp("oracle-js")
    server = Oracle(directory).start(f"jetstream {{ store_dir: '{directory / 'js'}' }}")
    yield server
    server.stop()


async def run(url: str, scenario: Scenario) -> list[object]:
    """The transcript of a scenario; streams are deleted afterwards."""
    client = await nats.connect(url)
    talk = Talk(client)
    try:
        await scenario(talk)
    finally:
        names = json.loads((await client.request("$JS.API.STREAM.NAMES", b"")).data)["streams"] or []
        for name in names:
            await client.request(f"$JS.API.STREAM.DELETE.{name}", b"")
        await client.close()
    return talk.lines


@pytest.mark.parametrize(
    "scenario", [*consumer_management.SCENARIOS, *consumer_scenarios.SCENARIOS], ids=lambda scenario: scenario.__name__
)
async def test_answers_like_the_go_server(scenario: Scenario, go_server: Oracle, tmp_path: Path) -> None:
    async with Server(store_dir=tmp_path) as server:
        url = f"nats://127.0.0.1:{server.port}"
        expected, got = await asyncio.gather(run(go_server.url, scenario), run(url, scenario))
        if got != expected:  # nats-server takes pull requests on another thread: once in a while their order differs
            expected, got = await asyncio.gather(run(go_server.url, scenario), run(url, scenario))
    for ours, theirs in zip(got, expected, strict=False):
        assert ours == theirs
    assert len(got) == len(expected)
