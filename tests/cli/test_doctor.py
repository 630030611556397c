"""What `nimsnats doctor` finds on a machine, and that it leaves no trace."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from nimsnats import cli
from nimsnats.doctor import disk, env_file
from nimsnats.storage.directory import claim

GOOD = "J9vKq2mXw7RtY4bNc8LpZ3hF"


class Doctor:
    """Runs the command in this process, on ports that are free and a directory of its own."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._patch, self._capsys = monkeypatch, capsys
        self.output = ""

    def __call__(self, *arguments: str, code: int = 0, **environ: str) -> list[str]:
        """The findings as `level subject: text`."""
        given = {
            "NATS_DATA_DIR": str(self.directory), "NATS_NODE_NAME": "oak", "NATS_CLUSTER_SECRET": GOOD,
            "NATS_CLIENT_PORT": "-1", "NATS_CLUSTER_PORT": "-1", "NATS_MONITOR_PORT": "-1", **environ,
        }  # fmt: skip
        for name, value in given.items():
            self._patch.setenv(name, value)
        exit_code = cli.main(["--advertise", "192.0.2.1", "doctor", "--json", *arguments])
        self.output = self._capsys.readouterr().out
        report: dict[str, Any] = json.loads(self.output)
        assert exit_code == code, self.output
        assert report["ok"] == (code == 0)
        assert all(found["level"] == "ok" or found["advice"] for found in report["findings"])
        return [f"{found['level']} {found['subject']}: {found['text']}" for found in report["findings"]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    for name in [name for name in os.environ if name.startswith(("NATS_", "REGISTRY_", "FOREST_"))]:
        monkeypatch.delenv(name)
    return Doctor(tmp_path / "data", monkeypatch, capsys)


def has(findings: list[str], text: str) -> bool:
    return any(text in finding for finding in findings)


def test_a_fresh_machine_is_looked_at_and_left_as_it_is(
    doctor: Doctor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = doctor()
    assert has(findings, "ok program: nimsnats ")
    assert has(findings, "ok settings: node oak, cluster nimsforest")
    assert has(findings, "does not exist yet")
    assert has(findings, "a sync takes ")
    assert has(findings, "ok address: other nodes are told 192.0.2.1 (--advertise)")
    assert has(findings, "ok secrets: 1 long and varied")
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["--advertise", "192.0.2.1", "doctor"]) == 0
    text = capsys.readouterr().out
    assert "ok       settings  node oak" in text
    assert text.splitlines()[-1].startswith("no problems, ")


def test_a_running_node_is_recognised_by_its_lock_and_its_ports(doctor: Doctor) -> None:
    held = claim(doctor.directory, "oak", random.Random(1))
    before = {path: path.stat().st_mtime_ns for path in (doctor.directory, *doctor.directory.iterdir())}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        findings = doctor(NATS_CLIENT_PORT=str(port))
        assert has(findings, f"ok data: in use by the running node (pid {os.getpid()})")
        assert has(findings, f"ok ports: client port {port} is used by the running node (pid {os.getpid()})")
        assert has(findings, f"is of node oak, instance {held.identity.instance if held.identity else ''}")
        held.release()
        findings = doctor(NATS_CLIENT_PORT=str(port), NATS_NODE_NAME="elm", code=1)
        assert has(findings, f"problem ports: client port {port} is in use by ")
        assert has(findings, f"(pid {os.getpid()})")
        assert has(findings, "warning data: it was made by node oak, and this one is called elm")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_directory_that_is_not_for_this_version_is_a_problem(doctor: Doctor) -> None:
    claim(doctor.directory, "oak", random.Random(1)).release()
    identity = doctor.directory / "identity"
    newer = json.dumps({**json.loads(identity.read_text()), "format": 99})
    identity.write_text(newer)
    assert has(doctor(code=1), "has format 99; this version reads up to")
    assert identity.read_text() == newer
    identity.unlink()
    (doctor.directory / "photos").touch()
    assert has(doctor(code=1), "is not ours: it holds photos")


def test_a_clock_that_was_set_back_shows_in_the_files(doctor: Doctor) -> None:
    claim(doctor.directory, "oak", random.Random(1)).release()
    later = (datetime.now(UTC) + timedelta(hours=2)).timestamp()
    os.utime(doctor.directory / "identity", (later, later))
    assert has(doctor(), "s in the future: the clock has been set back, or is wrong")


def test_settings_are_judged_and_secrets_never_shown(doctor: Doctor, tmp_path: Path) -> None:
    findings = doctor(NATS_CLUSTER_SECRET="secret99", FOREST_WEBHOOK_STRIPE=f"{GOOD},aaaaaaaaaaaaaaaaaaaaaaaa")
    assert has(findings, "warning secrets: the cluster secret (NATS_CLUSTER_SECRET) is easy to guess")
    assert has(findings, "warning secrets: the secret of webhook stripe is easy to guess")
    assert "secret99" not in doctor.output and GOOD not in doctor.output and "aaaa" not in doctor.output
    assert has(doctor(NATS_CLUSTER_SECRET=""), "warning secrets: no cluster secret")
    findings = doctor(NATS_CLIENT_PORT="5000", NATS_MONITOR_PORT="5000", code=1)
    assert has(findings, "problem ports: monitor port 5000 is the client port as well")
    assert has(doctor(NATS_CLIENT_PORT="none", code=1), 'problem settings: NATS_CLIENT_PORT="none" is not a port')

    file = tmp_path / "node.env"
    file.write_text(f"NATS_NODE_NAME=ash\nexport X=1\nREGISTRY_TOKEN={GOOD}\nNIMSFOREST_FLAGS=--cluster-name fen -D\n")
    file.chmod(0o644)
    findings = doctor("--env-file", str(file), code=1)
    assert has(findings, "line 2 is ignored by systemd ('export' is the shell's): export X")
    assert has(findings, "holds secrets that others can read")
    assert has(findings, "node ash, cluster fen")
    file.write_text("REGISTRY_URI=http://r:8500\nREGISTRY_FLAGS=--ttl=9s\nFOREST_WEBHOOK_X=\nLANG=C\n")
    assert has(doctor("--env-file", str(file), code=1), "problem settings: " + f"{file}: nothing reads REGISTRY_URI")
    assert "Is it REGISTRY_URL?" in doctor.output and doctor.output.count("nothing reads") == 1
    file.write_text("NIMSFOREST_FLAGS=--nonsense")
    assert has(doctor("--env-file", str(file), code=1), "problem settings: NIMSFOREST_FLAGS: No such option")


class Answers(BaseHTTPRequestHandler):
    """A registry that wants a token, lists two nodes and has the wrong time."""

    peers: list[dict[str, Any]] = []

    def do_GET(self) -> None:
        allowed = self.headers["Authorization"] == f"Bearer {GOOD}" and self.path == "/v1/services/nimsforest/nodes"
        body = json.dumps(self.peers if allowed else {"error": "who are you?"}).encode()
        self.send_response_only(200 if allowed else 401)
        self.send_header("Date", format_datetime(datetime.now(UTC) - timedelta(minutes=10), usegmt=True))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_registry_is_asked_as_the_node_would(doctor: Doctor, registry: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as peer:
        there = peer.getsockname()[1]
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            gone = closed.getsockname()[1]
            Answers.peers = [
                {"name": "elm", "address": "127.0.0.1", "port": there},
                {"name": "fir", "address": "127.0.0.1", "port": gone},
                {"name": "oak", "address": "127.0.0.1", "port": 1},
            ]
            findings = doctor(REGISTRY_URL=registry, REGISTRY_TOKEN=GOOD)
            nobody = doctor(REGISTRY_URL=f"http://127.0.0.1:{gone}", code=1)
    assert has(findings, f"ok registry: {registry} answers and lists 2 other nodes: elm, fir")
    assert has(findings, f"ok peers: elm at 127.0.0.1:{there} can be reached")
    assert has(findings, f"warning peers: fir at 127.0.0.1:{gone} cannot be reached: connect")
    assert has(findings, "s ahead of the registry")
    assert has(doctor(REGISTRY_URL=registry, REGISTRY_TOKEN="x", code=1), "answered 401 Unauthorized: who are you?")
    assert has(nobody, f"problem registry: http://127.0.0.1:{gone}: ")


def test_an_environment_file_is_read_as_systemd_does() -> None:
    read = env_file.parse(
        "# c\n; c\n\nA=1\nB='two words'\nC=\"x\"\nD=long \\\nline\nE=\n F = g\nH=v # w\nA=2\nI='open\nJ=cr\r\n=x\n"
    )
    assert read.variables == {"A": "2", "B": "two words", "C": "x", "D": "long line", "E": "", "H": "v # w", "J": "cr"}
    assert [mistake.partition(":")[0].partition(" is")[0].partition(" sets")[0] for mistake in read.mistakes] == [
        "line 10", "line 11", "line 12", "line 13", "line 14 ends as on Windows", "line 15",
    ]  # fmt: skip


def test_where_data_is_not_safe_is_named(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"23 22 0:9 / {tmp_path} rw - ext4 /dev/sdb rw\n"
        f"24 23 0:9 / {tmp_path} rw - tmpfs tmpfs rw\n"
        f"25 22 0:9 / {tmp_path}-not rw - xfs /dev/sdc rw\n"
    )
    assert disk.filesystem(tmp_path, mounts) == "tmpfs"
    assert disk.filesystem(Path("/usr"), mounts) == "ext4"
    shared = Path("/dev/shm")
    if disk.filesystem(shared) == "tmpfs":
        texts = [found.text for found in disk.check_disk(shared / "nowhere" / "data", lambda: 0)]
        assert texts[0] == "/dev/shm is in memory (tmpfs): all data is lost when the machine stops"
        assert not (shared / "nowhere").exists()
