"""Three servers of one kind as one cluster on loopback.

Owns the start of the members, one after the other, the wait until they are one JetStream, and their sums. Which node
leads a stream is asked of the servers, because it matters where a client is connected.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.servers import Kind, Member, Server, ServerError, free_port
from benchmarks.wire import Connection, WireError

SIZE: Final = 3
_FORMING: Final = 45.0
_AGAIN: Final = 0.1


class Cluster:
    """A running cluster under test. Nodes are named a, b, c in the order of their start."""

    def __init__(self, kind: Kind, base: Path | None = None) -> None:
        self.kind = kind
        self.nodes: list[Server] = []
        cluster_ports = [free_port() for _ in range(SIZE)]
        http_ports = [free_port() for _ in range(SIZE)]
        with ExitStack() as stack:
            for at, name in enumerate("abc"):
                others = tuple(port for port in cluster_ports if port != cluster_ports[at])
                member = Member(name, cluster_ports[at], http_ports[at], others, http_ports[0])
                self.nodes.append(stack.enter_context(Server(kind, base, member)))
            self._wait_formed()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()  # nothing of it is needed any more, and leaving in order takes its time
        self._stack.close()

    def connect(self) -> Connection:
        """A client connection to the first node."""
        return self.nodes[0].connect()

    def node(self, name: str) -> Server:
        """A member by name."""
        return self.nodes["abc".index(name)]

    def cpu_seconds(self) -> float:
        """Processor time that all members have used so far."""
        return sum(node.cpu_seconds() for node in self.nodes)

    def resident_bytes(self) -> int:
        """Resident memory of all members."""
        return sum(node.resident_bytes() for node in self.nodes)

    def peak_bytes(self) -> int:
        """The most resident memory that each member has had, summed."""
        return sum(node.peak_bytes() for node in self.nodes)

    def terms(self) -> dict[str, int]:
        """The newest term of each Raft group."""
        newest: dict[str, int] = {}
        for node in self.nodes:
            for group, term in node.terms().items():
                newest[group] = max(term, newest.get(group, 0))
        return newest

    def create_stream(self, name: str, subject: str, patience: float = 10.0) -> None:
        """A file-backed stream with three replicas, all of them current; `patience` is for the request."""
        config = {"name": name, "subjects": [subject], "storage": "file", "num_replicas": SIZE}
        with self.connect() as connection:
            connection.socket.settimeout(patience)
            connection.api(f"STREAM.CREATE.{name}", config)
        self.wait_current(name)

    def delete_stream(self, name: str) -> None:
        """Delete a stream."""
        with self.connect() as connection:
            connection.api(f"STREAM.DELETE.{name}")

    def info(self, name: str) -> dict[str, Any]:
        """What the cluster says of a stream."""
        with self.connect() as connection:
            return connection.api(f"STREAM.INFO.{name}")

    def leader(self, name: str) -> Server:
        """The node that leads a stream."""
        return self.node(self.info(name)["cluster"]["leader"])

    def follower(self, name: str) -> Server:
        """A node that has a replica and does not lead."""
        return self.node(self.info(name)["cluster"]["replicas"][0]["name"])

    def wait_current(self, name: str, limit: float = 20.0) -> None:
        """Wait until a stream has a leader and all its replicas are current. Raises ServerError."""
        deadline = time.perf_counter() + limit
        seen = ""
        while time.perf_counter() < deadline:
            try:
                cluster: dict[str, Any] = self.info(name)["cluster"]
            except WireError as error:
                seen = str(error)
            else:
                if cluster.get("leader") and current(cluster) == SIZE - 1:
                    return
                seen = str(cluster)
            time.sleep(_AGAIN)
        raise ServerError(f"{self.kind.title}: stream {name} is not on all nodes: {seen}")

    def _wait_formed(self) -> None:
        """Formed is a cluster that has put a stream of three replicas on three nodes."""
        deadline = time.perf_counter() + _FORMING
        while True:
            try:
                self.create_stream("FORMED", "bench.formed", 1.0)  # without a leader nobody answers
                self.delete_stream("FORMED")
                return
            except (WireError, ServerError, OSError):
                if time.perf_counter() > deadline:
                    raise
                time.sleep(_AGAIN)


def current(cluster: dict[str, Any]) -> int:
    """How many followers have everything."""
    replicas: list[dict[str, Any]] = cluster.get("replicas") or []
    return sum(bool(replica["current"]) and not replica.get("offline") for replica in replicas)
