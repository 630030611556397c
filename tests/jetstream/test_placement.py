"""Who a stream's members are to be when nodes leave and others are silent."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nimsnats.jetstream.census import Census
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.meta import StreamRecord
from nimsnats.jetstream.placement import NodeTags, Placement


def members(held: Sequence[str], nodes: Sequence[str], silent: str, **asked: Any) -> str:
    """The members of a stream that wants three, `held` by these, in a cluster of `nodes`; in order, as one word."""
    meta = cast("Any", SimpleNamespace(streams={}, census=Census()))
    placement = Placement(lambda: meta, lambda: nodes, silent.__contains__, "a", NodeTags("a", ()))
    record = StreamRecord("A", "S", "S-A-S-1", 1, {}, list(held))
    config = StreamConfig("S", subjects=["s"], num_replicas=3)
    return "".join(sorted(placement.replace(record, config, **asked)))


@pytest.mark.parametrize(
    ("held", "nodes", "silent", "expected"),
    [
        ("abc", "abd", "", "abd"),  # c leaves, and d takes its place
        ("abc", "abd", "b", "abd"),
        ("abc", "ab", "", "ab"),
        ("abc", "ab", "b", "abc"),  # what is left could agree on nothing
        ("ab", "b", "b", "ab"),
        ("abc", "a", "", "a"),
        ("abc", "de", "", "abc"),  # whoever has its messages is not here
        ("a", "abc", "", "abc"),
        ("abc", "abcd", "c", "abc"),  # silence alone costs nobody his place
    ],
)
def test_members_follow_the_nodes(held: str, nodes: str, silent: str, expected: str) -> None:
    assert members(held, nodes, silent) == expected


def test_an_operator_may_ask_for_anything() -> None:
    assert members("abc", "abcd", "bd", without="c") == "abd"
