"""The map of the cluster: who is linked to whom, and a drawing that can be read at every size."""

from __future__ import annotations

import re
from itertools import combinations
from math import hypot
from typing import Any
from xml.etree import ElementTree

import pytest

from nimsnats.monitor.page.facts import EXAMPLE
from nimsnats.monitor.page.map import cluster_map, summary
from nimsnats.monitor.page.merge import Answer, overview
from nimsnats.monitor.view import NodeView

_STATES = ("healthy", "degraded", "unhealthy", "silent", "away", "core")
_NAMES = ("n{}", "elm-{}.forest.example.com", '<"&>{}')


def answer(name: str, routes: dict[str, int], age: float = 0, **more: Any) -> Answer:
    """What a node says of its routes, round trips in nanoseconds."""
    linked = [{"name": far, "rtt": rtt} for far, rtt in routes.items()]
    nothing: dict[str, Any] = {"stream_list": [], "consumer_list": [], "client_list": [], "flow": [], "events": []}
    said = {**EXAMPLE, "name": name, "health": "healthy", "problems": [], "known": [], "routes": linked, **nothing}
    return Answer({**said, **more}, None, age, None)


def seen(view: NodeView, *answers: Answer) -> dict[str, Any]:
    """The cluster as the first of them sees it."""
    return overview(view, answers[0].latest, answers)


def links(found: dict[str, Any]) -> dict[str, tuple[str, int | None]]:
    """State and round trip by the names of both ends."""
    return {" ".join(link["nodes"]): (link["state"], link["rtt"]) for link in found["links"]}


def test_links_are_what_both_ends_say(view: NodeView) -> None:
    found = seen(
        view,
        answer("n1", {"n2": 3000, "n3": 1000, "go": 5}),
        answer("n2", {"n1": 2000, "n3": 1000}),
        answer("n3", {"n1": 4000, "n4": 0}),
        answer("n4", {"n3": 7000}, known=["n1", "n2", "n3", "n4"]),
        answer("n5", {"n1": 1}, age=60),
    )
    assert links(found) == {
        "n1 n2": ("up", 3000), "n1 n3": ("up", 4000), "n3 n4": ("up", 7000), "go n1": ("up", 5),
        "go n2": ("down", None),
        "n2 n3": ("one way", 1000), "n1 n4": ("away", None), "n2 n4": ("away", None),
        "go n3": ("down", None), "go n4": ("away", None),
        **{f"n{number} n5": ("away", None) for number in (1, 2, 3, 4)},
    }  # fmt: skip
    assert "only one of n2 and n3 has a route to the other" in found["problems"]
    assert "no route between go and n2" in found["problems"]
    assert not any("n5" in problem and "route" in problem for problem in found["problems"])
    assert found["status"] == "degraded"


def test_a_large_mesh_is_listed_by_what_matters(view: NodeView) -> None:
    names = [f"n{number:02}" for number in range(40)]
    everybody = [answer(name, {far: 1000 for far in names if far != name}) for name in names]
    everybody[7] = answer("n07", {far: 1000 for far in names if far not in ("n07", "n09")})
    found = links(seen(view, *everybody))
    assert found.pop("n07 n09") == ("one way", 1000)
    assert set(found) == {f"n00 {far}" for far in names[1:]}


def drawing(names: list[str], state: str = "healthy") -> dict[str, Any]:
    """An overview of a full mesh whose last node is in a state."""
    nodes = [{"name": name, "state": "healthy", "leader": name == names[0]} for name in names]
    nodes[-1]["state"] = state
    pairs = [{"nodes": list(pair), "state": "up", "rtt": 300_000} for pair in combinations(names, 2)]
    return {"node": names[0], "nodes": nodes, "links": pairs}


@pytest.mark.parametrize("pattern", _NAMES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 12, 13, 40])
def test_nodes_lie_apart_and_inside(count: int, pattern: str) -> None:
    names = [pattern.format(number) for number in range(count)]
    svg = ElementTree.fromstring(cluster_map(drawing(names)))
    left, top, width, height = map(float, svg.attrib["viewBox"].split())
    marks = svg.findall("a")
    assert [mark.attrib["data-key"] for mark in marks] == names
    assert len(svg.findall("g/line")) == count * (count - 1) // 2
    places = [tuple(map(float, re.findall(r"-?[\d.]+", mark.attrib["transform"]))) for mark in marks]
    for x, y in places:
        assert left + 40 <= x <= left + width - 40 and top + 40 <= y <= top + height - 60
    assert all(hypot(x - u, y - v) >= 55 for (x, y), (u, v) in combinations(places, 2))
    shown = [mark.find("text[@class='name']").text for mark in marks]  # type: ignore[union-attr]
    assert len(set(shown)) == count, "names that are told apart by their middle stay different"


def test_a_state_has_its_own_shape_and_word() -> None:
    shapes, words = set[str](), set[str]()
    for state in _STATES:
        svg = ElementTree.fromstring(cluster_map(drawing(["a", "b"], state)))
        mark = svg.findall("a")[1]
        shapes.add(" ".join(str(sorted(part.attrib.items())) for part in mark if part.tag != "text"))
        words.add(mark.attrib["aria-label"])
    assert len(shapes) == len(words) == len(_STATES)


def test_the_summary_is_a_sentence() -> None:
    assert summary(drawing(["a"])).startswith("a is alone.")
    assert summary(drawing(["a", "b"])) == "The link is up, a round trip takes 0.3 ms."
    broken = drawing(["a", "b", "c"])
    broken["links"][0]["state"] = "down"
    assert summary(broken) == "2 of 3 links are up, the slowest round trip takes 0.3 ms."
