"""Many filters at once: what they match is what each of them matches."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nimsnats.protocol import subject as subjects
from nimsnats.protocol.subject import any_matcher, has_empty_token, matcher

TOKENS = st.sampled_from([b"a", b"b", b"*", b">", b"a*", b">b"])
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=4).map(b".".join)


@given(st.lists(SUBJECTS, min_size=1, max_size=12), SUBJECTS)
@settings(max_examples=500, deadline=None)
def test_many_filters_match_what_one_of_them_matches(patterns: list[bytes], subject: bytes) -> None:
    assert not has_empty_token(subject)
    assert any_matcher(patterns)(subject) == any(matcher(pattern)(subject) for pattern in patterns), subject


def test_a_subject_is_not_compared_with_each_of_many_filters() -> None:
    compared = subjects.is_subset.cache_info()
    test = any_matcher([b"t.*.a.%d" % n for n in range(1000)] + [b"t.%d" % n for n in range(1000)])
    found = [subject for subject in (b"t.x.a.%d" % n for n in range(0, 20_000, 999)) if test(subject)]
    assert found == [b"t.x.a.0", b"t.x.a.999"]
    assert test(b"t.7") and not test(b"t.1000")
    assert subjects.is_subset.cache_info() == compared
