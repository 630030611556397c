"""`nimsnats status` against an HTTP port that answers as a node does, or does not."""

from __future__ import annotations

import json
import socket
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
    """An HTTP port with one answer for everything."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, b"")
        port = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/health"
                self.send_response(port.answer[0])
                self.end_headers()
                self.wfile.write(port.answer[1])

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
