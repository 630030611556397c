"""`python -m tests.deploy`: a rehearsal of the guide for operators, under load.

Three machines are installed, two join, three leave again, and both that remain are upgraded to another version. Prints
how long publishing stood still at each step, and whether every promise was kept. Needs the right to make network
namespaces, and a package index. Ends with 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from tests.chaos import campaign, faults
from tests.chaos.__main__ import SKIPPED, conduct, stopwatch
from tests.chaos.world import World
from tests.deploy import packages
from tests.deploy.machines import SECRET, InstalledNode

_FIRST, _SECOND = "1.0.0", "1.1.0"
_INSTALLED = 600.0
"""Seconds for a step at most: most of them install a release first, as fast as the machine can."""


def main() -> int:
    """Build the packages, rehearse, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy")
    parser.add_argument("--seed", type=int, default=1, help="chooses who leaves")
    parser.add_argument("--logs", type=Path, help="an existing folder for what the nodes log")
    options = parser.parse_args()
    say = stopwatch()
    with tempfile.TemporaryDirectory(prefix="nims-deploy-") as folder:
        wheels = Path(folder) / "wheels"
        first, second = (packages.build_wheel(Path(folder) / version, version) for version in (_FIRST, _SECOND))
        try:
            packages.gather(first, wheels)
        except subprocess.CalledProcessError as error:
            print(f"no package index: {error.stderr.decode()[-300:]}")
            return SKIPPED
        say("packages are built")
        made = campaign.world(make_node=partial(InstalledNode, wheel=first, wheels=wheels), secret=SECRET)
        return conduct(made, lambda world: rehearse(world, second, options, say))


async def rehearse(
    world: World, second: Path, options: argparse.Namespace, say: Callable[[str], None]
) -> campaign.Report:
    """All steps, one after the other."""
    async with campaign.running(world, options.seed, 3, say, options.logs) as under_load:
        for step in (faults.quiet, campaign.one_more, campaign.one_more, *[campaign.one_less] * 3):
            await under_load.happen(step, _INSTALLED)
        for position in range(len(world.members)):
            await under_load.happen(upgrade(position, second), _INSTALLED)
        return await under_load.conclude()


def upgrade(position: int, wheel: Path) -> faults.Fault:
    """One node is brought to another version."""

    async def upgraded(world: World, _chance: Random) -> str:
        node = world.members[position]
        assert isinstance(node, InstalledNode)
        said = await asyncio.to_thread(node.install, wheel)
        assert f"Program: installed {_SECOND}" in said, said
        assert await node.terminate() == 0, f"{node.name} did not end in order"
        node.log.clear()
        await node.start()
        assert any(f"Version:  {_SECOND} " in line for line in node.log), node.log
        return f"{node.name} is upgraded"

    return upgraded


if __name__ == "__main__":
    sys.exit(main())
