"""The tree of patterns against the comparison of two."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nimsnats.protocol.overlap import Overlap, first_overlap
from nimsnats.protocol.subject import collide

_TOKEN = st.sampled_from([b"a", b"b", b"c", b"*"])
_PATTERN = st.builds(
    lambda tokens, rest: b".".join([*tokens, *rest]),
    st.lists(_TOKEN, min_size=1, max_size=4),
    st.sampled_from([[], [b">"]]),
)


@given(st.lists(_PATTERN, max_size=8), _PATTERN)
def test_agrees_with_comparing_each(patterns: list[bytes], pattern: bytes) -> None:
    assert Overlap(patterns).collides(pattern) == any(collide(pattern, other) for other in patterns)
    pairs = ((a, b) for a in range(len(patterns)) for b in range(a + 1, len(patterns)))
    assert first_overlap(patterns) == next((p for p in pairs if collide(patterns[p[0]], patterns[p[1]])), None)


def test_everything_overlaps_with_a_lonely_rest() -> None:
    assert Overlap([b">"]).collides(b"a") and Overlap([b"a"]).collides(b">") and not Overlap().collides(b">")


def test_thousands_of_subjects_are_no_work() -> None:
    assert first_overlap([b"a.*.%d" % n for n in range(20_000)]) is None
