"""Durations in Go's notation."""

from __future__ import annotations

import pytest

from nimsnats.config import format_duration, parse_duration


@pytest.mark.parametrize(("text", "seconds"), [
    ("10s", 10.0), ("1h30m", 5400.0), ("250ms", 0.25), ("1.5s", 1.5), (".5s", 0.5), ("-1m", -60.0), ("+2s", 2.0),
    ("0", 0.0), ("100us", 1e-4), ("100µs", 1e-4), ("5ns", 5e-9), ("2h1m3.5s", 7263.5), ("1.s", 1.0),
])  # fmt: skip
def test_parse(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "reason"), [
    ("", 'time: invalid duration ""'), ("abc", 'time: invalid duration "abc"'), (".s", 'time: invalid duration ".s"'),
    ("10", 'time: missing unit in duration "10"'), ("10x", 'time: unknown unit "x" in duration "10x"'),
    ("1s2", 'time: missing unit in duration "1s2"'), ("1.2.3s", 'time: missing unit in duration "1.2.3s"'),
    ("-", 'time: invalid duration "-"'), ("9999999h", 'time: invalid duration "9999999h"'),
])  # fmt: skip
def test_refuse(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^time: ") as caught:
        parse_duration(text)
    assert str(caught.value) == reason


@pytest.mark.parametrize("text", ["0s", "5s", "1m30s", "1h0m0s", "250ms", "1.5s", "2h3m4.5s", "100µs", "5ns", "-10s"])
def test_format_is_the_inverse(text: str) -> None:
    assert format_duration(parse_duration(text)) == text
