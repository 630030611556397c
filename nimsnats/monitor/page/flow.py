"""Draws the forest's flow: six stages with their pictures, joined by pipes that show what moves and what waits.

Owns the markup and the pictures; colours and movement are `status.css`'s. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

_PICTURES: Final = {
    "river": "M4 13c4-4 7-4 10 0s6 4 9 0 6-3 7-1M4 20c4-4 7-4 10 0s6 4 9 0 6-3 7-1M4 27c4-4 7-4 10 0s6 4 9 0 6-3 7-1",
    "tree": "M17 31V15M17 23l6-5M17 20l-5-4M17 4c-6 0-8 4-7 7-4 1-5 4-4 7 1 3 4 4 7 3h8c3 1 6 0 7-3 1-3 0-6-4-7"
    " 1-3-1-7-7-7z",
    "wind": "M4 13h15c4 0 5-6 1-7-2 0-3 1-3 3M4 18h22c5 0 6 8 1 8-2 0-3-1-3-3M4 23h11c4 0 4 6 0 6-1 0-2-1-2-2",
    "nim": "M9 14c0-6 4-9 8-9s8 3 8 9v8c0 4-3 7-8 7s-8-3-8-7zM14 15v2M20 15v2M13 22c2 2 6 2 8 0M17 5V2M6 17h3M25 17h3",
    "humus": "M5 29h24M8 25c0-7 5-11 12-11 0 7-4 11-12 11zM8 25l7-6M22 25c0-4 2-7 6-8 1 5-1 8-6 8z"
    "M13 10c0-3 2-5 5-6 1 4-1 6-5 6z",
    "soil": "M4 14h26M4 21h26M4 28h26M17 14V8M17 9c0-3 2-5 6-5 0 4-2 5-6 5zM17 11c0-2-2-4-5-4 0 3 2 4 5 4z"
    "M9 17.500h.1M20 18h.1M14 24.500h.1M25 24.500h.1",
}
"""Paths in a square of 34 units."""
_PIPE: Final = (
    '<svg class="pipe" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><path d="M0 5h100"/></svg>'
)
_WORKERS: Final = frozenset({"tree", "nim"})
"""Stages that act; the others keep."""


def forest_flow(rows: Sequence[Sequence[Any]]) -> str:
    """The stages as items of a list. `rows` are `present.page`'s of the list "flow"."""
    return "".join(map(_stage, rows))


def _stage(row: Sequence[Any]) -> str:
    key, moving, (title, total, what, rate, waiting) = row
    kind = "worker" if key in _WORKERS else "keeper"
    return (
        f'<li class="{kind}" data-s="{moving}">{_PIPE}'
        f'<svg class="picture" viewBox="0 0 34 34" aria-hidden="true"><path d="{_PICTURES[key]}"/></svg>'
        f'<h3>{escape(title[0])}</h3><p class="figure">{escape(total[0])}</p><p class="what">{escape(what[0])}</p>'
        f'<p class="rate"><span class="unseen">now </span>{escape(rate[0])}</p>'
        f'<p class="note" data-s="{waiting[1]}">{escape(waiting[0])}</p></li>'
    )
