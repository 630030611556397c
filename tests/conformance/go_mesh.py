"""A Go nats-server in the mesh of a server of ours."""

from __future__ import annotations

import json
from pathlib import Path

from nimsnats.broker.route_table import RouteTable
from tests.broker.route_stand import CLUSTER
from tests.conformance.oracle import Oracle


def joined(directory: Path, *tables: RouteTable, login: str = "", config: str = "", cluster: str = CLUSTER) -> Oracle:
    """A Go server that dials `tables`; `login` (`user:password@`) is what it asks for and what it dials with."""
    directory.mkdir(exist_ok=True)
    routes = ",".join(f"nats://{login}127.0.0.1:{table.port}" for table in tables)
    args = ["--cluster_name", cluster, "--cluster", f"nats://{login}127.0.0.1:-1"]
    if routes:
        args += ["--routes", routes]
    return Oracle(directory).start(config, *args)


def cluster_port(oracle: Oracle) -> int:
    """Where a Go server listens for routes."""
    (ports,) = oracle.directory.glob("*.ports")
    return int(json.loads(ports.read_text())["cluster"][0].rpartition(":")[2])
