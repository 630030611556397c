"""How two servers become peers: introductions, passwords, proofs, in the order that leaves nothing to strangers.

Owns the decisions of the handshake in both directions, as functions of one `RouteConnection`; the order of the proof is
in `route_proof`, who has a place in the cluster is decided by `route_table`.

Who is a **member** may speak of the cluster's inner affairs (see `reserved`): a server of our kind that has proven the
secret; where there is no secret, every server of our kind. Everybody else is a core peer: a nats-server that says user
and password, as in `cluster { authorization { … } }`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nimsnats.broker.reasons import Reason
from nimsnats.broker.route_proof import RouteProof, channel_of
from nimsnats.broker.trace import quoted
from nimsnats.protocol.route_info import RouteConnect, RouteInfo, encode_connect

if TYPE_CHECKING:
    from nimsnats.broker.route import RouteConnection

_VIOLATION: Final = "Authorization Violation"
SET_IT: Final = "NATS_CLUSTER_SECRET must be the same on all nodes"
_OLD: Final = (
    "this server sends the cluster secret instead of proving that it knows it, as older versions do: update it"
)
_NONE_THERE: Final = f"this node has a cluster secret and the one that was dialled has none: {SET_IT}"
_STRANGER: Final = (
    "what answers here does not prove the cluster's secret; a nats-server is only told a password that is written into "
    "its URL in cluster { routes }"
)


def channel(route: RouteConnection) -> bytes:
    """What identifies the connection to both of its ends."""
    if route.secured is None or route.contexts is None:
        return b""
    ours, theirs = route.contexts.certificate, route.secured.certificate
    return channel_of(theirs, ours) if route.dial is None else channel_of(ours, theirs)


# -- the side that accepts ------------------------------------------------------------------------------------------


def greet(route: RouteConnection) -> None:
    """Introduce ourselves to whoever has dialled."""
    table = route.table
    if table.options.secret:
        route.proof = table.new_proof(table.options.secret)
        route.send(table.info_line(route, auth=route.proof.challenge(), whole=False))
    else:
        route.send(table.info_line(route))


def connected(route: RouteConnection, said: RouteConnect) -> None:
    """CONNECT of a server that has dialled us."""
    ours = route.table.options.name
    if said.lang:
        route.refuse("attempted to connect to route port", Reason.WRONG_PORT)
    elif said.gateway:
        text = f'Rejecting connection from gateway "{said.gateway}" on the Route port'
        route.refuse(text, Reason.WRONG_PORT)
    elif not _admitted(route, said):
        pass
    elif said.cluster != ours:
        text = f'Rejecting connection, cluster name "{said.cluster}" does not match "{ours}"'
        route.refuse(text, Reason.WRONG_CLUSTER)
    else:
        route.parser.awaiting_connect = False
        if route.proof is not None and route.member:
            route.send(route.table.info_line(route, auth=route.proof.answer()))


def _admitted(route: RouteConnection, said: RouteConnect) -> bool:
    """Whether a server that has dialled us may go on; says why not."""
    proof = route.proof
    name = quoted(said.auth.get("name", ""))
    if said.auth and proof is None:
        detail = f"node {name} has a cluster secret and this one has none: {SET_IT}"
    elif said.auth and proof is not None:
        route.member = proof.proven_by(said, channel(route))
        if route.member:
            return True
        detail = f"authentication error - node {name} does not know this node's cluster secret: {SET_IT}"
    elif route.table.admits(said.user, said.password):
        return True
    else:
        detail = f"authentication error - User {quoted(said.user)}"
    route.refuse(_VIOLATION, Reason.AUTHENTICATION_FAILURE, detail)
    return False


def introduced(route: RouteConnection, info: RouteInfo) -> None:
    """INFO of a server that has dialled us: the last word of the handshake."""
    table, proof = route.table, route.proof
    if proof is None:
        route.member = info.node is not None
    elif route.member and not proof.is_of(info):
        route.refuse(_VIOLATION, Reason.AUTHENTICATION_FAILURE, "this is not the server that has proven itself")
        return
    elif info.node is not None and not route.member:
        route.refuse(_OLD, Reason.AUTHENTICATION_FAILURE)
        return
    if table.belongs(route, info) and table.has_place(route, info):
        table.register(route)


# -- the side that has dialled --------------------------------------------------------------------------------------


def answered(route: RouteConnection, info: RouteInfo) -> None:
    """The first INFO of a server that we have dialled."""
    dial, table = route.dial, route.table
    assert dial is not None
    if not table.belongs(route, info):
        return
    if not dial.secret:
        route.member = info.node is not None
        offer(route)
    elif info.auth.get("nonce"):
        _challenged(route, dial.secret, info)
    elif info.node is not None:
        _no_secret_there(route, info)
    elif dial.user or dial.password:
        offer(route)
    else:
        table.complain(route, _STRANGER)
        route.close(Reason.AUTHENTICATION_FAILURE)


def _challenged(route: RouteConnection, secret: str, info: RouteInfo) -> None:
    """Prove that we know the secret, and wait for the same."""
    table = route.table
    if info.server_id == table.broker.server_id:
        if table.is_own_nonce(info.auth["nonce"]):
            route.close(Reason.SELF_ROUTE)
        else:
            table.complain(route, "a stranger says that it is this server")
            route.close(Reason.AUTHENTICATION_FAILURE)
        return
    route.proof = table.new_proof(secret)
    route.challenged()
    route.send(_connect(route, route.proof.opening(info, channel(route))))


def _no_secret_there(route: RouteConnection, info: RouteInfo) -> None:
    """A server of our kind that cannot prove anything. It is told who has called, so that its log says why, too."""
    table = route.table
    table.complain(route, _OLD if info.auth_required else _NONE_THERE)
    named = {"name": table.broker.server_name, "instance": table.own_name[3]}
    route.send(_connect(route, named))
    route.close(Reason.AUTHENTICATION_FAILURE)


def proven(route: RouteConnection, info: RouteInfo) -> None:
    """The second INFO of a server that we have dialled: its proof."""
    proof: RouteProof | None = route.proof
    assert proof is not None
    if not proof.proven_in(info):
        route.refuse(_VIOLATION, Reason.AUTHENTICATION_FAILURE, _STRANGER)
        return
    route.member = True
    route.peer = info
    route.headers = info.headers
    if route.table.belongs(route, info):
        offer(route)


def offer(route: RouteConnection) -> None:
    """Introduce ourselves to a server that we have dialled, and ask for a sign that it takes us."""
    table, dial, peer = route.table, route.dial, route.peer
    assert dial is not None
    assert peer is not None
    if not table.has_place(route, peer):
        return
    route.offered()
    told = b"" if route.proof is not None else _connect(route, None)
    route.send(told + table.info_line(route, gossip_mode=dial.gossip_mode))
    route.ask()


def _connect(route: RouteConnection, auth: dict[str, str] | None) -> bytes:
    """CONNECT: with our part of the proof, or else with the user and password that the operator wrote down."""
    table, dial = route.table, route.dial
    assert dial is not None
    user, password = ("", "") if auth else (dial.user, dial.password)
    name = table.options.name
    tls = table.tls is not None
    return encode_connect(table.broker.server_id, name, user, password, tls_required=tls, auth=auth)
