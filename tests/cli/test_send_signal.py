"""Which process `--signal` means."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nimsnats.send_signal import SignalError, send_signal, servers


def listing(root: Path, processes: dict[int, str]) -> Path:
    """A process list as /proc shows it."""
    for pid, command in processes.items():
        (root / str(pid)).mkdir()
        (root / str(pid) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in command.split()))
    (root / "self").mkdir()
    return root


def test_only_nodes_and_servers_count(tmp_path: Path) -> None:
    proc = listing(tmp_path, {
        11: "python3 -m nimsnats --client-port -1",
        12: "/usr/bin/python3 /usr/local/bin/nimsnats-server -p 4222",
        13: "/usr/local/bin/nimsnats server -js",
        21: "python3 -m nimsnats registry",
        22: "python3 -m nimsnats server --signal reload",
        23: "python3 -m nimsnats forest",
        24: "vim nimsnats.conf",
        25: "python3 -m pytest tests",
        26: "/usr/bin/nats-server -p 4222",
    })  # fmt: skip
    assert servers(proc) == [11, 12, 13]


@pytest.mark.parametrize(("processes", "reason"), [
    ({}, "no nats-server processes running"),
    ({11: "nimsnats", 12: "nimsnats-server"}, "multiple nats-server processes running:\n11\n12"),
])  # fmt: skip
def test_without_a_pid_there_must_be_one(processes: dict[int, str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(SignalError) as caught:
        send_signal("reload", listing(tmp_path, processes))
    assert str(caught.value) == reason


def test_to_a_pid_or_a_pid_file(tmp_path: Path) -> None:
    wait = [sys.executable, "-c", "import signal; print(1, flush=True); signal.pause()"]
    for target in ("pid", "file"):
        with subprocess.Popen(wait, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            (tmp_path / "pid").write_text(str(process.pid))
            send_signal(f"term={process.pid if target == 'pid' else tmp_path / 'pid'}")
            assert process.wait(10) == -signal.SIGTERM
