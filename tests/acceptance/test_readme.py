"""The README's programs and configuration, run as written."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

from nats.aio.client import Client
from nats.js.client import JetStreamContext

from tests.chaos.process import NodeProcess
from tests.chaos.workload import connect

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """The one fenced block of the README in that language that contains a text."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    (found,) = [text for named, text in fences if named == language and containing in text]
    return found


async def test_the_embedding_example_runs(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(block("python", "asyncio.run(main())"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "example.py",
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(program.communicate(), 30)
    assert program.returncode == 0, output.decode()
    assert b"stream='EVENTS', seq=1" in output and b"nats://127.0.0.1:" in output


async def test_the_testing_example_runs(jetstream: JetStreamContext) -> None:
    scope: dict[str, object] = {}
    exec(block("python", "async def test_order(jetstream)"), scope)
    await scope["test_order"](jetstream)  # type: ignore[operator]


async def test_the_tree_and_its_configuration_work(tmp_path: Path) -> None:
    (tmp_path / "orders.py").write_text(block("python", "class OrderTree"))
    config = tmp_path / "node.conf"
    config.write_text(block("", "# node.conf") + '\nlisten: "127.0.0.1:-1"\n')
    node = NodeProcess(tmp_path / "data", "--config", str(config), environment={"PYTHONPATH": str(tmp_path)})
    async with node:
        client: Client = await connect(node.url)
        placed = await client.subscribe("order.placed")
        await client.jetstream().publish("river.shop.web", json.dumps({"id": 7}).encode())
        leaf = json.loads((await placed.next_msg(timeout=10)).data)
        assert (leaf["source"], leaf["data"]) == ("OrderTree", {"id": 7})
        await client.close()
