"""Times, durations and lifetimes that are none: refused where they come in, in Go's words; no entry sees them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimsnats.jetstream.clock import FARTHEST, SECOND, parse_duration, parse_time
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.expiry import NEVER, Expiry, kept_ttl, parse_early_ttl, parse_ttl
from nimsnats.jetstream.packing import pack, unpack
from nimsnats.protocol.rfc3339 import BadTime, canonical, nanoseconds

LAYOUT = ' as "2006-01-02T15:04:05Z07:00": cannot parse '
BAD = {
    "2023-02-30T00:00:00Z": ": day out of range",
    "2023-04-31T00:00:00Z": ": day out of range",
    "1900-02-29T00:00:00Z": ": day out of range",
    "2023-01-00T00:00:00Z": ": day out of range",
    "2023-00-10T00:00:00Z": ": month out of range",
    "2023-13-01T00:00:00Z": ": month out of range",
    "2023-02-28T24:00:00Z": ": hour out of range",
    "2023-02-28T24:60:00Z": ": hour out of range",
    "2023-02-28T23:60:00Z": ": minute out of range",
    "2016-12-31T23:59:60Z": ": second out of range",
    "2023-01-01T00:00:00-99:99": ": time zone offset minute out of range",
    "2023-01-01T00:00:00+25:00": ": time zone offset hour out of range",
    "2023-1-1T00:00:00Z": LAYOUT + '"1-1T00:00:00Z" as "01"',
    "2023-01-01t00:00:00z": LAYOUT + '"t00:00:00z" as "T"',
    "2023-01-01 00:00:00Z": LAYOUT + '" 00:00:00Z" as "T"',
    "2023-01-01T00:00:00": LAYOUT + '"" as "Z07:00"',
    "2023-01-01T00:00:00.Z": LAYOUT + '".Z" as "Z07:00"',
    "2023-01-01T00:00:00+5:00": LAYOUT + '"+5:00" as "Z07:00"',
    "12023-01-01T00:00:00Z": LAYOUT + '"3-01-01T00:00:00Z" as "-"',
    "2023-01-01T00:00:00Z ": ': extra text: " "',
    "": LAYOUT + '"" as "2006"',
    "yesterday": LAYOUT + '"yesterday" as "2006"',
}
"""Texts and what nats-server 2.12 says about them behind `parsing time "<text>"`."""


@pytest.mark.parametrize("text", BAD)
def test_a_time_that_is_none_is_refused_in_the_words_of_go(text: str) -> None:
    with pytest.raises(BadTime) as refusal:
        canonical(text)
    assert str(refusal.value) == f'parsing time "{text}"{BAD[text]}'
    with pytest.raises(ValueError):
        parse_time(text)


def test_a_bad_time_is_quoted_and_cut() -> None:
    with pytest.raises(BadTime, match=r'parsing time "a\\x0a\\"\\xef\\xbc\\x92" as'):
        canonical('a\n"\uff12')
    with pytest.raises(BadTime) as refusal:
        canonical("9" * 1_000_000)
    assert len(str(refusal.value)) < 1_000


@pytest.mark.parametrize(
    ("text", "written", "ns"),
    [
        ("2023-01-01T0:00:00Z", "2023-01-01T00:00:00Z", 1672531200 * SECOND),
        ("2023-01-01T00:00:00,50Z", "2023-01-01T00:00:00.5Z", 1672531200 * SECOND + SECOND // 2),
        ("2023-01-01T00:00:00." + "1" * 5000 + "Z", "2023-01-01T00:00:00.111111111Z", 1672531200111111111),
        ("2023-01-01T00:00:00+00:00", "2023-01-01T00:00:00Z", 1672531200 * SECOND),
        ("2023-01-01T00:00:00-23:59", "2023-01-01T00:00:00-23:59", (1672531200 + 86340) * SECOND),
        ("0001-01-01T00:00:00+00:00", "0001-01-01T00:00:00Z", 0),
        ("0000-02-29T00:00:00Z", "0000-02-29T00:00:00Z", -FARTHEST),
        ("9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59-23:59", FARTHEST),
    ],
)
def test_what_go_takes_is_written_as_go_writes_it(text: str, written: str, ns: int) -> None:
    assert canonical(text) == written == canonical(written)
    assert parse_time(written) == ns


@given(st.datetimes(timezones=st.just(UTC)))
@settings(max_examples=200, deadline=None)
def test_every_moment_is_read_as_it_is(moment: datetime) -> None:
    seconds = round((moment.replace(microsecond=0) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    assert nanoseconds(moment.isoformat()) == seconds * SECOND + moment.microsecond * 1000
    assert nanoseconds(canonical(moment.isoformat())) == nanoseconds(moment.isoformat())


@given(st.text(alphabet="0123456789-:.,TZ+ tz", max_size=40) | st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_time_within_64_bits_or_a_refusal(text: str) -> None:
    try:
        written = canonical(text)
    except BadTime:
        return
    assert -FARTHEST <= parse_time(written) <= FARTHEST


TTLS: dict[bytes, int | None] = {
    b"1": SECOND,
    b"00005": 5 * SECOND,
    b"1h": 3600 * SECOND,
    b"1.5s": SECOND * 3 // 2,
    b"9223372036": 9223372036 * SECOND,
    b"2562047h47m16.854775807s": FARTHEST,
    b"never": NEVER,
    b"NEVER": NEVER,
    b"": 0,
    b"1." + b"1" * 5000 + b"s": 1_111_111_111,
    b"9223372037": None,
    b"99999999999999999999": None,
    b"18446744073709551617": None,
    b"1" * 5000: None,
    b"1" * 5000 + b"s": None,
    b"2562048h": None,
    b"9223372036854775808ns": None,
    b"9999999h9999999h": None,
    b"0": None,
    b"0s": None,
    b"999ms": None,
    b"-1": None,
    b"-5s": None,
    b"1e3": None,
    b"1.5": None,
    b"1_000": None,
    "\uff11\uff12".encode(): None,
    "٣".encode(): None,
    b"\xff": None,
    b"5 s": None,
    b"1h-1s": None,
    b"inf": None,
}


@pytest.mark.parametrize("text", TTLS, ids=lambda text: repr(text[:24]))
def test_a_lifetime_fits_into_64_bits_or_is_refused(text: bytes) -> None:
    if (ttl := TTLS[text]) is not None:
        assert parse_ttl(text) == kept_ttl(text) == ttl
        return
    with pytest.raises(ApiError) as refusal:
        parse_ttl(text)
    assert refusal.value.err_code == 10165


@given(st.sampled_from(sorted(TTLS)) | st.binary(max_size=30) | st.from_regex(rb"\A[0-9]{1,40}(s|h|ms)?\Z"))
@settings(max_examples=200, deadline=None)
def test_whatever_was_stored_keeps_a_deadline_that_a_snapshot_can_hold(text: bytes) -> None:
    expiry = Expiry()
    for read in (parse_ttl, parse_early_ttl, kept_ttl):
        try:
            expiry.add(1, read(text), FARTHEST - 1)
        except ApiError as error:
            assert error.err_code == 10165
    again = Expiry()
    again.restore(unpack(pack(expiry.stored())))
    assert again.deadlines == expiry.deadlines


@pytest.mark.parametrize(
    "text", ["9223372036854775808ns", "2562048h", "-2562048h", "1" * 400 + "h", "\uff11s", "1 s", ""]
)
def test_a_duration_beyond_64_bits_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)
