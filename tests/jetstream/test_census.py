"""The sums and indexes over the catalogue are what looking at all of it would say, whatever comes and goes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nimsnats.jetstream.census import Census
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.meta import StreamRecord
from nimsnats.protocol.overlap import Overlap
from nimsnats.protocol.subject import collide

_TOKENS = st.sampled_from(["a", "b", "*"])
_SUBJECT = st.builds(
    lambda tokens, rest: ".".join([*tokens, *([">"] if rest else [])]),
    st.lists(_TOKENS, min_size=1, max_size=3),
    st.booleans(),
)
_SUBJECTS = st.lists(_SUBJECT, max_size=4)


@st.composite
def _records(draw: st.DrawFn) -> StreamRecord:
    account, name = draw(st.sampled_from("AB")), draw(st.sampled_from("xyz"))
    storage, most = draw(st.sampled_from(["file", "memory"])), draw(st.sampled_from([-1, 0, 7]))
    config = StreamConfig(name, subjects=draw(_SUBJECTS), storage=storage, max_bytes=most).to_stored()
    members = draw(st.lists(st.sampled_from("abc"), unique=True))
    return StreamRecord(account, name, f"S-{account}-{name}-1", 1, config, members)


@given(st.lists(st.tuples(_records(), st.booleans()), max_size=12), _SUBJECTS)
def test_it_is_what_all_records_say(steps: list[tuple[StreamRecord, bool]], asked: list[str]) -> None:
    census, all_of_it = Census(), dict[tuple[str, str], StreamRecord]()
    for record, stays in steps:
        if stays:
            all_of_it[record.key] = record
            census.count(record)
        elif (gone := all_of_it.pop(record.key, None)) is not None:
            census.forget(gone)
    wanted = [subject.encode() for subject in asked]
    assert +census.replicas == Counter(member for record in all_of_it.values() for member in record.members)
    for account in "AB":
        found = census.account(account)
        mine = {record.name: record for record in all_of_it.values() if record.account == account}
        assert found.records == mine
        for storage in ("file", "memory"):
            sizes = [one.config["max_bytes"] for one in mine.values() if one.config["storage"] == storage]
            assert found.reserved[storage] == sum(max(size, 0) for size in sizes)
        for but in "xyz":
            others = [s.encode() for one in mine.values() if one.name != but for s in one.config["subjects"]]
            assert found.taken(wanted, but) == any(collide(a, b) for a in wanted for b in others)


@given(st.lists(_SUBJECT, max_size=6), st.lists(_SUBJECT, max_size=6), _SUBJECT)
def test_what_was_taken_out_of_an_overlap_is_out(kept: list[str], gone: list[str], asked: str) -> None:
    overlap = Overlap([subject.encode() for subject in {*kept, *gone}])
    for subject in {*gone} - {*kept}:
        overlap.remove(subject.encode())
        overlap.remove(subject.encode())
    assert overlap.collides(asked.encode()) == any(collide(asked.encode(), subject.encode()) for subject in kept)


def test_a_stream_that_changes_in_place_is_counted_as_it_is() -> None:
    census = Census()
    record = StreamRecord("A", "S", "S-A-S-1", 1, StreamConfig("S", subjects=["a"]).to_stored(), ["m"])
    census.count(record)
    record.follow(StreamConfig("S", subjects=["b"], max_bytes=9).to_stored(), ["n"])
    census.count(record)
    found = census.account("A")
    assert (found.taken([b"a"], ""), found.taken([b"b"], ""), found.taken([b"b"], "S")) == (False, True, False)
    assert found.reserved["file"] == 9 and +census.replicas == Counter("n")
