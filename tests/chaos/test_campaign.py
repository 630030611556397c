"""Three minutes of faults on processes in network namespaces, as the command runs them, and nothing left behind."""

from __future__ import annotations

import pytest

from tests.chaos.command import run_command

pytestmark = [pytest.mark.extended, pytest.mark.timeout(600)]


def test_whatever_comes() -> None:
    assert "none lost, none twice, all in order" in run_command("tests.chaos", "--minutes", "3", "--seed", "3")


def test_from_one_node_to_five_and_back() -> None:
    assert "n5 joins: 5 nodes" in run_command("tests.chaos", "--plan", "growth")
