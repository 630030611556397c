"""`nimsnats status` against an HTTP port that answers as a node does, or does not."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from nimsnats import cli

HEALTH: dict[str, object] = {
    "status": "healthy",
    "node": "n1",
    "cluster": {"size": 3, "peers": ["n2", "n3"], "replication_factor": 3},
    "registry": {"connected": True, "url": "http://r:8500"},
    "jetstream": {"streams": ["RIVER", "HUMUS"], "kv_buckets": ["SOIL"]},
}


class Port:
    """An HTTP port with an answer for `/health` and one for `/statusz`."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, b"")
        self.overview: tuple[int, bytes] = (404, b"")
        port = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = port.answer if self.path == "/health" else port.overview
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    thread = threading.Thread(target=port.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield port
    port.server.shutdown()
    thread.join()
    port.server.server_close()


def test_a_healthy_node(port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    port.answer = (200, json.dumps(HEALTH).encode())
    assert cli.main(["status", "--url", f"http://{port.address}/"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "n1: healthy",
        "  cluster    size 3, replication factor 3, peers: n2, n3",
        "  registry   connected http://r:8500",
        "  jetstream  streams: RIVER, HUMUS; buckets: SOIL",
    ]
    assert cli.main(["status", "--json", "--url", port.address]) == 0
    assert json.loads(capsys.readouterr().out) == HEALTH


def test_an_unhealthy_node(port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    registry = {"connected": False, "url": "http://r:8500"}
    port.answer = (503, json.dumps({**HEALTH, "status": "unhealthy", "registry": registry}).encode())
    assert cli.main(["status", "--url", port.address]) == 1
    output = capsys.readouterr().out
    assert "n1: unhealthy" in output
    assert "NOT CONNECTED" in output


@pytest.mark.parametrize("answer", [(200, b"<html>"), (200, b"[]"), (404, b"{}")])
def test_something_else_answers(port: Port, answer: tuple[int, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    port.answer = answer
    assert cli.main(["status", "--url", port.address]) == 1
    assert "is not a nimsnats node" in capsys.readouterr().err


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody:  # bound but not listening: the port is ours, and refuses
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        assert cli.main(["status", "--url", address]) == 1
    assert capsys.readouterr().err == f"nimsnats: no node answers at http://{address}: Connection refused\n"


def test_no_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--url", "http://"]) == 1
    assert "no node answers at http://" in capsys.readouterr().err


def overview(port: Port, **changes: object) -> None:
    """Let the port tell of a cluster of two with a stream, a consumer and a client with an odd name."""
    node = {
        "state": "healthy", "leader": False, "rtt": 300_000, "answered": True, "heard": 0.1, "version": "1.0",
        "uptime": 65 * 10**9, "memory": 2**26, "cpu": 4.0, "connections": 1, "subscriptions": 3, "slow_consumers": 0,
        "streams": 1, "consumers": 1, "in_rate": 5.0, "out_rate": None, "loop_lag": 0.0004, "commit_time": 0.002,
        "routes": ["n2"], "problems": [], "lag": 0,
    }  # fmt: skip
    stream = {
        "account": "$G", "name": "ORDERS", "leading": True, "leader": "n1", "messages": 12345, "bytes": 2**20,
        "last": 12345, "consumers": 1, "lost": 0, "rate": 3.5, "state": "behind",
        "replicas": [{"name": "n2", "current": False, "offline": False, "lag": 7}],
    }  # fmt: skip
    client = {
        "node": "n1", "cid": 7, "name": "evil\x1b[2Jname", "address": "127.0.0.1:5", "account": "$G", "language": "py",
        "subs": 1, "in_msgs": 1, "out_msgs": 2, "pending": 0, "rtt": 0, "uptime": 10**9,
    }  # fmt: skip
    stage = {"total": 9, "waiting": 0, "kept": 0, "rate": 1.0}
    told = {
        "node": "n1", "cluster": "c", "time": "2026-01-02T03:04:05.6Z", "status": "degraded",
        "problems": ["n2 is away"],
        "size": 2, "replication_factor": 2, "leader": "n1",
        "nodes": [{**node, "name": "n1", "leader": True}, {**node, "name": "n2", "state": "away", "heard": 4.0}],
        "traffic": {"in_msgs": 5.0, "out_msgs": 6.0, "in_bytes": 7.0, "out_bytes": 8.0},
        "streams": {"total": 1, "list": [stream]}, "consumers": {"total": 0, "list": []},
        "connections": {"total": 250, "list": [client]},
        "flow": [{"stage": "river", **stage}, {"stage": "tree", **stage}],
        "registry": [
            {"node": "n1", "url": "http://r", "connected": True, "registered": True, "watch": "sse", "error": ""}
        ],
        "events": [],
        **changes,
    }  # fmt: skip
    port.answer = (200, json.dumps(HEALTH).encode())
    port.overview = (200, json.dumps(told).encode())


def test_status_shows_the_cluster_as_tables(port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    overview(port)
    assert cli.main(["status", "--url", port.address]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["n2", "away", *"-----", "-", "0.3", "ms", "-", "-", "last", "heard", "4s", "ago"] in lines
    assert ["ORDERS", "$G", "behind", "n1", "n2", "(away)", "12,345", "1.0", "MiB", "3.5/s", "1"] in lines
    assert ["n1", "connected", "registered", "sse", "http://r"] in lines
    assert ["River", "9", "(1.0/s)", "->", "Tree", "9", "(1.0/s)"] in lines
    assert cli.main(["status", "--json", "--url", port.address]) == 0
    assert json.loads(capsys.readouterr().out)["overview"]["cluster"] == "c"


def test_a_node_of_another_version_is_no_reason_to_fail(port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    overview(port, streams="many")
    assert cli.main(["status", "--url", port.address]) == 0
    assert "another version" in capsys.readouterr().out


def test_top_without_a_terminal_prints_once(port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    overview(port)
    assert cli.main(["top", "--url", port.address]) == 0
    output = capsys.readouterr().out
    assert "degraded" in output and "! n2 is away" in output
    assert "evil?[2Jname" in output and "\x1b" not in output
    assert "Shown: 1 of 250." in output


def test_watching_goes_on_until_it_is_interrupted(port: Port) -> None:
    overview(port)
    command = [sys.executable, "-m", "nimsnats", "status", "--watch", "--url", port.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        for _ in range(2):
            while (line := watching.stdout.readline()) != "n1: healthy\n":
                assert line, "watching ended by itself"
        watching.send_signal(signal.SIGINT)
        watching.stdout.read()
        assert watching.wait() == 0


def test_top_draws_to_the_size_of_its_terminal_and_ends_with_q(port: Port) -> None:
    overview(port)
    child, terminal = pty.fork()
    if child == 0:
        _resize(0, 5, 30)
        os.execv(sys.executable, [sys.executable, "-m", "nimsnats", "top", "--url", port.address])
    small = _read_until(terminal, b"\x1b[J")
    assert small.startswith(b"\x1b[?1049h")
    assert b"n2 is away" in small and b"ORDERS" not in small and b"last heard" not in small
    _resize(terminal, 40, 200)
    assert b"last heard" in _read_until(terminal, b"ORDERS")
    os.write(terminal, b"q")
    assert b"\x1b[?25h" in _read_until(terminal, b"\x1b[?1049l")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)


def _resize(terminal: int, lines: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def _read_until(terminal: int, wanted: bytes) -> bytes:
    found = b""
    while wanted not in found:
        found += os.read(terminal, 65536)
    return found
