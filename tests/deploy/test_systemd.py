"""The units under a real systemd, from the installation to the removal, by the commands of the operators' guide."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.deploy import packages
from tests.deploy.booted import Machine

pytestmark = [pytest.mark.extended, pytest.mark.timeout(600)]

INSTALLER = Path(__file__).parents[2] / "deploy" / "install.sh"
READY = "Ready: cluster of 1, replication factor 1"
UNIT = "nimsforest"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two releases as wheels, and all that they depend on."""
    folder = tmp_path_factory.mktemp("shared")
    releases = [packages.build_wheel(folder / version, version) for version in ("1.0.0", "1.1.0")]
    try:
        packages.gather(releases[0], folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no package index: {error.stderr.decode()[-300:]}")
    return folder


def install(machine: Machine, shared: Path, version: str) -> str:
    """Run the installer; what it says."""
    wheel = shared / version / "dist" / f"nimsnats-{version}-py3-none-any.whl"
    (shared / "deploy").mkdir(exist_ok=True)
    for file in INSTALLER.parent.iterdir():
        if file.is_file():
            (shared / "deploy" / file.name).write_bytes(file.read_bytes())
    command = f"sh {shared}/deploy/{INSTALLER.name} --source {wheel}"
    return machine.run(command, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(shared)).stdout


def test_a_node_is_installed_restarted_watched_upgraded_and_removed(tmp_path: Path, shared: Path) -> None:
    with Machine(tmp_path, shared) as machine:
        if machine.run("python3 -c 'import sys, ensurepip; assert sys.version_info > (3, 11)'", check=False).returncode:
            pytest.skip("needs Python 3.11 with venv outside of home directories")
        assert "User: created nimsforest" in install(machine, shared, "1.0.0")
        machine.run("nimsnats doctor --env-file /etc/nimsforest/nimsforest.env")
        machine.run(f"systemctl enable --now {UNIT}")
        first = machine.state(UNIT)
        assert (first["ActiveState"], first["StatusText"]) == ("active", READY), "start returns when the node serves"
        assert machine.run(f"stat -c %U /proc/{first['MainPID']}").stdout == "nimsforest\n"
        machine.run("nimsnats status")

        machine.run(f"systemctl reload {UNIT}")
        assert machine.state(UNIT)["MainPID"] == first["MainPID"]

        machine.run(f"kill -KILL {first['MainPID']}")
        machine.until(lambda: is_back(machine, first["MainPID"], restarts=1))
        second = machine.state(UNIT)["MainPID"]
        machine.run(f"mkdir -p /etc/systemd/system/{UNIT}.service.d")
        machine.run(f"printf '[Service]\nWatchdogSec=4\n' > /etc/systemd/system/{UNIT}.service.d/soon.conf")
        machine.run(f"systemctl daemon-reload && systemctl restart {UNIT}")
        stuck = machine.state(UNIT)["MainPID"]
        assert stuck != second
        machine.run(f"kill -STOP {stuck}")
        machine.until(lambda: is_back(machine, stuck, restarts=1))
        assert "Watchdog timeout" in machine.run(f"journalctl --no-pager -u {UNIT}").stdout

        said = install(machine, shared, "1.1.0")
        assert "A node is running with what was there before." in said
        assert machine.run("cat /proc/$(systemctl show -P MainPID nimsforest)/cmdline").stdout.count("1.0.0") == 1
        before = machine.run("ls -d /opt/nimsforest/releases/1.0.0-*").stdout.strip().rpartition("/")[2]
        for version, link in (("1.1.0", ""), ("1.0.0", f"ln -sfn releases/{before} /opt/nimsforest/venv && ")):
            machine.run(f"{link}systemctl restart {UNIT} && nimsnats status")
            assert f"nimsnats {version} " in machine.run("nimsnats --version").stdout

        machine.run(f"systemctl stop {UNIT}")
        stopped = machine.state(UNIT)
        assert (stopped["ActiveState"], stopped["Result"], stopped["ExecMainStatus"]) == ("inactive", "success", "0")
        machine.run(f"sh {shared}/deploy/{INSTALLER.name} --uninstall")
        assert machine.run("command -v nimsnats", check=False).returncode != 0
        machine.run("test -s /var/lib/nimsforest/jetstream/nimsnats.db -a -s /etc/nimsforest/nimsforest.env")


def test_a_registry_alone_is_a_service(tmp_path: Path, shared: Path) -> None:
    with Machine(tmp_path, shared) as machine:
        install(machine, shared, "1.0.0")
        machine.run("systemctl enable --now nimsforest-registry")
        assert machine.state("nimsforest-registry")["StatusText"] == "Listening on http://0.0.0.0:8500"
        machine.run("test -s /var/lib/nimsforest/registry/registry.db")


def is_back(machine: Machine, former: str, *, restarts: int) -> bool:
    """Whether systemd has started another process in place of one, and that is ready."""
    state = machine.state(UNIT)
    return (
        state["MainPID"] != former
        and state["NRestarts"] == str(restarts)
        and (state["ActiveState"], state["StatusText"]) == ("active", READY)
    )
