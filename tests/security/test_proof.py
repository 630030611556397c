"""The proof of a secret is good for one exchange, one direction, one pair of names, one protocol - and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nimsnats.proof import Exchange, Role, is_nonce, nonce

SOURCE = random.Random(1)
EXCHANGE = Exchange("test 1", ("A", "i1"), ("B", "i2"), nonce(SOURCE), nonce(SOURCE), b"channel")


@pytest.mark.parametrize("role", Role)
def test_both_sides_come_to_the_same_proof(role: Role) -> None:
    proof = EXCHANGE.proof("secret", role)
    assert replace(EXCHANGE).proves("secret", role, proof)
    assert "secret" not in proof


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "test 2"},
        {"opener": ("B", "i1")},
        {"opener": ("A", "i1", "")},
        {"opener": ("Ai", "1")},
        {"opener": ("A",), "answerer": ("i1", "B", "i2")},
        {"answerer": ("B", "i3")},
        {"opener_nonce": nonce(SOURCE)},
        {"answerer_nonce": nonce(SOURCE)},
        {"opener_nonce": EXCHANGE.answerer_nonce, "answerer_nonce": EXCHANGE.opener_nonce},
        {"opener": EXCHANGE.answerer, "answerer": EXCHANGE.opener},
        {"channel": b""},
    ],
)
def test_a_proof_is_good_for_nothing_else(other: dict[str, object]) -> None:
    for role in Role:
        assert not replace(EXCHANGE, **other).proves("secret", role, EXCHANGE.proof("secret", role))  # type: ignore[arg-type]


def test_neither_the_other_direction_nor_another_secret_nor_anything_short_of_it() -> None:
    proof = EXCHANGE.proof("secret", Role.OPENER)
    assert not EXCHANGE.proves("secret", Role.ANSWERER, proof)
    for given in ("", proof[:-1], proof.upper(), proof + "0", "\ud800", "é"):
        assert not EXCHANGE.proves("secret", Role.OPENER, given)
    assert not EXCHANGE.proves("Secret", Role.OPENER, proof)
    with pytest.raises(ValueError, match="empty"):
        EXCHANGE.proof("", Role.OPENER)


@pytest.mark.parametrize(
    "text", ["", "00" * 32, "ff" * 32, "ab" * 31, "ab" * 33, "AB" + "cd" * 31, "g0" * 32, "٣" * 64]
)
def test_a_nonce_that_was_not_drawn_is_none(text: str) -> None:
    assert not is_nonce(text)
    weak = replace(EXCHANGE, opener_nonce=text)
    assert not weak.proves("secret", Role.ANSWERER, weak.proof("secret", Role.ANSWERER))


def test_a_challenge_that_is_sent_back_proves_nothing() -> None:
    mirrored = replace(EXCHANGE, answerer_nonce=EXCHANGE.opener_nonce)
    assert not mirrored.proves("secret", Role.ANSWERER, mirrored.proof("secret", Role.ANSWERER))


def test_nonces_are_drawn_anew() -> None:
    drawn = {nonce(SOURCE) for _ in range(1000)}
    assert len(drawn) == 1000
    assert all(map(is_nonce, drawn))
