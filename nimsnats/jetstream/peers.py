"""The members of a group as clients see them: its cluster block, and which of them may lead it next.

Owns the shape of what is told, and the choice of a successor for step-down requests. It changes nothing; who becomes a
member is `placement.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from nimsnats.identity import node_hash
from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import STRING, STRINGS, JsonObject, Struct
from nimsnats.jetstream.clock import format_time
from nimsnats.raft.transport import node_of

if TYPE_CHECKING:
    from nimsnats.broker.server import Broker
    from nimsnats.jetstream.placement import NodeTags
    from nimsnats.raft.host import Host
    from nimsnats.raft.machine import Group

STEP_DOWN: Final = Struct(
    "JSApiLeaderStepdownRequest",
    {"placement": Struct("Placement", {"cluster": STRING, "tags": STRINGS, "preferred": STRING})},
)
"""Body of the three LEADER.STEPDOWN requests."""
_FOREVER: Final = float("inf")


class PeerView:
    """Tells about groups of this node. `several`: whether other nodes have a part in the cluster."""

    def __init__(self, broker: Broker, host: Host, tags: NodeTags, several: Callable[[], bool]) -> None:
        self._broker = broker
        self._host = host
        self._tags = tags
        self._several = several

    @property
    def several(self) -> bool:
        """Whether there is anything to tell: a server alone has no cluster block."""
        return self._several()

    def cluster(self, group: Group, led_since: int) -> JsonObject:
        """The `cluster` of a stream or consumer (ClusterInfo); `led_since`, in nanoseconds, when this member leads.

        Like nats-server, little is told of a group of one.
        """
        if not self._several():
            return {"leader": self._broker.server_name}
        body: JsonObject = {}
        if self._broker.options.cluster_name:
            body["name"] = self._broker.options.cluster_name
        replicas = self.replicas(group)
        if replicas:
            body["raft_group"] = group.name
        if group.leader:
            body["leader"] = group.leader
        if replicas:
            if group.leading and led_since:
                body["leader_since"] = format_time(led_since)
            body |= {"system_account": True, "traffic_account": self._broker.system_account.name, "replicas": replicas}
        return body

    def replicas(self, group: Group, *, everyone: bool = False) -> list[JsonObject]:
        """PeerInfo of the other members; of this one, too, for `everyone`. Only the leader knows how far they are."""
        found: list[JsonObject] = []
        if everyone:
            found.append(_peer(self._host.member, True, _FOREVER, 0) | {"offline": False})
        if group.leading:
            found += [_peer(other.member, other.current, other.active, other.lag) for other in group.progress()]
        else:
            for member in (*group.members, *group.learners):
                if member != self._host.member:
                    lost = self._host.is_lost(member)
                    found.append(_peer(member, not lost, self._host.peers.silence(member), 0, lost=lost))
        for replica in found:
            if self._host.is_lost(replica["member"]):
                replica |= {"current": False, "offline": True}
        return [_shown(replica) for replica in sorted(found, key=lambda replica: replica["name"])]

    def lost_quorum(self, group: Group) -> bool:
        """Whether so many members are silent that the rest can decide nothing."""
        patience = self._host.tick_seconds * self._host.settings.election_ticks / 2
        here = sum(
            member == self._host.member or self._host.peers.silence(member) < patience for member in group.members
        )
        return 2 * here <= len(group.members)

    def successor(self, group: Group, placement: dict[str, Any] | None) -> str:
        """The member that a step-down request wants to lead; empty for any. Raises ApiError 10005."""
        if placement is None:
            return ""
        others = [member for member in group.members if member != self._host.member]
        preferred = placement.get("preferred", "")
        if preferred == node_of(self._host.member):
            raise errors.CLUSTER_NO_PEERS(err=f'preferred server "{preferred}" is already leader')
        if preferred:
            found = [member for member in others if node_of(member) == preferred]
            if not found:
                raise errors.CLUSTER_NO_PEERS(err=f'preferred server "{preferred}" not known')
            return found[0]
        suitable = [
            member
            for member in others
            if not self._host.is_lost(member)
            and placement.get("cluster", "") in ("", self._broker.options.cluster_name)
            and not self._tags.missing(member, placement.get("tags") or ())
        ]
        if not suitable:
            raise errors.CLUSTER_NO_PEERS(err="no replacement peer connected")
        return self._host.runtime.random.choice(suitable)


def _peer(member: str, current: bool, active: float, lag: int, *, lost: bool = False) -> JsonObject:
    return {
        "member": member,
        "name": node_of(member),
        "current": current,
        "offline": lost or active == _FOREVER,
        "active": 0 if active == _FOREVER else max(1, int(active * 1e9)),  # 0 says never
        "lag": lag,
    }


def _shown(replica: JsonObject) -> JsonObject:
    """In nats-server's order, without what is not so."""
    name = replica["name"]
    body: JsonObject = {"name": name, "current": replica["current"]}
    if replica["offline"]:
        body["offline"] = True
    body["active"] = replica["active"]
    if replica["lag"]:
        body["lag"] = replica["lag"]
    return {**body, "peer": node_hash(name)}


def named(member: str, peer: str) -> bool:
    """Whether `peer`, a server's name or its peer id, means the node of this member."""
    return bool(peer) and peer in (node_of(member), node_hash(node_of(member)))
