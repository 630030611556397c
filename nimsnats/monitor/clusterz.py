"""The Raft side of a node in nats-server's shapes: the meta block of jsz, varz and statsz, and `/raftz`.

There is one group for a stream with its consumers; groups of one member are nobody's business, as in nats-server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nimsnats.identity import node_hash
from nimsnats.jetstream.clock import format_duration, format_time
from nimsnats.jetstream.meta import META_PREFIX
from nimsnats.monitor.format import JsonObject, present
from nimsnats.monitor.view import NodeView
from nimsnats.raft.core import Role
from nimsnats.raft.status import GroupStatus, status_of
from nimsnats.raft.transport import node_of

if TYPE_CHECKING:
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.raft.group import HostedGroup

_STATES: Final = {
    Role.LEADER: "LEADER",
    Role.FOLLOWER: "FOLLOWER",
    Role.PRE_CANDIDATE: "CANDIDATE",
    Role.CANDIDATE: "CANDIDATE",
}
_NO_QUEUES: Final = {"ipq_proposal_len": 0, "ipq_entry_len": 0, "ipq_resp_len": 0, "ipq_apply_len": 0}


def meta_block(view: NodeView, *, brief: bool = False) -> JsonObject:
    """The catalogue's group (MetaClusterInfo); empty while the node stands alone. `brief` leaves out the replicas that
    only the leader knows, as in statsz."""
    jetstream = view.jetstream
    if jetstream is None or not _clustered(jetstream):
        return {}
    meta = jetstream.meta
    status = _status(jetstream, meta.group.name)
    leader = meta.group.leader
    shown = not brief or meta.group.leading
    return {
        "name": view.broker.options.cluster_name if shown else "_meta_",
        **present({"leader": leader, "peer": node_hash(leader) if leader else ""}),
        **present({"replicas": jetstream.peers.replicas(meta.group) if shown else []}),
        "cluster_size": len(status.members),
        "quorum_needed": status.quorum,
        "pending": max(0, status.committed - status.applied),
        "pending_requests": 0,
        "pending_infos": 0,
        "snapshot": {
            "pending_entries": status.pending_entries,
            "pending_size": status.pending_bytes,
            "last_time": format_time(0),
        },
    }


def _clustered(jetstream: JetStream) -> bool:
    """Whether this node has a place in a cluster of several, or had one; not while it changes from one to another."""
    return jetstream.cluster is not None and jetstream.cluster.several and not jetstream.cluster.joining


def _status(jetstream: JetStream, name: str) -> GroupStatus:
    group = jetstream.host.group(name)
    assert group is not None, "the catalogue is open as long as JetStream is"
    return status_of(group)


def raftz(view: NodeView, *, account: str = "", group: str = "") -> JsonObject | None:
    """Groups of several members of one account, the system account's unless told; None while the node stands alone."""
    jetstream = view.jetstream
    if jetstream is None or not _clustered(jetstream):
        return None
    system = view.broker.system_account.name
    account = account or system
    found: list[tuple[str, HostedGroup, int]] = []
    if account == system:
        found.append((META_PREFIX, _hosted(jetstream, jetstream.meta.group.name), jetstream.meta.led_since))
    elif account in jetstream.accounts:
        found += [
            (stream.group.name, _hosted(jetstream, stream.group.name), stream.led_since)
            for stream in jetstream.accounts[account]
            if len(stream.group.members) > 1
        ]
    shown = {
        name: _group(view, jetstream, hosted, since)
        for name, hosted, since in found
        if group in ("", name, hosted.name)
    }
    return {account: shown} if shown else {}


def _hosted(jetstream: JetStream, name: str) -> HostedGroup:
    hosted = jetstream.host.group(name)
    assert hosted is not None
    return hosted


def _group(view: NodeView, jetstream: JetStream, group: HostedGroup, led_since: int) -> JsonObject:
    status = status_of(group)
    return {
        "id": node_hash(node_of(jetstream.host.member)),
        "state": _STATES[status.role],
        "size": len(status.members),
        "quorum_needed": status.quorum,
        "committed": status.committed,
        "applied": status.applied,
        **present({"leader": _id(status.leader), "leader_since": format_time(led_since) if led_since else ""}),
        "ever_had_leader": status.term > 0,
        "term": status.term,
        **present({"voted_for": _id(status.vote)}),
        "pterm": status.last_term,
        "pindex": status.last,
        "system_account": True,
        "traffic_account": view.broker.system_account.name,
        **_NO_QUEUES,
        "wal": {
            "messages": status.last - status.snapshot,
            "bytes": status.pending_bytes,
            "first_seq": status.snapshot + 1,
            "first_ts": format_time(0),
            "last_seq": status.last,
            "last_ts": format_time(0),
            "consumer_count": 0,
        },
        "peers": _peers(jetstream, group, status),
    }


def _peers(jetstream: JetStream, group: HostedGroup, status: GroupStatus) -> JsonObject:
    matched = {other.member: other.match for other in group.progress()}
    peers: JsonObject = {}
    for member in sorted((*status.members, *status.learners)):
        if member == jetstream.host.member:
            continue
        silence = jetstream.host.peers.silence(member)
        peers[_id(member)] = {
            "name": node_of(member),
            "known": member in status.members,
            **present({"last_replicated_index": matched.get(member, 0)}),
            **({"last_seen": format_duration(round(silence * 1e9))} if silence != float("inf") else {}),
        }
    return peers


def _id(member: str) -> str:
    return node_hash(node_of(member)) if member else ""
