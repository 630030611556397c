"""What the process list shows of passwords."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_passwords_do_not_stay_in_the_process_list() -> None:
    program = (
        "from nimsnats.secret_arguments import hide; hide('hush', 'tok', None); print(*open('/proc/self/cmdline'))"
    )
    arguments = ["--pass", "hush", "--auth=tok", "--name", "hushed", "tokens=tok"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    shown = done.stdout.rstrip("\n\0").split("\0")[3:]
    assert shown == ["--pass", "xxxx", "--auth=xxx", "--name", "hushed", "tokens=tok"]
