"""The server's own queue groups, as core peers hear of them: under names that the peers' clients cannot guess.

Owns these names, when they change, and what peers are told then. A nats-server keeps no queue group for itself: its
client that joins the group of a stream takes the messages that other clients of it publish, and answers them. So a core
peer hears of `$JS.S.ORDERS` as `$JS.S.ORDERS/<tag>`. All nodes of a cluster make the same tag, so that the peer still
gives each message to one of them. Clients do not hear the names of groups, only routes and leaf nodes do.

The tag is an HMAC under the cluster's secret. Without a secret the key is the cluster's id, which the founder's
directory has drawn: 128 bits that only nodes, the registry and HTTP ports know.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nimsnats.broker import reserved
from nimsnats.proof import key_for

if TYPE_CHECKING:
    from random import Random

    from nimsnats.broker.route import RouteConnection
    from nimsnats.broker.route_account import AccountRouting
    from nimsnats.broker.server import Broker

Tell = Callable[[bytes, bytes], None]
"""Sends interest to all peers: one line to members, the other to core peers."""

_PURPOSE: Final = b"names of queue groups"
_TAG: Final = 16
"""Bytes of a tag."""
_BEFORE_TAG: Final = b"/"
"""Neither the name of a stream nor that of a kind of subject has it."""


@dataclass(slots=True, frozen=True)
class GroupNames:
    """What core peers are told instead of the names of our own groups; with `plain`, these themselves."""

    key: bytes
    plain: bool = False

    def outside(self, queue: bytes) -> bytes:
        """The name of a group for core peers. Groups of clients have one name everywhere."""
        if self.plain or not queue.startswith(reserved.JETSTREAM):
            return queue
        tag = hmac.digest(self.key, queue, hashlib.sha256)[:_TAG]
        return queue + _BEFORE_TAG + urlsafe_b64encode(tag).rstrip(b"=")


def inside(queues: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Our own names of the groups that a core peer names. Whatever tag it names is one that it was told, perhaps before
    the names changed: its clients have no say in that."""
    return tuple(queue.partition(_BEFORE_TAG)[0] if queue.startswith(reserved.JETSTREAM) else queue for queue in queues)


class OwnGroups:
    """The names in use at one server, and the routes that have to know. `secret` is the cluster's, or empty."""

    def __init__(self, broker: Broker, secret: str, random: Random) -> None:
        self._broker = broker
        self._secret = secret
        self._told = False
        self.names = GroupNames(key_for(secret, _PURPOSE) if secret else random.randbytes(_TAG))

    def belong_to(self, cluster: str, routes: Iterable[RouteConnection], routings: Iterable[AccountRouting]) -> None:
        """This server's JetStream is part of the cluster with that id."""
        if not self._secret:
            key = hmac.digest(cluster.encode(), _PURPOSE, hashlib.sha256)
            self._change(GroupNames(key, self.names.plain), routes, routings)

    def review(self, routes: Iterable[RouteConnection], routings: Iterable[AccountRouting]) -> None:
        """Peers have come or gone. As long as one of them tells core peers the names themselves, all have to: a peer
        that knows a group by two names would give every message to both."""
        routes = list(routes)
        old = sorted(route.name for route in routes if route.member and not _tells_tags(route))
        if old and not self._told and not all(route.member for route in routes):
            text = "Clients of a nats-server in this cluster can join the queue groups of streams until %s is updated"
            self._broker.log.warning(text, ", ".join(old))
            self._told = True
        self._change(GroupNames(self.names.key, bool(old)), routes, routings)

    def _change(self, names: GroupNames, routes: Iterable[RouteConnection], routings: Iterable[AccountRouting]) -> None:
        if names == self.names:
            return
        before, self.names = self.names, names
        lines = b"".join([routing.renamed(before, names) for routing in routings])
        for route in routes if lines else ():
            if not route.member:
                tell(route, lines)


def tell(route: RouteConnection, lines: bytes) -> None:
    """Send interest to a peer; one that cannot take more ends at that."""
    try:
        route.send(lines)
    except Exception as error:
        route.output_broke(error)


def _tells_tags(route: RouteConnection) -> bool:
    return route.peer is not None and route.peer.tags_groups
