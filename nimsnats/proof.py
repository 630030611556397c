"""Proving that both sides of an exchange know the same secret, without ever sending it.

Owns fresh nonces, the bytes that a proof covers, and the comparison. It knows no connection and no format: who sends
what to whom, and in which field, is the business of the protocols that use it (routes, the registry's HTTP API).

A proof is HMAC-SHA256 over a label of the protocol, the role of the side that proves, and names and nonces of both
sides. So it is good for this exchange alone: not for another protocol, not for a later exchange (each side has drawn
its own nonce), not in the other direction (an attacker cannot send a challenge back to where it came from), and not
between other servers. It says nothing about what is sent afterwards: whoever can alter the traffic between two honest
sides can let them prove themselves to each other and speak then; against that there is TLS (`channel`).

Whoever sees a proof can try secrets against it at leisure. The key is therefore stretched (PBKDF2, RFC 8018), and a
secret should be random: 16 bytes of `openssl rand -hex 16` cannot be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

NONCE_BYTES: Final = 32
_NONCE_TEXT: Final = frozenset("0123456789abcdef")
_ROUNDS: Final = 60_000
"""Of PBKDF2: some 30 ms, once for each secret of a process."""
_SALT: Final = b"nimsnats cluster secret"


class Role(Enum):
    """The side that proves: the one that has opened the exchange, or the one that answers."""

    OPENER = b"opener"
    ANSWERER = b"answerer"


@dataclass(slots=True, frozen=True)
class Exchange:
    """What both sides know of one exchange, the same on both.

    `protocol` is a label with a version. `opener` and `answerer` are the names of the sides: each a tuple of whatever
    identifies one (a server's id and name, a path and a body's digest). `channel` identifies the connection below,
    where it has an identity that both ends see.
    """

    protocol: str
    opener: tuple[str, ...]
    answerer: tuple[str, ...]
    opener_nonce: str
    answerer_nonce: str
    channel: bytes = b""

    @property
    def sound(self) -> bool:
        """Whether both nonces are nonces, and not the same: a challenge that is sent back proves nothing."""
        return (
            is_nonce(self.opener_nonce) and is_nonce(self.answerer_nonce) and self.opener_nonce != self.answerer_nonce
        )

    def proof(self, secret: str, role: Role) -> str:
        """What the side of that role sends: 64 lower-case hexadecimal digits. Raises ValueError without a secret."""
        parts = [self.protocol.encode(), role.value]
        for name in (self.opener, self.answerer):
            parts.append(b"%d" % len(name))
            parts += [part.encode("utf-8", "surrogatepass") for part in name]
        parts += [self.opener_nonce.encode("utf-8", "surrogatepass")]
        parts += [self.answerer_nonce.encode("utf-8", "surrogatepass"), self.channel]
        covered = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.new(_key(secret), covered, hashlib.sha256).hexdigest()

    def proves(self, secret: str, role: Role, given: str) -> bool:
        """Whether `given` is the proof of that side. False for nonces that are none; takes as long for any text."""
        expected = self.proof(secret, role).encode()
        equal = hmac.compare_digest(expected, given.encode("utf-8", "surrogatepass"))
        return equal and self.sound


def nonce(source: random.Random) -> str:
    """A fresh nonce: 32 random bytes as 64 lower-case hexadecimal digits."""
    return source.randbytes(NONCE_BYTES).hex()


def is_nonce(text: str) -> bool:
    """Whether a peer's nonce has the form and length of one. One byte over and over was not drawn."""
    if len(text) != 2 * NONCE_BYTES or not _NONCE_TEXT.issuperset(text):
        return False
    return len(set(bytes.fromhex(text))) > 1


def key_for(secret: str, purpose: bytes) -> bytes:
    """A key of 32 bytes that whoever knows the secret can make, and that serves for this purpose alone. Raises
    ValueError without a secret."""
    return hmac.digest(_key(secret), purpose, hashlib.sha256)


@lru_cache(maxsize=16)
def _key(secret: str) -> bytes:
    if not secret:
        raise ValueError("an empty secret proves nothing")
    return hashlib.pbkdf2_hmac("sha256", secret.encode("utf-8", "surrogatepass"), _SALT, _ROUNDS)
