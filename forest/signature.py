"""Stripe's signature scheme for webhooks, and the same scheme for whoever signs like Stripe.

Owns: `Stripe-Signature: t=<unix seconds>,v1=<hex>[,v1=<hex>…]`, where v1 is HMAC-SHA256 over `<t>.<body>` with the
endpoint's secret. Source: Stripe documentation, "Verify webhook signatures manually". Pure functions; the time is an
argument. Unknown schemes (v0) are ignored, several v1 and several secrets (rotation) are all tried, each in
constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

TOLERANCE = 300.0
"""Seconds by which the signature's time may differ from ours, either way (Stripe's own default)."""

_MAX_SIGNATURES = 16


class BadSignature(Exception):
    """The signature does not prove that the body is genuine and fresh; the text says why, for the log."""


def sign(body: bytes, secret: str, timestamp: int) -> str:
    """The header's value for `body`."""
    return f"t={timestamp},v1={_digest(body, secret, str(timestamp))}"


def verify(header: str, body: bytes, secrets: Sequence[str], now: float, *, tolerance: float = TOLERANCE) -> None:
    """Check `body` against the header's signatures at the time `now` (seconds). Raises BadSignature."""
    timestamp = ""
    given: list[str] = []
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        if name == "t":
            timestamp = value
        elif name == "v1" and value.isascii():
            given.append(value)
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        raise BadSignature("no timestamp")
    if not given:
        raise BadSignature("no v1 signature")
    # Signature first: somebody without the secret learns nothing about our clock.
    genuine = False
    for secret in secrets:
        expected = _digest(body, secret, timestamp).encode()
        for signature in given[:_MAX_SIGNATURES]:
            genuine |= hmac.compare_digest(expected, signature.encode(errors="surrogateescape"))
    if not genuine:
        raise BadSignature("no signature matches")
    if abs(now - int(timestamp)) > tolerance:
        raise BadSignature(f"timestamp {timestamp} is outside the tolerance of {tolerance:g} s")


def _digest(body: bytes, secret: str, timestamp: str) -> str:
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
