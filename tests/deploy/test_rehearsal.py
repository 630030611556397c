"""The guide for operators, rehearsed: installed machines come, go and are upgraded while they are used."""

from __future__ import annotations

import pytest

from tests.chaos.command import run_command

pytestmark = [pytest.mark.extended, pytest.mark.timeout(600)]


def test_three_machines_become_five_become_two_and_are_upgraded() -> None:
    said = run_command("tests.deploy")
    assert "n5 joins: 5 nodes" in said and ": 2 nodes" in said and said.count("is upgraded") == 4
    assert "none lost, none twice, all in order" in said
