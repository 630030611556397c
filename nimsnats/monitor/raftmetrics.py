"""The Raft part of `/metrics`: what all groups of the node are like together, and the catalogue's group.

A node may hold thousands of groups, so nothing is labelled by group unless a scrape asks for it (`/metrics?raft=1`); by
peer there are as many lines as nodes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from nimsnats.raft.core import Role
from nimsnats.raft.status import GroupStatus, status_of
from nimsnats.raft.transport import node_of

if TYPE_CHECKING:
    from nimsnats.jetstream.engine import JetStream

_BUNCH: Final = 100
_PREFIX: Final = "nimsnats_raft_"
_ROLES: Final = ("alone", "leader", "follower", "candidate")
_COUNTS: Final = (
    ("elections_total", "Elections that this node called: votes asked for in a new term.", "campaigns"),
    ("leaderships_total", "How often this node became the leader of a group of several members.", "led"),
    ("depositions_total", "How often this node ceased to lead a group.", "deposed"),
    ("snapshots_taken_total", "Snapshots of groups that this node stored.", "snapshots taken"),
    ("snapshots_received_total", "Snapshots that this node took over from a leader.", "snapshots received"),
    ("damaged_logs_total", "Groups that were found to have lost entries here.", "impaired"),
    ("repaired_logs_total", "Groups whose lost entries the other members gave back.", "repaired"),
)
_GROUP: Final[tuple[tuple[str, str, Callable[[GroupStatus], float]], ...]] = (
    ("term", "The group's term.", lambda status: status.term),
    ("leader", "1 when this node leads the group.", lambda status: status.serving),
    ("leader_known", "1 when this node knows who leads the group.", lambda status: bool(status.leader)),
    ("commit_index", "Index of the last entry known to be committed.", lambda status: status.committed),
    ("applied_index", "Index of the last entry applied here.", lambda status: status.applied),
    ("snapshot_index", "Index of the last entry in the latest snapshot.", lambda status: status.snapshot),
    ("members", "Members that vote.", lambda status: len(status.members)),
)


async def raft_metrics(jetstream: JetStream, *, each: bool) -> list[Metric]:
    """All families; `each` adds those labelled by group. Other work gets its turn between bunches of groups."""
    roles: Counter[str] = Counter(dict.fromkeys(_ROLES, 0))
    lag: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    labelled = [GaugeMetricFamily(f"{_PREFIX}group_{name}", text, labels=["group"]) for name, text, _ in _GROUP]
    for number, group in enumerate(jetstream.host.groups()):
        if number % _BUNCH == _BUNCH - 1:
            await asyncio.sleep(0)
        status = status_of(group)
        roles[_role(status)] += 1
        totals["leaderless"] += not status.leader
        totals["silent"] += status.silent
        totals["impaired"] += status.impaired
        totals["refused"] += group.machine.refusals.count
        totals["failed"] += bool(group.failure)
        totals["unapplied"] += max(0, status.committed - status.applied)
        totals["entries"] += status.pending_entries
        totals["bytes"] += status.pending_bytes
        for other in group.progress():
            name = node_of(other.member)
            lag[name] = max(lag[name], other.lag)
        if each:
            for family, (_, _, read) in zip(labelled, _GROUP, strict=True):
                family.add_metric([status.name], read(status))
    families = [*_groups(roles, totals), *_peers(jetstream, lag), *_counts(jetstream), *_catalogue(jetstream)]
    return [*families, *labelled] if each else families


def _role(status: GroupStatus) -> str:
    if len(status.members) == 1 and status.serving:
        return "alone"
    return {Role.LEADER: "leader", Role.FOLLOWER: "follower"}.get(status.role, "candidate")


def _groups(roles: Counter[str], totals: Counter[str]) -> list[Metric]:
    groups = GaugeMetricFamily(_PREFIX + "groups", "Raft groups, by this node's part in them.", labels=["role"])
    for role in _ROLES:
        groups.add_metric([role], roles[role])
    return [
        groups,
        _gauge("groups_leaderless", "Groups whose leader is unknown here.", totals["leaderless"]),
        _gauge("groups_silent", "Groups in which nothing happens, so that they cost nothing.", totals["silent"]),
        _gauge("groups_impaired", "Groups that lost entries here and are being repaired.", totals["impaired"]),
        _gauge("groups_failed", "Groups that this node cannot serve any more.", totals["failed"]),
        _gauge("refused_entries", "Entries that no member of their groups could apply.", totals["refused"]),
        _gauge("unapplied_entries", "Entries that are committed and not applied here yet.", totals["unapplied"]),
        _gauge("unsnapshotted_entries", "Entries applied since the groups' latest snapshots.", totals["entries"]),
        _gauge("unsnapshotted_bytes", "Size of these entries.", totals["bytes"]),
    ]


def _peers(jetstream: JetStream, lag: Counter[str]) -> list[Metric]:
    behind = GaugeMetricFamily(
        _PREFIX + "replica_lag_entries",
        "Entries that a peer lacks in the group, of those that this node leads, where it lacks most.",
        labels=["peer"],
    )
    for name, entries in sorted(lag.items()):
        behind.add_metric([name], entries)
    lost = GaugeMetricFamily(
        _PREFIX + "peer_lost", "1 when a member of the cluster has been silent for too long.", labels=["peer"]
    )
    for member in jetstream.meta.group.members:
        if member != jetstream.host.member:
            lost.add_metric([node_of(member)], jetstream.host.is_lost(member))
    return [behind, lost]


def _counts(jetstream: JetStream) -> list[Metric]:
    refused = CounterMetricFamily(
        _PREFIX + "refused_messages_total", "Messages from other nodes that were not accepted.", labels=["reason"]
    )
    for reason, count in sorted(jetstream.host.peers.refused.items()):
        refused.add_metric([reason], count)
    counts = jetstream.host.counts
    return [refused, *(CounterMetricFamily(_PREFIX + name, text, value=counts[key]) for name, text, key in _COUNTS)]


def _catalogue(jetstream: JetStream) -> list[Metric]:
    group = jetstream.host.group(jetstream.meta.group.name)
    if group is None:
        return []  # this node is on its way from one cluster into another
    status = status_of(group)
    return [_gauge(f"meta_{name}", f"Catalogue: {text}", read(status)) for name, text, read in _GROUP]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, text, value=value)
