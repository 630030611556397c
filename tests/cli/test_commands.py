"""The commands: what they start, what they print, how they end."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nimsnats import cli, log
from nimsnats.config import Settings
from nimsnats.runtime import StartError
from nimsnats.version import __version__
from tests.ports import free_port

Run = Callable[[Settings], int]


@pytest.fixture
def composition(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Settings]]:
    """A stand-in for `nimsnats.node` that notes what it was asked to run and stops."""
    asked: dict[str, Settings] = {}
    module = types.ModuleType("nimsnats.node")

    def entry(name: str) -> Callable[[Settings], object]:
        async def run(settings: Settings) -> int:
            asked[name] = settings
            assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
            if settings.node_name == "broken":
                raise StartError("client port 4222 on 0.0.0.0 is in use\nby somebody")
            if settings.node_name == "deaf":
                raise OSError(errno.EADDRINUSE, "client port 4222 on 0.0.0.0 is in use by somebody")
            return 3 if settings.node_name == "three" else 0

        return run

    for name in ("run_node", "run_server"):
        setattr(module, name, entry(name))
    monkeypatch.setitem(sys.modules, "nimsnats.node", module)
    import nimsnats

    monkeypatch.setattr(nimsnats, "node", module, raising=False)
    yield asked
    output = log.start_logging(log.LogSettings())
    import logging

    logging.getLogger().removeHandler(output)


def test_no_command_runs_the_node(composition: dict[str, Settings], tmp_path: Path) -> None:
    arguments = ["--data-dir", str(tmp_path), "--client-port", "-1", "--monitor-port=0", "--node-name", "n"]
    assert cli.main([*arguments, "--registry-url", "http://r:8500", "--demo", "-D"]) == 0
    settings = composition["run_node"]
    assert (settings.broker.port, settings.monitor.port, settings.node_name) == (-1, 0, "n")
    assert (settings.registry.url, settings.forest.demo, settings.log.debug) == ("http://r:8500", True, True)


def test_server_takes_go_flags(composition: dict[str, Settings], tmp_path: Path) -> None:
    assert cli.main(["server", "-p", "-1", "-js", "-sd", str(tmp_path), "-DV", "-n", "three"]) == 3
    settings = composition["run_server"]
    assert (settings.broker.port, settings.broker.jetstream, settings.log.trace) == (-1, True, True)
    assert settings.data_dir == tmp_path / "jetstream"


@pytest.mark.parametrize("name", ["broken", "deaf"])
def test_what_cannot_start_is_one_line_of_log_and_1(
    name: str, composition: dict[str, Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.server_main(["-n", name]) == 1
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"\[\d+\] \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} \[FTL\] client port 4222 on 0.0.0.0 is in use by somebody\n",
        line,
    )
    assert composition


def test_pid_file(composition: dict[str, Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.server_main(["-P", str(tmp_path / "pid")]) == 0
    assert (tmp_path / "pid").read_text() == str(os.getpid())
    assert cli.server_main(["-P", "/nodir/pid"]) == 1
    assert "[FTL] Could not write pidfile: open /nodir/pid: no such file or directory" in capsys.readouterr().err
    assert composition


def test_log_file_that_cannot_be_written(composition: dict[str, Settings], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.server_main(["-l", "/nodir/log"]) == 1
    assert capsys.readouterr().err == "nats-server: error opening file: open /nodir/log: no such file or directory\n"
    assert not composition


def test_bad_configuration_is_all_its_errors_and_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "n.conf"
    config.write_text("prot: 1\nfoo: 2")
    assert cli.main(["-c", str(config)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f'nimsnats: {config}:1:0: unknown field "prot" (did you mean "port"?)'
    assert second == f'{config}:2:1: unknown field "foo"'


@pytest.mark.parametrize(("line", "code", "text"), [
    ("--version", 0, f"nimsnats {__version__} (NATS "),
    ("--help", 0, "--registry-url"),
    ("-h", 0, "nimsnats server -p 4222 -js"),
    ("server --help", 0, "Usage: nimsnats-server [options]"),
    ("server -v", 0, "nats-server: v"),
    ("registry --help", 0, "--ttl"),
    ("forest --help", 0, "--nats-url"),
    ("forest --nonsense", 2, "unrecognized arguments"),
    ("nonsense", 2, "No such command"),
    ("--client-port x", 2, "not a valid integer"),
    ("registry --ttl 10", 1, 'nimsnats: --ttl: time: missing unit in duration "10"'),
    ("registry --tls-cert c", 1, "nimsnats: --tls-cert and --tls-key need each other"),
    ("registry --tls-cert /c --tls-key /k", 1, "certificate/key pair: /c and /k: No such file or directory"),
])  # fmt: skip
def test_what_is_printed(line: str, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == code
    output = capsys.readouterr()
    assert text in output.out + output.err


def test_a_registry_in_its_own_process_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "nimsnats", "registry", "--listen", f"127.0.0.1:{port}", "--ttl", "5s"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert f"[INF] Registry listening on http://127.0.0.1:{port} (ttl 5s" in first
        second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False,
                                cwd=Path(__file__).parents[2])  # fmt: skip
        assert second.returncode == 1
        assert second.stderr.count("\n") == 1
        assert f"[FTL] registry cannot listen on 127.0.0.1:{port}" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
