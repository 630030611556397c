"""nats-server's command line: our answers beside the Go server's."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimsnats import cli, server_flags
from nimsnats.config import ServerFlags
from nimsnats.version import NATS_VERSION
from tests.config import oracle

ENDING_AT_ONCE = [
    "-v", "--version", "version", "VERSION", "-DV -v", "-p=-1 -v", "-p -1 -v", "-p 0x10 -v", "-p=4_000 -v", "-D=t -v",
    "-D=T -v", "-js=false -v", "-v foo", "-zzz", "-p abc", "-p", "-p= -v", "-js=maybe", "-D=yes -v", "-T=maybe",
    "---v", "-=3", "-ping", "-p 99999999999999999999", "-log_size_limit x", "--max_traced_msg_len=1k -v", "-m",
    "--name", "-sl", "foo", "foo -v", "-- -v", "-", "- -v", "-t", "-c nofile.conf", "-t -c nofile.conf",
    "-v=false foo", "--signal foo=1", "--signal foo=x", "--signal stop=1=2", "--signal reload=x",
    "--signal stop=2147483646", "-t -c bad.conf", "-t -c warn.conf", "-t -c empty.conf", "-t -c ok.conf",
    "-t -c ok.conf -p 70000", "-t -c ok.conf -p abc", "-h", "--help", "help", "-help_tls", "-sd", "-t=x", "-p 1e3",
    "-p 08 -v", "-p 010 -v", "-p +5 -v", "-p 0b11 -v", "-p _1 -v",
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "ok.conf": "port: 4222, server_name: x",
        "bad.conf": "foo: 1\nbar: 2",
        "warn.conf": "ping_interval: 30",
        "empty.conf": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", ENDING_AT_ONCE)
def test_the_go_server_says_the_same(line: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = oracle.run(*line.split(), cwd=here)
    code = cli.server_main(line.split())
    output = capsys.readouterr()
    assert code == theirs.code
    ours = output.err.removeprefix("nats-server: ").strip()
    assert sorted(ours.splitlines()) == sorted(theirs.stderr.splitlines())  # Go's order of errors is not stable
    if "Usage:" in theirs.stdout:
        assert output.out.startswith("\nUsage: nimsnats-server [options]")
    elif theirs.stdout.startswith("nats-server: v"):
        assert output.out.startswith(f"nats-server: v{NATS_VERSION}")
    else:
        assert bool(output.out) == bool(theirs.stdout)


def test_every_flag_of_the_go_server_is_known(here: Path) -> None:
    usage = oracle.run("-h", cwd=here).stdout
    words = {word.strip(",") for part in usage.split("-sl,--signal") for word in part.replace(",", " ").split()}
    names = {word.lstrip("-") for word in words if word.startswith("-") and word.strip("-<>") and "://" not in word}
    for name in sorted(names):
        for arguments in ([f"-{name}=1"], [f"--{name}", "1"]):
            server_flags.parse(arguments)
    assert len(names) > 50


@pytest.mark.parametrize(("line", "expected"), [
    ("-p 4223 -a 127.0.0.1", ServerFlags(port=4223, host="127.0.0.1")),
    ("--port=4223 --net h", ServerFlags(port=4223, host="h")),
    ("-js -sd /x -n a", ServerFlags(jetstream=True, store_dir="/x", server_name="a")),
    ("-DV -m 8222", ServerFlags(debug_trace=True, http_port=8222)),
    ("-D -V -T=false", ServerFlags(debug=True, trace=True, logtime=False)),
    ("-js=false --user a --pass b", ServerFlags(jetstream=False, user="a", password="b")),
    ("--auth tok --cluster nats://h:1 --routes x,y", ServerFlags(token="tok", cluster="nats://h:1", routes="x,y")),
    ("-P p -l l -c c -t", ServerFlags(pid_file="p", log_file="l", config="c", test=True)),
    ("-name -v", ServerFlags(server_name="-v")),
    ("-VV -DVV", ServerFlags(trace_verbose=True, debug_trace_verbose=True)),
])  # fmt: skip
def test_values(line: str, expected: ServerFlags) -> None:
    assert server_flags.parse(line.split()) == (expected, [])


def test_parsing_stops_at_the_first_argument_that_is_no_flag() -> None:
    assert server_flags.parse(["-D", "x", "-V"]) == (ServerFlags(debug=True), ["x", "-V"])
    assert server_flags.parse(["-D", "--", "-V"]) == (ServerFlags(debug=True), ["-V"])
