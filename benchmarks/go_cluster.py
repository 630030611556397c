"""A JetStream cluster of Go nats-servers on loopback: for measuring beside it, and as oracle of tests.

Owns the child processes and one directory a server below the one that it is given. Only what was started here is ever
stopped. A server that was stopped or killed comes back on the same ports with the same store.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.servers import HOST, ServerError, free_port, go_binary

_PATIENCE: Final = 30.0
SYSTEM_USER: Final = ("admin", "secret")
"""Of the system account; everybody else is let in without credentials."""
_ACCOUNTS: Final = """
accounts {{
  SYS {{ users: [ {{ user: {user}, password: {password} }} ] }}
  APP {{ jetstream: enabled, users: [ {{ user: app, password: app }} ] }}
}}
system_account: SYS
no_auth_user: app
"""


class GoServer:
    """One member of the cluster; `port`, `http_port` and `route_port` stay the same over restarts."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.port, self.http_port, self.route_port = free_port(), free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{HOST}:{self.port}"

    def get(self, path: str) -> Any:
        """The JSON at a path of the monitoring port."""
        with urllib.request.urlopen(f"http://{HOST}:{self.http_port}{path}", timeout=5) as answer:
            return json.load(answer)

    def start(self) -> None:
        """Start the process; when it can do anything, the cluster tells (`GoCluster.wait`)."""
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(go_binary()), "-c", str(self.directory / "server.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, *, kill: bool = False) -> None:
        """Stop the process in order, or as a crash does; nothing happens when it does not run."""
        if self.process is None:
            return
        (self.process.kill if kill else self.process.terminate)()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class GoCluster:
    """`size` servers, n1, n2 …, that are one JetStream while the context is entered.

    `sync` is `sync_interval`: none for the server's default, "always" for an fsync before each acknowledgement. `tags`
    gives servers by name their `server_tags`, `extra` is further text for every configuration.
    """

    def __init__(
        self,
        directory: Path,
        *,
        size: int = 3,
        name: str = "C",
        sync: str = "",
        tags: Mapping[str, Sequence[str]] | None = None,
        extra: str = "",
    ) -> None:
        self.name = name
        self.servers = [GoServer(f"n{number + 1}", directory / f"go-n{number + 1}") for number in range(size)]
        routes = ", ".join(f"nats://{HOST}:{server.route_port}" for server in self.servers)
        accounts = _ACCOUNTS.format(user=SYSTEM_USER[0], password=SYSTEM_USER[1])
        for server in self.servers:
            server.directory.mkdir(parents=True)
            interval = f", sync_interval: {sync}" if sync else ""
            named = f"server_tags: {json.dumps(list(tags[server.name]))}\n" if tags and server.name in tags else ""
            (server.directory / "server.conf").write_text(
                f'server_name: {server.name}\nlisten: "{HOST}:{server.port}"\nhttp: "{HOST}:{server.http_port}"\n'
                f'jetstream {{ store_dir: "{server.directory}"{interval} }}\n'
                f'cluster {{ name: {name}, listen: "{HOST}:{server.route_port}", routes: [{routes}] }}\n'
                f"{named}{accounts}{extra}\n"
            )

    def __enter__(self) -> Self:
        try:
            for server in self.servers:
                server.start()
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop what runs."""
        for server in self.servers:
            server.stop()

    def __getitem__(self, name: str) -> GoServer:
        return next(server for server in self.servers if server.name == name)

    @property
    def leader(self) -> str:
        """The name of the server that leads the meta group; empty when the first one that runs knows none."""
        running = next(server for server in self.servers if server.process is not None)
        found: str = running.get("/jsz").get("meta_cluster", {}).get("leader", "")
        return found

    def wait(self) -> None:
        """Wait until every running server is healthy and knows the leader. Raises ServerError."""
        deadline = time.monotonic() + _PATIENCE
        for server in self.servers:
            while server.process is not None and not _ready(server):
                if time.monotonic() > deadline or server.process.poll() is not None:
                    tail = (server.directory / "server.log").read_text(errors="replace")[-800:]
                    raise ServerError(f"{server.name} of the Go cluster did not become ready:\n{tail}")
                time.sleep(0.02)


def _ready(server: GoServer) -> bool:
    try:
        return server.get("/healthz")["status"] == "ok" and bool(server.get("/jsz")["meta_cluster"]["leader"])
    except (OSError, KeyError, ValueError):
        return False
