"""From what the registry says to what the cluster is: discovery, membership, replication factor, and their health."""

from nimsnats.cluster.health import cluster_health, cluster_section, registry_health, registry_section
from nimsnats.cluster.manager import ClusterManager, ClusterState
from nimsnats.cluster.pairs import Pairs
from nimsnats.cluster.routes import Routes

__all__ = [
    "ClusterManager",
    "ClusterState",
    "Pairs",
    "Routes",
    "cluster_health",
    "cluster_section",
    "registry_health",
    "registry_section",
]
