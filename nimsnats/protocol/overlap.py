"""Whether subjects overlap, for sets of thousands of them.

Owns a tree of patterns by token. Comparing every subject of a stream with every other one takes seconds from a few
thousand subjects on; here each takes one walk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from nimsnats.protocol.subject import WILDCARD_ONE, WILDCARD_REST, collide

_END: Final = b""
"""Key of a node where a pattern ends: no token is empty."""


class _Node(dict[bytes, "_Node"]):
    """What may follow, by token."""


class Overlap:
    """A set of patterns that can be asked whether another pattern matches some subject that one of them matches."""

    def __init__(self, patterns: Iterable[bytes] = ()) -> None:
        self._root = _Node()
        for pattern in patterns:
            self.add(pattern)

    def add(self, pattern: bytes) -> None:
        """Add a pattern."""
        node = self._root
        for token in pattern.split(b"."):
            node = node.setdefault(token or b" ", _Node())
        node[_END] = _Node()

    def remove(self, pattern: bytes) -> None:
        """Take a pattern out; nothing happens when it is not in."""
        path: list[tuple[_Node, bytes]] = []
        node = self._root
        for token in (*[token or b" " for token in pattern.split(b".")], _END):
            below = node.get(token)
            if below is None:
                return
            path.append((node, token))
            node = below
        for parent, token in reversed(path):
            if parent[token]:
                return
            del parent[token]

    def collides(self, pattern: bytes) -> bool:
        """Whether some literal subject matches both `pattern` and one of the set."""
        nodes = [self._root]
        for token in pattern.split(b"."):
            if token == WILDCARD_REST:
                return any(len(node) > (_END in node) for node in nodes)
            if any(WILDCARD_REST in node for node in nodes):
                return True
            if token == WILDCARD_ONE:
                nodes = [child for node in nodes for key, child in node.items() if key != _END]
            else:
                found = [node.get(key) for node in nodes for key in (token or b" ", WILDCARD_ONE)]
                nodes = [child for child in found if child is not None]
            if not nodes:
                return False
        return any(_END in node for node in nodes)


def first_overlap(patterns: Sequence[bytes]) -> tuple[int, int] | None:
    """Positions of the first pattern that overlaps with a later one and of the first such later one."""
    later = Overlap()
    first = -1
    for at in range(len(patterns) - 1, -1, -1):
        if later.collides(patterns[at]):
            first = at
        later.add(patterns[at])
    if first < 0:
        return None
    return first, next(at for at in range(first + 1, len(patterns)) if collide(patterns[first], patterns[at]))
