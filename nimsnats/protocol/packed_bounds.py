"""How much a msgpack value claims to be, counted before anything is allocated for it.

Owns the count alone; the value itself is read by the msgpack library afterwards. That library knows limits for each
list and each text, but none for a whole value: a megabyte of the right bytes becomes 75 megabytes of empty lists, and
lists that announce more than they hold reserve room for all of it, once for each level.

Format: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


class OutOfBounds(ValueError):
    """A value that is larger or deeper than it may be, cut short, or no msgpack."""


@dataclass(slots=True, frozen=True)
class Bounds:
    """The most that a value may be: in bytes, in elements of all lists and maps together, in lists and maps, in levels
    of them. Python takes some 40 bytes for an element and 64 for a list."""

    size: int
    elements: int
    containers: int
    depth: int
    maps: bool = True


def _scalar(first: int) -> int:
    """Length of a value that begins with that byte and holds no other ones; 0 where that takes a closer look."""
    if first < 0x80 or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
        return 1
    if 0xA0 <= first < 0xC0:
        return 1 + (first & 0x1F)
    return {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}.get(first, 0)


_SCALARS: Final = tuple(map(_scalar, range(256)))
_LENGTHS: Final = {
    0xC4: 1, 0xC5: 2, 0xC6: 4,  # bytes
    0xD9: 1, 0xDA: 2, 0xDB: 4,  # text
    0xDC: 2, 0xDD: 4,  # lists
    0xDE: 2, 0xDF: 4,  # maps
}  # fmt: skip
"""Bytes of the length that follows."""


def check(data: bytes, bounds: Bounds) -> None:
    """Raises OutOfBounds unless `data` is exactly one value within the bounds. Extension types are no values here."""
    if len(data) > bounds.size:
        raise OutOfBounds(f"{len(data)} bytes where {bounds.size} are the most")
    try:
        end = _walk(data, bounds)
    except IndexError:
        end = -1
    if end != len(data):
        raise OutOfBounds("cut short, or followed by something else")


def _walk(data: bytes, bounds: Bounds) -> int:
    """Where the value ends. Raises IndexError or OutOfBounds."""
    scalars = _SCALARS
    at, left, size = 0, 1, len(data)
    elements, containers = bounds.elements, bounds.containers
    above: list[int] = []
    while True:
        while left:
            first = data[at]
            left -= 1
            skip = scalars[first]
            if skip:
                at += skip
                continue
            if first < 0xA0:
                at += 1
                count = first & 0x0F
            else:
                width = _LENGTHS.get(first, 0)
                if not width or at + 1 + width > size:
                    raise OutOfBounds("no msgpack of ours")
                count = int.from_bytes(data[at + 1 : at + 1 + width], "big")
                at += 1 + width
                if first < 0xDC:
                    at += count
                    continue
            if 0x80 <= first < 0x90 or first >= 0xDE:
                if not bounds.maps:
                    raise OutOfBounds("a map where none belongs")
                count *= 2
            elements -= count
            containers -= 1
            if elements < 0 or containers < 0 or count > size - at:
                raise OutOfBounds("more elements than there may be")
            if count:
                if len(above) >= bounds.depth:
                    raise OutOfBounds("nested too deeply")
                above.append(left)
                left = count
        if not above:
            return at
        left = above.pop()
