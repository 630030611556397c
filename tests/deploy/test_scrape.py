"""A real Prometheus watches a real cluster of three processes, with the forest on board."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.chaos.process import NodeProcess
from tests.chaos.registry import RegistryProcess
from tests.chaos.workload import connect
from tests.deploy.test_prometheus import DEPLOY, expressions
from tests.ports import free_port

pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed"),
]
_OWN = re.compile(r"up|scrape_\w+|ALERTS\w*")
_SUFFIX = re.compile(r"_(bucket|count|sum|total|info)$")
"""Prometheus asks for OpenMetrics, where these are not part of a family's name."""


class Prometheus:
    """A Prometheus process with the shipped configuration, but for targets and pace."""

    def __init__(self, directory: Path, targets: list[str]) -> None:
        self.directory = directory
        self.port = free_port()
        shipped = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
        places = "\n".join(f"          - {target}" for target in targets)
        ours, changed = re.subn(r"(?<=- targets:\n)(?: +- \S+\n?)+", places + "\n", shipped)
        assert changed == 1
        directory.mkdir()
        (directory / "prometheus.yml").write_text(ours.replace("interval: 15s", "interval: 1s"))
        shutil.copy(DEPLOY / "prometheus" / "alerts.yml", directory)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Prometheus]:
        """Start, wait until it answers, and end."""
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={self.directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await self._until_ready(process)
            yield self
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                assert process.returncode is None, "prometheus ended"
                try:
                    async with session.get(f"http://127.0.0.1:{self.port}/-/ready") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.1)

    async def ask(self, path: str, **parameters: str) -> Any:
        """The data that the API answers with."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}"
        async with aiohttp.ClientSession() as session, session.get(url, params=parameters) as answer:
            body = await answer.json()
        assert body["status"] == "success", f"{path} {parameters}: {body}"
        return body["data"]

    async def value(self, expression: str) -> float:
        """The one value of an expression; -1 while there is none."""
        result = (await self.ask("query", query=expression))["result"]
        return float(result[0]["value"][1]) if result else -1

    async def until(self, expression: str, wanted: float) -> None:
        """Wait until an expression has a value."""
        while await self.value(expression) != wanted:  # noqa: ASYNC110  # it has no way to tell
            await asyncio.sleep(0.2)


async def all_described(prometheus: Prometheus) -> None:
    """No metric without HELP and TYPE."""
    names: list[str] = await prometheus.ask("label/__name__/values")
    described = await prometheus.ask("metadata")
    assert len(names) > 100
    for name in names:
        if _OWN.fullmatch(name):
            continue
        (meta,) = described.get(name) or described[_SUFFIX.sub("", name)]
        assert meta["help"] and meta["type"] not in ("", "unknown"), f"{name}: {meta}"


@pytest.mark.timeout(120)
async def test_prometheus_watches_a_cluster(tmp_path: Path) -> None:
    async with RegistryProcess(ttl="3s") as registry:
        arguments = ("--registry-url", registry.url, "--heartbeat-interval", "1s")
        nodes = [NodeProcess(tmp_path / name, *arguments, "--node-name", name) for name in ("n1", "n2", "n3")]
        try:
            for node in nodes:
                await node.start()
            prometheus = Prometheus(tmp_path / "prometheus", [f"127.0.0.1:{node.monitor_port}" for node in nodes])
            async with prometheus.running():
                await watch(prometheus, nodes)
        finally:
            await asyncio.gather(*(node.kill() for node in nodes))


async def watch(prometheus: Prometheus, nodes: list[NodeProcess]) -> None:
    """Targets, rules, descriptions, expressions, and what is seen when a node is killed."""
    client = await connect(*(node.url for node in nodes))  # what it sends is no event that the tree understands
    await client.jetstream().publish("river.stripe.webhook", json.dumps({"type": "unknown"}).encode())
    await prometheus.until('sum(up{job="nimsnats"})', 3)
    await prometheus.until("min(nimsnats_cluster_size)", 3)
    await prometheus.until("sum(nimsnats_raft_meta_leader)", 1)
    await prometheus.until("min(nimsnats_raft_meta_members)", 3)
    await prometheus.until("min(nimsnats_cluster_connected_peers)", 2)
    await prometheus.until("min(nimsnats_registry_registered)", 1)
    targets = (await prometheus.ask("targets"))["activeTargets"]
    assert [target["health"] for target in targets] == ["up"] * 3
    groups = (await prometheus.ask("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 30
    while not all(rule["health"] == "ok" for rule in rules):
        assert not any(rule["health"] == "err" for rule in rules), rules
        await asyncio.sleep(0.5)
        rules = [rule for group in (await prometheus.ask("rules"))["groups"] for rule in group["rules"]]
    poison = 'ALERTS{alertname="NimsnatsForestItemsGivenUp", alertstate="firing"}'
    await prometheus.until(f"count({poison})", 1)
    (alert,) = [alert for alert in (await prometheus.ask("alerts"))["alerts"] if alert["state"] == "firing"]
    assert alert["annotations"]["summary"].startswith("tree-river-stripe-webhook on 127.0.0.1:")
    await all_described(prometheus)
    empty = [expr for expr in expressions() if not (await prometheus.ask("query", query=expr))["result"]]
    assert all(re.search("forest_|rate\\(|increase\\(|deriv\\(", expr) for expr in empty), empty
    await client.close()
    await nodes[2].kill()
    await prometheus.until('count(ALERTS{alertname="NimsnatsNodeDown", alertstate="pending"})', 1)
    await prometheus.until('max(nimsnats_raft_peer_lost{peer="n3"})', 1)
    await prometheus.until("sum(nimsnats_raft_meta_leader)", 1)
    await prometheus.until("max(nimsnats_raft_groups_leaderless)", 0)
    await nodes[2].start()
    await prometheus.until('sum(up{job="nimsnats"})', 3)
    await prometheus.until('max(nimsnats_raft_peer_lost{peer="n3"})', 0)
