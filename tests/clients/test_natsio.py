"""natsio: the script beside this file does one round trip of everything, with a Python that natsio 1.x supports."""

from __future__ import annotations

import asyncio
import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nimsnats import Server

SCRIPT = Path(__file__).with_name("natsio_round_trip.py")
_OLDEST = (3, 13)


def interpreters() -> list[str]:
    """Pythons that may be new enough: our own, those on the path, those of a pyenv."""
    found = [sys.executable] if sys.version_info >= _OLDEST else []
    found += [path for name in ("python3.15", "python3.14", "python3.13") if (path := shutil.which(name))]
    root = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    return found + sorted(glob.glob(f"{root}/versions/3.1[3-9]*/bin/python"), reverse=True)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with natsio 1.x in an environment of its own."""
    folder = tmp_path_factory.mktemp("natsio")
    for candidate in interpreters():
        made = subprocess.run([candidate, "-m", "venv", str(folder)], check=False, capture_output=True, timeout=50)
        if made.returncode == 0:
            break
    else:
        pytest.skip("natsio 1.x needs Python 3.13 or newer")
    install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "natsio>=1"]
    subprocess.run(install, check=True, capture_output=True, timeout=50)
    return str(folder / "bin/python")


async def test_round_trip(python: str, nats_server: Server) -> None:
    process = await asyncio.create_subprocess_exec(
        python, str(SCRIPT), nats_server.url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0 and b"all done" in output, output.decode()
