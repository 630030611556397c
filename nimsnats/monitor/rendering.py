"""Large answers as JSON, made in slices: a page over thousands of streams or connections keeps nobody waiting.

Owns when a rendering gives the loop back; what is rendered looks as `format.pretty` has it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from nimsnats.monitor.format import escaped

if TYPE_CHECKING:
    from nimsnats.slices import Slices

_LOOK: Final = 256
"""Pieces between two looks at how long it has taken."""


async def pretty_in_slices(slices: Slices, value: object, indent: int = 2) -> bytes:
    """What `pretty` returns. Nothing in `value` may change meanwhile."""
    separators = None if indent else (",", ":")
    encoder = json.JSONEncoder(indent=indent or None, separators=separators, ensure_ascii=False)
    parts: list[bytes] = []
    pieces: list[str] = []
    end = slices.end()
    for piece in encoder.iterencode(value):
        pieces.append(piece)
        if len(pieces) >= _LOOK:
            parts.append(escaped("".join(pieces)))
            pieces.clear()
            if slices.over(end):
                end = await slices.rest()
    parts.append(escaped("".join(pieces)))
    return b"".join(parts)
