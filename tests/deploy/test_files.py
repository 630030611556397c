"""The files that are shipped beside the program: systemd's unit, the environment template, the installer, the image."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nimsnats import cli
from nimsnats.config import ConfigError, NodeFlags, load_node

DEPLOY = Path(__file__).parents[2] / "deploy"
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
needs_hadolint = pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
needs_shellcheck = pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environ}
    )


def template() -> dict[str, str]:
    """The template's variables, those that are commented out included, as systemd reads an environment file."""
    lines = (DEPLOY / "nimsforest.env.template").read_text().splitlines()
    pairs = (re.fullmatch(r"#?([A-Z][A-Z_]+)=(.*)", line) for line in lines)
    return {pair[1]: pair[2] for pair in pairs if pair}


@needs_systemd
@pytest.mark.parametrize("name", ["nimsforest.service", "nimsforest-registry.service"])
def test_systemd_takes_the_unit_and_finds_little_exposed(name: str, tmp_path: Path) -> None:
    unit = tmp_path / name
    text = (DEPLOY / name).read_text()
    unit.write_text(text.replace("/opt/nimsforest/venv/bin/nimsnats", "/bin/true"))  # the program must exist
    verified = run("systemd-analyze", "verify", "--man=no", unit)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    security = run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", unit)
    assert security.returncode == 0, security.stdout[-200:]


def test_the_unit_waits_for_nothing_but_the_network() -> None:
    unit = (DEPLOY / "nimsforest.service").read_text()
    depends = re.findall(r"^(?:Wants|Requires|After|BindsTo|Requisite)=(.*)$", unit, re.MULTILINE)
    assert set(" ".join(depends).split()) == {"network-online.target", "time-sync.target"}


def test_the_template_is_a_set_of_settings_that_the_node_takes(tmp_path: Path) -> None:
    given = template()
    specified = {
        "REGISTRY_URL", "REGISTRY_SERVICE_NAME", "REGISTRY_HEARTBEAT_INTERVAL", "NATS_NODE_NAME", "NATS_DATA_DIR",
        "NATS_CLIENT_PORT", "NATS_CLUSTER_PORT", "NATS_MONITOR_PORT",
    }  # fmt: skip
    assert specified < given.keys()
    unset = {name: value for name, value in given.items() if not name.startswith("NATS_CLUSTER_TLS")}
    settings = load_node(NodeFlags(), {**unset, "NATS_DATA_DIR": str(tmp_path)})
    assert settings.node_name == socket.gethostname(), "${HOSTNAME} is the one variable that is expanded"
    assert settings.registry.url == "http://morpheus-registry:8500"
    assert (settings.broker.port, settings.cluster.port, settings.monitor.port) == (4222, 6222, 8222)
    source = (Path(__file__).parents[2] / "nimsnats" / "config").glob("*.py")
    known = "".join(path.read_text() for path in source)
    own = {"NIMSFOREST_FLAGS", "REGISTRY_FLAGS"}  # the units'
    assert [name for name in given.keys() - own if name not in known and "WEBHOOK" not in name] == []


@pytest.mark.parametrize(("variable", "text", "message"), [
    ("NATS_NODE_NAME", "node-${ID}", 'NATS_NODE_NAME="node-${ID}": variables are not expanded here'),
    ("NATS_CLIENT_PORT", "4222 # clients", 'NATS_CLIENT_PORT="4222 # clients" is not a port number'),
    ("NATS_MONITOR_PORT", "82222", "NATS_MONITOR_PORT"),
    ("REGISTRY_URL", "morpheus-registry:8500", "REGISTRY_URL: "),
    ("REGISTRY_HEARTBEAT_INTERVAL", "10", "REGISTRY_HEARTBEAT_INTERVAL: "),
    ("NATS_DATA_DIR", "/dev/null/data", "cannot use data directory /dev/null/data: /dev/null is not a directory"),
])  # fmt: skip
def test_a_broken_environment_file_is_one_clear_line_and_nothing_is_touched(
    variable: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("NATS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv(variable, text)
    assert cli.main([]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_every_mistake_of_an_environment_file_is_named_at_once(tmp_path: Path) -> None:
    given = {"NATS_CLIENT_PORT": "x", "REGISTRY_URL": "x", "NATS_NODE_NAME": "$x", "NATS_DATA_DIR": str(tmp_path)}
    with pytest.raises(ConfigError) as refused:
        load_node(NodeFlags(), given)
    assert all(name in str(refused.value) for name in ("NATS_CLIENT_PORT", "REGISTRY_URL", "NATS_NODE_NAME"))


@needs_shellcheck
def test_the_installer_is_clean() -> None:
    checked = run("shellcheck", DEPLOY / "install.sh")
    assert (checked.returncode, checked.stdout) == (0, "")


_PYTHON = """#!/bin/sh
# stands in for an interpreter: `-m venv DIR` makes a directory with a pip that notes what it is asked for
if [ "$1" = -c ]; then exec {python} "$@"; fi
mkdir -p "$3/bin"
printf '#!/bin/sh\\necho "$@" >> {log}\\n' > "$3/bin/pip"
printf '#!/bin/sh\\n[ ! -e {broken} ]\\n' > "$3/bin/python"
touch "$3/bin/nimsnats"
chmod +x "$3/bin/pip" "$3/bin/python" "$3/bin/nimsnats"
"""


class Machine:
    """A root directory to install into, with an interpreter that installs nothing."""

    def __init__(self, path: Path) -> None:
        self.root = path / "root"
        self.log = path / "pip.log"
        self.broken = path / "broken"
        self.python = path / "python"
        self.python.write_text(_PYTHON.format(python=sys.executable, log=self.log, broken=self.broken))
        self.python.chmod(0o755)
        self.path = path

    def install(self, wheel: str, *more: str) -> subprocess.CompletedProcess[str]:
        source = self.path / "nimsnats-1.0-py3-none-any.whl"
        source.write_text(wheel)
        return run(
            DEPLOY / "install.sh", "--root", self.root, "--python", self.python, "--source", source, *more
        )  # fmt: skip

    def files(self) -> dict[str, str]:
        """Every file with its content, every link with its target, below the root."""
        found: dict[str, str] = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_symlink():
                found[name] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[name] = path.read_text()
        return found


def test_installing_twice_changes_nothing_and_edited_settings_stay(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    first = machine.install("one", "--prefix", "/srv/nf", "--user", "oak")
    assert first.returncode == 0, first.stderr
    environment = machine.root / "etc/nimsforest/nimsforest.env"
    assert environment.stat().st_mode & 0o777 == 0o600, "it holds secrets"
    unit = (machine.root / "etc/systemd/system/nimsforest.service").read_text()
    assert "ExecStart=/srv/nf/venv/bin/nimsnats" in unit and "User=oak\nGroup=oak\n" in unit
    assert os.readlink(machine.root / "usr/local/bin/nimsnats") == "/srv/nf/venv/bin/nimsnats"
    environment.write_text("NATS_CLIENT_PORT=5222\n")
    before, log = machine.files(), machine.log.read_text()
    again = machine.install("one", "--prefix", "/srv/nf", "--user", "oak")
    assert again.returncode == 0
    assert machine.files() == before
    assert machine.log.read_text() == log, "what is there already is not installed again"


def test_an_upgrade_keeps_the_release_before_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    link = machine.root / "opt/nimsforest/venv"
    releases = machine.root / "opt/nimsforest/releases"
    targets: list[str] = []
    for wheel in ("one", "two", "three", "three"):
        assert machine.install(wheel).returncode == 0
        targets.append(os.readlink(link))
    assert sorted(path.name for path in releases.iterdir()) == sorted(t.partition("/")[2] for t in targets[1:3])
    before = machine.files()
    machine.broken.touch()
    failed = machine.install("four")
    assert failed.returncode == 1
    assert "cannot be installed; nothing has changed" in failed.stderr
    assert machine.files() == before


def test_uninstalling_keeps_data_settings_and_what_is_not_ours(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    data = machine.root / "var/lib/nimsforest/jetstream/nimsnats.db"
    data.parent.mkdir(parents=True)
    data.write_text("data")
    command = machine.root / "usr/local/bin/nimsnats"
    command.parent.mkdir(parents=True)
    command.write_text("somebody else's")
    assert machine.install("one").returncode == 0
    assert machine.install("one", "--uninstall").returncode == 0
    assert sorted(machine.files()) == [
        "etc/nimsforest/nimsforest.env", "etc/nimsforest/nimsforest.env.template", "usr/local/bin/nimsnats",
        "var/lib/nimsforest/jetstream/nimsnats.db",
    ]  # fmt: skip
    assert command.read_text() == "somebody else's"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--nonsense"], "unknown option --nonsense"),
    (["--root"], "--root needs a value"),
    (["--prefix", "here", "--root", "/tmp"], "--prefix must be an absolute path"),
    (["--root", "/dev/null", "--python", "/bin/false"], "/bin/false is not Python 3.11 or newer"),
])  # fmt: skip
def test_the_installer_says_what_it_cannot_do(arguments: list[str], message: str) -> None:
    failed = run(DEPLOY / "install.sh", *arguments)
    assert failed.returncode == 1
    assert message in failed.stderr


def test_the_image_is_made_of_what_is_here() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert [name for name in copied if not (DEPLOY.parent / name).exists()] == []
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 4222:4222", "a number: no root by that name"


@needs_hadolint
def test_the_image_is_described_cleanly() -> None:
    checked = run("hadolint", DEPLOY / "Containerfile")
    assert (checked.returncode, checked.stdout) == (0, "")
