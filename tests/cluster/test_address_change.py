"""A machine of a cluster gets another address: its node registers it, and the routes follow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.network import Network, NotPermitted
from tests.chaos.world import HostedNode, HostedRegistry

pytestmark = pytest.mark.extended


class Wanderer(HostedNode):
    """A node that finds its address by itself."""

    def _command_line(self) -> list[str]:
        line = super()._command_line()
        at = line.index("--advertise")
        return line[:at] + line[at + 2 :]


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        with Network() as found:
            yield found
    except NotPermitted as error:
        pytest.skip(str(error))


def test_routes_follow_a_machine_to_its_new_address(network: Network, tmp_path: Path) -> None:
    registry = HostedRegistry(network, tmp_path / "registry")
    nodes = [Wanderer(network, name, tmp_path, f"http://{registry.address}:8500") for name in ("n1", "n2", "n3")]

    def logged(node: HostedNode, text: str, since: int) -> bool:
        return any(text in line for line in node.log[since:])

    async def until_logged(node: HostedNode, text: str, since: int) -> None:
        try:
            async with asyncio.timeout(30):
                while not logged(node, text, since):  # noqa: ASYNC110 - the log of another process
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError("\n".join([f"no {text!r} of {node.name}", *node.log[since:]])) from None

    async def test() -> None:
        try:
            await registry.start()
            for node in nodes:
                await node.start()
            marks = [len(node.log) for node in nodes]
            address = await asyncio.to_thread(network.move, "n3")
            await until_logged(nodes[2], f"Advertising {address} to other nodes instead of", marks[2])
            for node, mark in zip(nodes[:2], marks[:2], strict=True):
                await until_logged(node, f"Discovered peer n3 at {address}:6222", mark)
                await until_logged(node, f"{address}:", mark)
                await until_logged(node, '"n3" - Route connection created', mark)
            await until_logged(nodes[2], '"n1" - Route connection created', marks[2])
            await until_logged(nodes[2], '"n2" - Route connection created', marks[2])
        finally:
            for node in (*nodes, registry):
                await node.kill()

    asyncio.run(test())
