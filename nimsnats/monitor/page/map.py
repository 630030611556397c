"""Draws the map of the cluster: its nodes on a circle, and the links between them, as SVG.

Owns geometry and shapes. State is told three times: by a shape, by a word beside it and, last, by colour. The drawing
has no styles of its own, `status.css` colours it in light and dark. Sized so that it can be read at the width of a
phone; every figure in it is in the page's tables too. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import cos, hypot, pi, sin
from typing import Final
from urllib.parse import quote

from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.page import present

_WIDTH: Final = 400.0
_ROOM: Final = 74.0
"""Units that a node wants along the circle."""
_SMALLEST: Final = 126.0
_LARGEST: Final = 138.0
"""The circle's radius with few nodes, and the largest that fits the drawing's usual width."""
_ALL_LABELLED: Final = 4
"""Nodes up to which every link shows its round trip; beyond, those of this page's node do."""
_CROWD: Final = 12
"""Nodes beyond which names stand outside of the circle, and only what is wrong has words."""
_NODE: Final = 20.0
"""Half a node's width."""

_SHAPES: Final = {
    "healthy": '<circle r="20"/><path class="glyph" d="M-8 0.5l5.5 6L8.5-6"/>',
    "degraded": '<path d="M0-22.5l23 38.5h-46z"/><path class="glyph" d="M0-8.5v12M0 9.4v.6"/>',
    "silent": '<circle r="20" class="open"/><path class="glyph" d="M-9 0h.1M0 0h.1M9 0h.1"/>',
    "unhealthy": '<path d="M-8.5-20h17l11.5 11.5v17l-11.5 11.5h-17l-11.5-11.5v-17z"/>'
    '<path class="glyph" d="M-6.5-6.5l13 13m0-13l-13 13"/>',
    "away": '<rect x="-18" y="-18" width="36" height="36" rx="3" class="open"/>'
    '<path class="glyph" d="M-6.5-6.5l13 13m0-13l-13 13"/>',
    "core": '<rect x="-18" y="-18" width="36" height="36" rx="9"/><path class="glyph" d="M-8-6h16M-8 0h16M-8 6h16"/>',
}
"""Around the origin: a tick in a circle, an exclamation mark in a triangle, dots in a broken circle, a cross in an
octagon, a cross in a broken square, lines in a square."""
_CROWN: Final = '<path class="crown" d="M9-27l4.2 5 4.3-7.5 4.3 7.5 4.2-5-1.7 11.5h-13.6z"/>'


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node is, and where the lines of its text begin."""

    x: float
    y: float
    above: bool


def cluster_map(overview: JsonObject) -> str:
    """The drawing as an `svg` element. `overview` is `merge.overview`'s."""
    nodes: list[JsonObject] = overview["nodes"]
    places, box = _places([node["name"] for node in nodes])
    own: str = overview["node"]
    drawn = [_link(link, places, own) for link in overview["links"]]
    lines = "".join(line for line, _ in drawn)
    labels = "".join(label for _, label in drawn)
    names = _shortened([node["name"] for node in nodes])
    crowd = len(nodes) > _CROWD
    mark = _crowded if crowd else _node
    marks = "".join(mark(node, names[node["name"]], places[node["name"]], own) for node in nodes)
    many = " many" if crowd else ""
    words = escape(summary(overview))
    return (
        f'<svg class="drawing{many}" viewBox="{box}" role="group" aria-label="Map of the cluster: {words}">'
        f'<g class="lines">{lines}</g>{marks}<g class="labels">{labels}</g></svg>'
    )


def summary(overview: JsonObject) -> str:
    """What the map shows, in a sentence."""
    nodes, links = overview["nodes"], overview["links"]
    if len(nodes) == 1:
        return f"{nodes[0]['name']} is alone. A node that is started with the same registry joins it by itself."
    up = [link for link in links if link["state"] == "up"]
    slowest = max((link["rtt"] or 0 for link in up), default=0)
    share = "All" if len(up) == len(links) else f"{len(up)} of"
    state = f"{share} {len(links)} links {'is' if len(up) == 1 else 'are'} up"
    if len(nodes) == 2 and links:
        state = {"up": "The link is up", "away": "The other node is away"}.get(links[0]["state"], "The link is broken")
    which = "a" if len(up) == 1 else "the slowest"
    return f"{state}{f', {which} round trip takes {present.seconds(slowest / 1e9)}' if slowest else ''}."


def _places(names: list[str]) -> tuple[dict[str, _Place], str]:
    """Each node's place and the drawing's view box."""
    count = len(names)
    if count <= 2:
        across = [0.0] if count == 1 else [-115.0, 115.0]
        return {name: _Place(x, 0, above=False) for name, x in zip(names, across, strict=True)}, "-200 -48 400 130"
    radius = max(_SMALLEST if count < 6 else _LARGEST, _ROOM * count / (2 * pi))
    angles = [2 * pi * number / count - pi / 2 for number in range(count)]
    places = {
        name: _Place(round(radius * cos(angle), 1), round(radius * sin(angle), 1), above=sin(angle) < -0.35)
        for name, angle in zip(names, angles, strict=True)
    }
    half = max(_WIDTH / 2, radius + (150 if count > _CROWD else 62))
    top = min(place.y for place in places.values()) - 90
    bottom = max(place.y for place in places.values()) + 76
    return places, f"{-half:.0f} {top:.0f} {2 * half:.0f} {bottom - top:.0f}"


def _link(link: JsonObject, places: dict[str, _Place], own: str) -> tuple[str, str]:
    """The line, and the label that lies over all lines."""
    one, other = link["nodes"]
    if other == own:
        one, other = other, one
    start, end, state = places[one], places[other], link["state"]
    colour, ends = present.LINK_STATES[state], f'data-a="{escape(one)}" data-b="{escape(other)}"'
    line = (
        f'<line class="{state.replace(" ", "-")}" data-s="{colour}" {ends} '
        f'x1="{start.x:g}" y1="{start.y:g}" x2="{end.x:g}" y2="{end.y:g}"/>'
    )
    text, few = present.link_label(link), len(places) <= _ALL_LABELLED
    if not text or (len(places) > _CROWD and state == "up"):
        return line, ""
    part = _part(start, end, 0.5 if few or state != "up" else 0.62)
    x, y = start.x + (end.x - start.x) * part, start.y + (end.y - start.y) * part
    shown = " shown" if few or own in (one, other) or state != "up" else ""
    return line, (
        f'<text class="rtt{shown}" data-s="{colour}" {ends} x="{x:.1f}" y="{y + 4:.1f}">{escape(text)}</text>'
    )


def _part(start: _Place, end: _Place, usual: float) -> float:
    """How far along a link its label is: on a steep one not where the upper node has its text."""
    if abs(end.x - start.x) > abs(end.y - start.y):
        return usual
    upper, from_start = (start, True) if start.y < end.y else (end, False)
    return usual if upper.above else 0.68 if from_start else 0.32


def _node(node: JsonObject, name: str, place: _Place, own: str) -> str:
    word, marks = present.node_word(node["state"]), _marks(node, own)
    texts = [pair for pair in (("name", name), ("word", word), ("marks", ", ".join(marks))) if pair[1]]
    first = -(_NODE + 12) - 15 * (len(texts) - 1) if place.above else _NODE + 18
    if place.above and node["leader"]:
        first -= 8
    lines = " ".join(
        f'<text class="{kind}" y="{first + 15 * number:g}">{escape(text)}</text>'
        for number, (kind, text) in enumerate(texts)
    )
    return _anchor(node, place, marks, lines, whole=name == node["name"])


def _crowded(node: JsonObject, name: str, place: _Place, own: str) -> str:
    """A node among many: its text goes on from the circle outwards."""
    marks, far = _marks(node, own), hypot(place.x, place.y)
    x, y = place.x / far * 28, place.y / far * 32 + 5
    side = "middle" if abs(x) < 7 else "start" if x > 0 else "end"
    word = "" if node["state"] == "healthy" else present.node_word(node["state"])
    more = f'<tspan class="word" dx="6">{escape(word)}</tspan>' if word else ""
    text = f'<text class="name" text-anchor="{side}" x="{x:.1f}" y="{y:.1f}">{escape(name)}{more}</text>'
    return _anchor(node, place, marks, text, whole=not word and name == node["name"])


def _anchor(node: JsonObject, place: _Place, marks: list[str], text: str, *, whole: bool) -> str:
    """The node's shape with its text, as a link to what the page says of it; `whole` if the text leaves nothing out."""
    name, state = node["name"], node["state"]
    spoken = escape(", ".join([name, present.node_word(state), *marks]))
    return (
        f'<a href="#node-{quote(name)}" class="node" data-key="{escape(name)}" data-s="{present.STATES[state]}" '
        f'aria-label="{spoken}" transform="translate({place.x:g} {place.y:g})">'
        f"{'' if whole else f'<title>{spoken}</title>'}{_SHAPES[state]}{_CROWN if node['leader'] else ''}{text}</a>"
    )


def _marks(node: JsonObject, own: str) -> list[str]:
    return [*(["leader"] if node["leader"] else ()), *(["this node"] if node["name"] == own else ())]


def _shortened(names: Sequence[str]) -> dict[str, str]:
    """Long names without the words that all of them share at their ends, and without their middle if still long."""
    most, head, tail = 20 if len(names) < 6 else 13, 0, 0
    if len(names) > 1 and max(map(len, names)) > most:
        head = _shared(names)
        tail = _shared([name[head:][::-1] for name in names])
    short: dict[str, str] = {}
    for name in names:
        text = f"{'…' if head else ''}{name[head : len(name) - tail]}{'…' if tail else ''}"
        half = most // 2
        short[name] = text if len(text) <= most else f"{text[:half]}…{text[len(text) - half + 1 :]}"
    return short


def _shared(names: Sequence[str]) -> int:
    """The length of what all names begin with, up to the end of a word."""
    first, last = min(names), max(names)
    same = next((n for n, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return len(re.sub(r"[^-._]*$", "", first[:same]))
