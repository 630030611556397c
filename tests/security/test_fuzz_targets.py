"""Every fuzzing target with its seeds and some mutations of them; the campaign is `python -m tests.security.fuzz`."""

from __future__ import annotations

import pytest

from tests.security.fuzz.mutation import mutations
from tests.security.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    target = TARGETS[name]
    for number, data in enumerate(mutations(target, 250, seed=1)):
        try:
            target.run(data)
        except Exception as error:
            pytest.fail(f"input {number} of {name}, {data!r}: {type(error).__name__}: {error}")
