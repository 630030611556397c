"""Nodes that are set up as the guide for operators says, on hosts of their own: installer, settings, unit.

There is no systemd on these hosts: what it would do with the unit and the environment file is done here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.chaos.network import Network
from tests.chaos.world import HostedNode

_INSTALLER: Final = Path(__file__).parents[2] / "deploy" / "install.sh"


SECRET: Final = "0123456789abcdef"
"""Of all machines, the registry's included."""


class InstalledNode(HostedNode):
    """A node below a root directory of its own. `wheel` is what is installed, its dependencies lie in `wheels`."""

    def __init__(
        self, network: Network, name: str, directory: Path, registry: str, *, wheel: Path, wheels: Path
    ) -> None:
        super().__init__(network, name, directory, registry)
        self.root = directory / f"{name}.root"
        self._wheels = wheels
        self.install(wheel)
        settings = {
            "REGISTRY_URL": registry,
            "REGISTRY_HEARTBEAT_INTERVAL": "1s",
            "NATS_NODE_NAME": name,
            "NATS_DATA_DIR": str(self.data_dir),
            "NATS_CLUSTER_SECRET": SECRET,
        }
        file = self.root / "etc/nimsforest/nimsforest.env"
        lines = file.read_text()
        for variable, value in settings.items():
            lines, count = re.subn(f"^#?{variable}=.*$", f"{variable}={value}", lines, flags=re.MULTILINE)
            assert count == 1, f"{variable} is not in the template"
        file.write_text(lines)
        given = re.findall(r"^([A-Z_]+)=(.*)$", lines, re.MULTILINE)
        self.environment = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **dict(given)}

    def install(self, wheel: Path) -> str:
        """Install a release, as a first one or over another; what the installer says."""
        command = [_INSTALLER, "--root", self.root, "--python", sys.executable, "--source", wheel]
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self._wheels)}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **offline}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _command_line(self) -> list[str]:
        unit = (self.root / "etc/systemd/system/nimsforest.service").read_text()
        (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        program, *flags = line.split()
        assert flags == ["$NIMSFOREST_FLAGS"], "the unit's one argument, which is empty here"
        return [str(self.root) + program]
