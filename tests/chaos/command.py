"""The commands of these tests as a user runs them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pyroute2 import netns

from tests.chaos.__main__ import SKIPPED


def run_command(module: str, *arguments: str) -> str:
    """Run `python -m module`; what it printed. It has to succeed and to leave no namespaces behind."""
    before = set(netns.listnetns())
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False, timeout=550
    )
    print(done.stdout)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert set(netns.listnetns()) <= before, "namespaces were left behind"
    return done.stdout
