"""Proof over HTTP that both sides know the cluster's secret, which itself is never sent.

Owns: what is authenticated, how it travels in headers, and the server's challenges with their memory of what has been
used. Pure: the caller passes time (seconds of any steady clock) and randomness; never touches network, disk or clock.

    GET /v1/proof?nonce=N        200 {"challenge": C, "mac": M1}    the server proves itself, before anything is said
    X-Registry-Proof: challenge=C, nonce=N, mac=M2                  of a request: method, path, owner and body
    X-Registry-Challenge: C'     X-Registry-Proof: M3               of its answer: status, headers and body

Each MAC is a proof as `nimsnats.proof` makes it, of a protocol of its own, so that none can stand for another.
Freshness needs no common clock: the server judges the age of its own challenges by its own clock, and each (challenge,
nonce) is good for one request. Only requests that have proven the secret are remembered, so strangers cannot fill that
memory; challenges carry a seal instead of being remembered, so strangers cannot push out those of members.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import Final

from nimsnats.proof import Exchange, Role, nonce

PROOF: Final = "X-Registry-Proof"
CHALLENGE: Final = "X-Registry-Challenge"
OWNER: Final = "X-Registry-Owner"
PROOF_PATH: Final = "/v1/proof"
CHALLENGE_LIFE: Final = 60.0
"""Seconds for which a challenge is good."""
MAX_SPENT: Final = 1 << 17
"""Requests remembered of one challenge's life; only members' requests are."""

_CHALLENGE: Final = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{1,16})\.([0-9a-f]{64})")
_CREDENTIAL: Final = re.compile(r"challenge=([0-9a-f.]{1,160}), nonce=([0-9a-f]{64}), mac=([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request shows: the server's challenge, the client's nonce, and the MAC over both and the request."""

    challenge: str
    nonce: str
    mac: str

    def header(self) -> str:
        """As `X-Registry-Proof` carries it."""
        return f"challenge={self.challenge}, nonce={self.nonce}, mac={self.mac}"


@dataclass(frozen=True, slots=True)
class Request:
    """What a request's proof covers. `target` is path and query as sent, from `/v1/` on: before it is a proxy's."""

    method: str
    target: str
    owner: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What an answer's proof covers: status, the next challenge, X-Registry-Index and -TTL, body."""

    status: int
    challenge: str
    index: str
    ttl: str
    body: bytes


def parse_credential(text: str) -> Credential | None:
    """A request's `X-Registry-Proof`; None for anything that is none."""
    found = _CREDENTIAL.fullmatch(text)
    return Credential(found[1], found[2], found[3]) if found else None


class SharedSecret:
    """The proofs of one secret."""

    def __init__(self, secret: str) -> None:
        assert secret
        self._secret = secret

    def hello(self, nonce: str, challenge: str) -> str:
        """The server's first word: it knows the secret, and this is its challenge."""
        return _greeting(nonce, challenge).proof(self._secret, Role.ANSWERER)

    def is_hello(self, given: str, nonce: str, challenge: str) -> bool:
        """Whether `given` is that word."""
        return _greeting(nonce, challenge).proves(self._secret, Role.ANSWERER, given)

    def credential(self, challenge: str, nonce: str, request: Request) -> Credential:
        """What a request shows."""
        return Credential(challenge, nonce, _asking(challenge, nonce, request).proof(self._secret, Role.OPENER))

    def is_credential(self, given: Credential, request: Request) -> bool:
        """Whether this request was sent by one who knows the secret."""
        return _asking(given.challenge, given.nonce, request).proves(self._secret, Role.OPENER, given.mac)

    def answer(self, to: Credential, reply: Reply) -> str:
        """What an answer shows; of an event stream its opening, with an empty body."""
        return _answering(to, reply).proof(self._secret, Role.ANSWERER)

    def is_answer(self, given: str, to: Credential, reply: Reply) -> bool:
        """Whether the answer was given by one who knows the secret and has seen this very request."""
        return _answering(to, reply).proves(self._secret, Role.ANSWERER, given)


def _greeting(nonce: str, challenge: str) -> Exchange:
    return Exchange("nimsnats registry greeting 1", (), (challenge,), nonce, _drawn(challenge))


def _asking(challenge: str, nonce: str, request: Request) -> Exchange:
    parts = request.method, request.target, request.owner, sha256(request.body).hexdigest()
    return Exchange("nimsnats registry request 1", parts, (challenge,), nonce, _drawn(challenge))


def _answering(to: Credential, reply: Reply) -> Exchange:
    parts = str(reply.status), reply.challenge, reply.index, reply.ttl, sha256(reply.body).hexdigest()
    return Exchange("nimsnats registry answer 1", (to.mac,), parts, to.nonce, _drawn(to.challenge))


def _drawn(challenge: str) -> str:
    """The part of a challenge that the server has drawn."""
    return challenge.partition(".")[0]


class Challenges:
    """The server's side of freshness. A restart makes all earlier challenges void."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._seal = random.randbytes(32)
        self._spent: dict[tuple[str, str], float] = {}
        """(challenge, nonce) -> when the challenge is void anyway, in the order of use."""

    def issue(self, now: float) -> str:
        """A challenge, good for `CHALLENGE_LIFE` seconds."""
        drawn, stamp = nonce(self._random), f"{int(now * 1000):x}"
        return f"{drawn}.{stamp}.{self._sealed(drawn, stamp)}"

    def is_fresh(self, challenge: str, now: float) -> bool:
        """Whether it was issued here, and not too long ago."""
        found = _CHALLENGE.fullmatch(challenge)
        if found is None or not hmac.compare_digest(found[3], self._sealed(found[1], found[2])):
            return False
        return now - int(found[2], 16) / 1000 <= CHALLENGE_LIFE

    def spend(self, credential: Credential, now: float) -> bool:
        """Use a proven credential, once: False when it has been used, or too much has been."""
        while self._spent:
            oldest = next(iter(self._spent))
            if self._spent[oldest] > now:
                break
            del self._spent[oldest]
        use = credential.challenge, credential.nonce
        if use in self._spent or len(self._spent) >= MAX_SPENT:
            return False
        self._spent[use] = now + CHALLENGE_LIFE + 1.0
        return True

    def _sealed(self, drawn: str, stamp: str) -> str:
        return hmac.digest(self._seal, f"{drawn}.{stamp}".encode(), sha256).hex()
