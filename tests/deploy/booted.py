"""A machine with systemd as its first process: this one's own system, started a second time in namespaces.

Owns the container: what it writes goes to memory and is gone with it, it has a network of its own without any way out,
and none of this machine's services start in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import pytest

_BOOT: Final = """
set -e
mount -t tmpfs tmpfs {memory}
mkdir {memory}/changes {memory}/work {root}
mount -t overlay overlay -o lowerdir=/,upperdir={memory}/changes,workdir={memory}/work {root}
mkdir -p {root}{shared}
exec systemd-nspawn --quiet --directory={root} --bind={shared} --machine={name} --private-network {unit} \\
    --boot --console=pipe systemd.unit=basic.target
"""
_PATIENCE: Final = 60.0


class Machine:
    """Started on entry, gone on exit. `shared` is a directory that is seen inside at the same path."""

    def __init__(self, directory: Path, shared: Path) -> None:
        self._memory = directory / "memory"
        self._memory.mkdir()
        self._shared = shared
        self._container: subprocess.Popen[bytes] | None = None
        self._first = 0
        self._log = directory / "console"

    def __enter__(self) -> Self:
        """Skips the test where there can be no such machine."""
        if os.geteuid() != 0 or not shutil.which("systemd-nspawn") or not shutil.which("nsenter"):
            pytest.skip("needs root, systemd-nspawn and nsenter")
        managed = Path("/run/systemd/system").exists()
        script = _BOOT.format(
            memory=self._memory,
            root=self._memory / "root",
            shared=self._shared,
            name=f"nims-{os.getpid()}",
            unit="--register=no" if managed else "--register=no --keep-unit",
        )
        with self._log.open("wb") as log:
            command = ["unshare", "--mount", "sh", "-c", script]
            self._container = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.until(self._is_up)
        except AssertionError:
            said = self._log.read_text()
            self.__exit__()
            if "mount" in said or "not permitted" in said:
                pytest.skip(f"no containers here: {said[-300:]}")
            raise AssertionError(f"the machine does not come up: {said[-2000:]}") from None
        return self

    def _is_up(self) -> bool:
        assert self._container is not None
        assert self._container.poll() is None, "the container has ended"
        children = Path(f"/proc/{self._container.pid}/task/{self._container.pid}/children").read_text().split()
        self._first = int(children[0]) if children else 0
        return bool(children) and self.run("systemctl is-system-running", check=False).stdout.strip() in (
            "running",
            "degraded",
        )

    def __exit__(self, *_: object) -> None:
        if self._container is not None:
            if self._first:
                subprocess.run(["kill", "-KILL", str(self._first)], check=False, capture_output=True)
            else:
                self._container.kill()
            self._container.wait(30)

    def run(self, command: str, *, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a line of shell inside as root."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            ["nsenter", "--target", str(self._first), "--all", "/bin/sh", "-c", command],
            capture_output=True, text=True, check=False, timeout=300,
            env={"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", **environ},
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def state(self, unit: str) -> dict[str, str]:
        """What systemd says of a unit."""
        properties = "ActiveState,StatusText,MainPID,NRestarts,Result,ExecMainStatus"
        lines = self.run(f"systemctl show {unit} --property={properties}").stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, wanted: Callable[[], Any]) -> None:
        """Wait for something inside. Raises AssertionError after a minute."""
        end = time.monotonic() + _PATIENCE
        while not wanted():
            assert time.monotonic() < end, f"not within {_PATIENCE:g} s"
            time.sleep(0.1)
