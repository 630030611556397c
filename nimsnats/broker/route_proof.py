"""The proof of the cluster's secret on one connection, before anything that a peer says is believed.

Owns what the two sides cover with their proofs and which fields carry them. When it is asked for, and what follows from
it, is decided in `route_handshake`; the cryptography is `nimsnats.proof`.

    accepting side                                     dialling side
    INFO    name, nonce, instance              ->
                                               <-      CONNECT name, nonce, instance, proof
    INFO    everything, proof                  ->
                                               <-      INFO everything, PING

The dialler proves first: so whoever can merely reach a cluster port gets nothing that secrets could be tried against.
The secret itself is never sent. A nats-server ignores the field, which is how the two kinds stand in one mesh.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from nimsnats.proof import Exchange, Role, nonce

if TYPE_CHECKING:
    from random import Random

    from nimsnats.protocol.route_info import RouteConnect, RouteInfo

_PROTOCOL: Final = "nimsnats route 1"
_NONCES_KEPT: Final = 4096

Name = tuple[str, str, str, str]
"""Cluster, server id, server name and instance."""


class Nonces:
    """The nonces of peers that have proven themselves lately: none of them is taken a second time."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}

    def fresh(self, text: str) -> bool:
        """Take a nonce; False when it was there before. The oldest are forgotten."""
        if text in self._seen:
            return False
        if len(self._seen) >= _NONCES_KEPT:
            del self._seen[next(iter(self._seen))]
        self._seen[text] = None
        return True


class RouteProof:
    """One connection's proof, seen from this server. `own` is who we are, `secret` what both sides should know."""

    __slots__ = ("_exchange", "_nonces", "_own", "_secret", "nonce", "peer")

    def __init__(self, secret: str, own: Name, nonces: Nonces, random: Random) -> None:
        self.nonce = nonce(random)
        self.peer: Name | None = None
        """Who the peer says that it is; only what it says later of itself under the same name is believed."""
        self._own = own
        self._secret = secret
        self._nonces = nonces
        self._exchange: Exchange | None = None

    # -- the side that accepts ----------------------------------------------------------------------------------

    def challenge(self) -> dict[str, str]:
        """What goes into our first INFO."""
        return {"nonce": self.nonce, "instance": self._own[3]}

    def proven_by(self, connect: RouteConnect, channel: bytes) -> bool:
        """Whether the CONNECT of a peer that has dialled us proves the secret."""
        told = connect.auth
        self.peer = (connect.cluster, connect.name, told.get("name", ""), told.get("instance", ""))
        exchange = self._exchange = Exchange(
            _PROTOCOL, self.peer, self._own, told.get("nonce", ""), self.nonce, channel
        )
        proven = exchange.proves(self._secret, Role.OPENER, told.get("proof", ""))
        return proven and self._nonces.fresh(exchange.opener_nonce)

    def answer(self) -> dict[str, str]:
        """What goes into our second INFO, after `proven_by`."""
        assert self._exchange is not None
        return {"proof": self._exchange.proof(self._secret, Role.ANSWERER)}

    # -- the side that has dialled ------------------------------------------------------------------------------

    def opening(self, info: RouteInfo, channel: bytes) -> dict[str, str]:
        """What goes into our CONNECT, after a first INFO with a challenge."""
        told = info.auth
        self.peer = (info.cluster, info.server_id, info.server_name, told.get("instance", ""))
        exchange = self._exchange = Exchange(
            _PROTOCOL, self._own, self.peer, self.nonce, told.get("nonce", ""), channel
        )
        fields = {"nonce": self.nonce, "name": self._own[2], "instance": self._own[3]}
        return fields | ({"proof": exchange.proof(self._secret, Role.OPENER)} if exchange.sound else {})

    def proven_in(self, info: RouteInfo) -> bool:
        """Whether the second INFO of a peer that we have dialled proves the secret."""
        exchange = self._exchange
        assert exchange is not None
        proven = exchange.proves(self._secret, Role.ANSWERER, info.auth.get("proof", ""))
        return proven and self.is_of(info) and self._nonces.fresh(exchange.answerer_nonce)

    # -- both ---------------------------------------------------------------------------------------------------

    def is_of(self, info: RouteInfo) -> bool:
        """Whether an INFO is of the server that has proven itself."""
        instance = (info.node or {}).get("instance", "")
        return self.peer == (info.cluster, info.server_id, info.server_name, instance)


def channel_of(dialler: bytes, accepter: bytes) -> bytes:
    """What identifies a TLS connection to both of its ends: their certificates (as in RFC 5929, tls-server-end-point).

    Python gives no key material of TLS 1.3 connections away, which would identify the very connection.
    """
    if not (dialler and accepter):
        return b""
    return hashlib.sha256(dialler).digest() + hashlib.sha256(accepter).digest()
