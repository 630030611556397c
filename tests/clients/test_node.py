"""@nats-io/* for Node.js: the script beside this file does one round trip of everything."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from nimsnats import Server

PROJECT = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script with its dependencies installed beside it, in a temporary folder."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs Node.js and npm")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "round_trip.mjs"):
        shutil.copy(PROJECT / name, folder / name)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=50)
    return folder / "round_trip.mjs"


async def test_round_trip(script: Path, nats_server: Server) -> None:
    node = await asyncio.create_subprocess_exec(
        "node", str(script), nats_server.url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(node.communicate(), 30)
    assert node.returncode == 0 and b"all done" in output, output.decode()
