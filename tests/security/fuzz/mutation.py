"""Inputs out of seeds without any extra package: flips, cuts, repeats, insertions, crossings, by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.security.fuzz.target import Target

_EDGES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"-1", b"18446744073709551616", b"\r\n", b"\xf0\x9f\x8c\xb2")


def mutations(target: Target, count: int, seed: int) -> Iterator[bytes]:
    """Every seed of the target, then `count` mutations of them."""
    yield from target.seeds
    chance = random.Random(seed)
    for _ in range(count):
        data = chance.choice(target.seeds)
        for _ in range(chance.choice((1, 1, 2, 4, 8))):
            data = _changed(chance, data, target)
        yield data[: target.longest]


def _changed(chance: random.Random, data: bytes, target: Target) -> bytes:
    at = chance.randrange(len(data) + 1)
    until = min(len(data), at + chance.choice((1, 1, 2, 4, 16, 64)))
    match chance.randrange(6):
        case 0:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[until:]
        case 2:
            return data[:at] + data[at:until] * chance.choice((2, 3, 50)) + data[until:]
        case 3:
            return data[:at] + chance.choice([*target.words, *_EDGES]) + data[at:]
        case 4:
            return data[:at] + chance.choice([*target.words, *_EDGES]) + data[until:]
        case _:
            other = chance.choice(target.seeds)
            return data[:at] + other[chance.randrange(len(other) + 1) :]
