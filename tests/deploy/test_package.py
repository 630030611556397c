"""What is built from this repository, and what the shell is told of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from nimsnats import cli
from nimsnats.version import __version__
from tests.deploy import packages

ROOT = Path(__file__).parents[2]


def build(directory: Path, umask: int) -> dict[str, str]:
    """The digests of wheel and source archive, built from a copy of the sources."""
    pytest.importorskip("hatchling")
    built = packages.build(directory, umask=umask)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in built}


def test_whoever_builds_it_gets_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    built = build(first, 0o022)
    wheel, sources = f"nimsnats-{__version__}-py3-none-any.whl", f"nimsnats-{__version__}.tar.gz"
    assert built.keys() == {wheel, sources}
    assert build(second, 0o077) == built

    names = zipfile.ZipFile(first / "dist" / wheel).namelist()
    assert {"nimsnats/py.typed", "forest/py.typed", "nimsnats/cli.py"} <= set(names)
    assert {name.partition("/")[0] for name in names} == {"nimsnats", "forest", f"nimsnats-{__version__}.dist-info"}
    with tarfile.open(first / "dist" / sources) as archive:
        assert f"nimsnats-{__version__}/deploy/install.sh" in archive.getnames()


@pytest.mark.extended
@pytest.mark.timeout(600)
def test_the_wheel_runs_in_a_fresh_environment(tmp_path: Path) -> None:
    """What pipx does: an environment of its own with the wheel and what it depends on."""
    (tmp_path / "source").mkdir()
    build(tmp_path / "source", 0o022)
    (wheel,) = (tmp_path / "source" / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    pip = [tmp_path / "venv/bin/pip", "--disable-pip-version-check", "install", "-q", wheel]
    subprocess.run(pip, check=True, timeout=400)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command, text in (
        (["nimsnats", "--version"], f"nimsnats {__version__} (NATS "),
        (["nimsnats-server", "--version"], "nats-server: v2"),
        (["nimsnats", "--data-dir", str(tmp_path / "d"), "doctor"], "no problems"),
    ):
        shown = subprocess.run(
            [tmp_path / "venv/bin" / command[0], *command[1:]], capture_output=True, text=True, cwd=tmp_path,
            env=environ, timeout=60, check=False,
        )  # fmt: skip
        assert text in shown.stdout, shown.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_completion(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["completion", shell]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    assert f"_NIMSNATS_COMPLETE={shell}_complete" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", script], check=True, timeout=20)


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes_commands_and_flags(tmp_path: Path) -> None:
    command = tmp_path / "nimsnats"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; from nimsnats.cli import main; '
                       'sys.exit(main())" "$@"\n')  # fmt: skip
    command.chmod(0o755)
    words = """
eval "$(nimsnats completion bash)"
for line in "nimsnats do" "nimsnats doctor --env" "nimsnats --log-format "; do
    read -ra COMP_WORDS <<< "$line"; [[ $line = *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    _nimsnats_completion nimsnats "${COMP_WORDS[COMP_CWORD]}"
    echo "${COMPREPLY[*]}"
done
"""
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shown = subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, env=environ, timeout=60, check=True, cwd=ROOT
    )  # fmt: skip
    assert shown.stdout.splitlines() == ["doctor", "--env-file", "text json"]
