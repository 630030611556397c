"""What a fuzzing target is: bytes in, nothing out, and an exception for every broken promise."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Target:
    """One reader of outside bytes.

    `run` handles the errors that the reader documents; whatever leaves it is a finding. `seeds` are where inputs start
    from, `words` what mutations put in, `longest` the most bytes of an input.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()
    longest: int = 4096


def pieces_of(data: bytes) -> list[bytes]:
    """`data` cut into pieces of any size, always the same for the same bytes."""
    chance = random.Random(zlib.crc32(data))
    if len(data) <= 128 and chance.random() < 0.3:
        return [data[at : at + 1] for at in range(len(data))]
    edges = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 9)))
    return [data[a:b] for a, b in pairwise([0, *edges, len(data)])]
