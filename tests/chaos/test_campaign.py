"""Three minutes of faults on processes in network namespaces, as the command runs them, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pyroute2 import netns

from tests.chaos.__main__ import SKIPPED

pytestmark = [pytest.mark.extended, pytest.mark.timeout(600)]


def chaos(*arguments: str) -> str:
    """Run the command; what it printed."""
    before = set(netns.listnetns())
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments], capture_output=True, text=True, check=False, timeout=550
    )
    print(done.stdout)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert set(netns.listnetns()) <= before, "namespaces were left behind"
    return done.stdout


def test_whatever_comes() -> None:
    assert "none lost, none twice, all in order" in chaos("--minutes", "3", "--seed", "3")


def test_from_one_node_to_five_and_back() -> None:
    assert "n5 joins: 5 nodes" in chaos("--plan", "growth")
