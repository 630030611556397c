"""The status page in headless Chromium, on a cluster of three processes that is in use and loses a node."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio

from tests.chaos.process import NodeProcess
from tests.chaos.registry import RegistryProcess

pytestmark = [pytest.mark.extended, pytest.mark.timeout(240)]

SCRIPT = Path(__file__).parent / "browser.mjs"
PACKAGES = ("playwright-core", "axe-core")


@pytest.fixture
def browser() -> str:
    """The path of a Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium")
    return found


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with what drives the browser."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs Node.js and npm")
    folder = tmp_path / "packages"
    folder.mkdir()
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", *PACKAGES]
    done = subprocess.run(install, check=False, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm cannot install {', '.join(PACKAGES)}: {done.stderr.strip()[-200:]}")
    return folder


@pytest_asyncio.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[NodeProcess]]:
    """Three nodes with the forest and its demo."""
    async with RegistryProcess(ttl="60s") as registry:
        arguments = ("--registry-url", registry.url, "--heartbeat-interval", "1s", "--demo")
        started = [NodeProcess(tmp_path / name, *arguments, "--node-name", name) for name in ("n1", "n2", "n3")]
        try:
            for node in started:
                await node.start()
            yield started
        finally:
            await asyncio.gather(*(node.kill() for node in started))


async def publish(url: str) -> None:
    """Orders, until cancelled."""
    client = await nats.connect(url)
    try:
        js = client.jetstream()
        while True:
            await js.publish("orders.new", b"x")
            await asyncio.sleep(0.1)
    finally:
        await client.close()


class Look:
    """What the browser tells, step by step."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def step(self, name: str) -> dict[str, Any]:
        """The next step, which has to be this one."""
        assert self._process.stdout is not None and self._process.stderr is not None
        line = await self._process.stdout.readline()
        assert line, (await self._process.stderr.read()).decode()
        told: dict[str, Any] = json.loads(line)
        assert told["step"] == name, told
        return told

    def go_on(self) -> None:
        """What the browser waits for has been done."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")


async def test_a_browser_watches_a_cluster_that_loses_a_node(
    nodes: list[NodeProcess], browser: str, packages: Path
) -> None:
    client = await nats.connect(nodes[0].url)
    await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
    await client.close()
    work = asyncio.create_task(publish(nodes[1].url))
    url = f"http://127.0.0.1:{nodes[0].monitor_port}/"
    command = ["node", str(SCRIPT), url, browser, str(packages)]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:
        await watch(Look(process), nodes)
        assert await process.wait() == 0
    finally:
        work.cancel()
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def watch(look: Look, nodes: list[NodeProcess]) -> None:
    """Judge every step."""
    loaded = await look.step("loaded")
    assert loaded["nodes"] == ["n1", "n2", "n3"]
    assert loaded["title"].startswith("nimsforest: ")
    moved = await look.step("moved")
    assert moved["after"] > moved["before"]
    keyboard = await look.step("keyboard")
    order = [name for name, *_ in keyboard["order"]]
    sections = ["#cluster", "#forest", "#streams", "#consumers", "#connections", "#registry", "#events"]
    assert order[:9] == ["#main", "pause", *sections]
    assert order[9:12] == ["#node-n1", "#node-n2", "#node-n3"]
    assert [label for _, tag, label, _ in keyboard["order"][12:] if tag == "DIV"][:3] == [
        "Streams, table",
        "Consumers, table",
        "Connections, table",
    ]
    assert all(outlined for *_, outlined in keyboard["order"])
    assert keyboard["paused"] == "paused, as of"
    drawn = await look.step("map")
    assert [label.split(", ")[:2] for label in drawn["nodes"]] == [[name, "healthy"] for name in ("n1", "n2", "n3")]
    assert sum("leader" in label for label in drawn["nodes"]) == 1 and drawn["nodes"][0].endswith("this node")
    assert drawn["links"] == [["n1", "n2", "ok"], ["n1", "n3", "ok"], ["n2", "n3", "ok"]]
    assert drawn["said"].startswith("All 3 links are up")
    assert (drawn["target"], drawn["kept"]) == ("n2", "yes"), "the focus must outlive the next event"
    assert drawn["table"] == ["n1 and n2", "n1 and n3", "n2 and n3"]
    assert len({tuple(place) for place in drawn["places"]}) == 3
    schemes = await look.step("schemes")
    assert min(schemes["light"]["background"]) > 200 and max(schemes["dark"]["background"]) < 50
    assert schemes["light"]["violations"] == schemes["dark"]["violations"] == []
    phone = await look.step("phone")
    assert (phone["wide"], phone["violations"]) == (False, [])
    assert phone["letters"] > 9.5
    for step, number in (("stop", signal.SIGSTOP), ("silent", signal.SIGCONT)):
        await look.step(step)
        process = nodes[2].process
        assert process is not None
        process.send_signal(number)
        look.go_on()
    await look.step("again")
    await look.step("kill")
    await nodes[2].kill()
    look.go_on()
    away = await look.step("away")
    assert len(away["others"]) == 2 and "away" not in away["others"]
    assert away["headline"].startswith("2 of 3 nodes are here")
    assert {"ORDERS", "RIVER"} <= set(away["streams"])
    assert away["mapped"].startswith("n3, away")
    plain = await look.step("plain")
    assert (plain["nodes"], plain["lines"]) == (3, 3)
    words = plain["words"]
    assert "n3 is away" in words and "ORDERS" in words and "Soil" in words
    assert (await look.step("end"))["errors"] == []
