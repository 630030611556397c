"""The way between two machines is cut: both kernels notice it by themselves, and the next connection is a new one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.network import Network, NotPermitted
from tests.chaos.world import HostedNode, HostedRegistry

pytestmark = pytest.mark.extended


def test_a_connection_that_a_cut_has_broken_is_not_waited_for(tmp_path: Path) -> None:
    try:
        with Network() as network:
            registry = HostedRegistry(network, tmp_path / "registry")
            url = f"http://{registry.address}:8500"
            nodes = [HostedNode(network, name, tmp_path, url) for name in ("n1", "n2")]
            asyncio.run(_cut_and_heal(network, registry, nodes))
    except NotPermitted as error:
        pytest.skip(str(error))


async def _cut_and_heal(network: Network, registry: HostedRegistry, nodes: list[HostedNode]) -> None:
    try:
        await registry.start()
        for node in nodes:
            await node.start()
        marks = [len(node.log) for node in nodes]
        for way in (("n1", "n2"), ("n2", "n1")):
            await asyncio.to_thread(network.cut, *way)
        for node, mark in zip(nodes, marks, strict=True):
            # PINGs would end it as stale, many seconds later
            closed = await _logged(node, "Router connection closed", mark)
            assert "Stale" not in closed, closed
        marks = [len(node.log) for node in nodes]
        await asyncio.to_thread(network.heal)
        for node, mark in zip(nodes, marks, strict=True):
            await _logged(node, "Route connection created", mark)
    finally:
        for node in (*nodes, registry):
            await node.kill()


async def _logged(node: HostedNode, text: str, since: int) -> str:
    """The line with this text, once it is there."""
    while True:
        found = next((line for line in node.log[since:] if text in line), None)
        if found is not None:
            return found
        await asyncio.sleep(0.05)
