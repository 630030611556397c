"""The Go nats-server, asked what it thinks of a configuration file or of flags that end it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BINARY = Path(sys.executable).parent / "nats-server"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run ended. `stderr` has no program name in front."""

    code: int
    stdout: str
    stderr: str


def run(*arguments: str, cwd: Path, environ: Mapping[str, str] | None = None) -> Verdict:
    """Run the Go server with arguments that make it print something and leave."""
    done = subprocess.run(
        [BINARY, *arguments],
        cwd=cwd,
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return Verdict(done.returncode, done.stdout, done.stderr.removeprefix("nats-server: ").strip())


def check(text: str, cwd: Path, environ: Mapping[str, str] | None = None) -> Verdict:
    """What `nats-server -t -c t.conf` says to a text."""
    (cwd / "t.conf").write_text(text)
    return run("-t", "-c", "t.conf", cwd=cwd, environ=environ)
