"""What a registry client believes of whatever answers at its URL, and what it shows to it.

Owns the rule. Without a secret there is nothing to prove: the bearer token goes along, as the plain API has it. With
the cluster's secret the registry is greeted first, and

- one that proves the secret is a member's. Every request proves the secret to it, every answer must prove it in turn,
  no token is sent, and from then on this process takes nothing less from that URL;
- one that proves another secret is refused;
- one that does not know of proofs is another's (Morpheus). It is taken as a source of addresses, which is all that it
  has to be, since whoever is dialled has to prove himself; but only if the operator says so, with a token or with an
  https URL, whose certificate vouches for it. Over plain http it is no witness for the end of another node.

Pure: the transport sends and receives.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final, cast

from nimsnats.proof import nonce
from nimsnats.registry.errors import RegistryAnswerError
from nimsnats.registry.proof import (
    CHALLENGE,
    PROOF,
    Credential,
    Reply,
    Request,
    SharedSecret,
)

_UNPROVEN: Final = "does not prove that it knows the cluster's secret"
_ADVICE: Final = "start it with NATS_CLUSTER_SECRET, too; if it is another program's, set REGISTRY_TOKEN or use https"


class Trust:
    """One client's view of one URL. `token` and `secret` may be empty."""

    def __init__(self, url: str, random: Random, *, token: str = "", secret: str = "") -> None:
        self._random = random
        self._token = token
        self._secret = SharedSecret(secret) if secret else None
        self._encrypted = url.startswith("https:")
        self._challenge = ""
        self._proven = False
        self._foreign = False

    @property
    def must_greet(self) -> bool:
        """Whether the registry is to be asked for its proof before anything else."""
        return self._secret is not None and not self._challenge and not self._foreign

    @property
    def must_prove(self) -> bool:
        """Whether each answer has to prove itself."""
        return self._secret is not None and not self._foreign

    @property
    def is_vouched(self) -> bool:
        """Whether its word about other nodes' ends may be taken: it has proven the secret, or its certificate stands
        for it, or there is no secret that it could prove."""
        return self._secret is None or self._proven or self._encrypted

    @property
    def note(self) -> str:
        """What an operator should know of a registry that is taken without a proof; empty where there is nothing."""
        if self._secret is None or not self._foreign or self._encrypted:
            return ""
        return (
            f"it {_UNPROVEN}: taken as a source of addresses, which must prove themselves, and not as a witness for "
            "two nodes; start it with the same NATS_CLUSTER_SECRET, or reach it by https"
        )

    def greet_again(self) -> None:
        """Whoever is at the URL may be another one since."""
        self._challenge, self._foreign = "", False

    def nonce(self) -> str:
        """A fresh one for a greeting."""
        return nonce(self._random)

    def greeted(self, sent: str, answer: object) -> None:
        """Judge what came back for the nonce `sent`: JSON, or None for whatever is no answer to a greeting.

        Raises `RegistryAnswerError` where nothing more is to be said to it.
        """
        assert self._secret is not None
        fields = cast("Mapping[str, object]", answer if isinstance(answer, Mapping) else {})
        challenge, mac = fields.get("challenge"), fields.get("mac")
        if isinstance(challenge, str) and isinstance(mac, str):
            if not self._secret.is_hello(mac, sent, challenge):
                raise RegistryAnswerError(
                    "proves another secret than NATS_CLUSTER_SECRET: it belongs to another cluster"
                )
            self._challenge, self._proven, self._foreign = challenge, True, False
            return
        if self._proven:
            raise RegistryAnswerError(f"{_UNPROVEN}, and did so before: something else answers at its address")
        if not (self._token or self._encrypted):
            raise RegistryAnswerError(f"{_UNPROVEN}: {_ADVICE}")
        self._foreign = True

    def sign(self, method: str, target: str, owner: str, body: bytes) -> tuple[dict[str, str], Credential | None]:
        """The headers by which a request shows who sends it, and the proof among them that its answer refers to."""
        if not self.must_prove or self._secret is None:
            return ({"Authorization": f"Bearer {self._token}"} if self._token else {}), None
        request = Request(method, target, owner, body)
        credential = self._secret.credential(self._challenge, nonce(self._random), request)
        return {PROOF: credential.header()}, credential

    def is_genuine(self, credential: Credential, status: int, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether an answer comes from one who knows the secret and has seen this very request."""
        assert self._secret is not None
        challenge = headers.get(CHALLENGE, "")
        index, ttl = headers.get("X-Registry-Index", ""), headers.get("X-Registry-TTL", "")
        reply = Reply(status, challenge, index, ttl, body)
        if not self._secret.is_answer(headers.get(PROOF, ""), credential, reply):
            return False
        self._challenge = challenge
        return True

    def refuse(self, status: int) -> RegistryAnswerError:
        """What to say of an answer that is not genuine."""
        return RegistryAnswerError(f"answered {status}, and {_UNPROVEN}")
