"""What the service manager hears from a real process, over a real socket; and what the protocol looks like."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import nats
import pytest

from nimsnats.notify import Notify
from tests.broker.peer import until
from tests.chaos.process import NodeProcess


class Manager:
    """The service manager's end of the socket; an address beginning with @ is in the abstract namespace."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(b"\0" + address[1:].encode() if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.heard: list[str] = []

    async def until(self, wanted: Callable[[str], bool]) -> None:
        """Listen until an assignment is as wanted."""
        loop = asyncio.get_running_loop()
        while not any(map(wanted, self.heard)):
            self.heard += (await loop.sock_recv(self.socket, 65536)).decode().split("\n")

    def drain(self) -> list[str]:
        """Everything heard so far, and what waits in the socket."""
        while True:
            try:
                self.heard += self.socket.recv(65536).decode().split("\n")
            except BlockingIOError:
                return self.heard

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


async def test_a_node_tells_its_service_manager_what_it_is_at(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with Manager(address) as manager:
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
        node = NodeProcess(tmp_path / "data", environment=environment)
        async with node:
            await manager.until("READY=1".__eq__)
            heard = list(manager.heard)
            steps = [line for line in heard if line.startswith("STATUS=")]
            assert [step.partition(":")[0] for step in steps] == [
                "STATUS=Step 1 of 8", "STATUS=Steps 2 to 4 of 8", "STATUS=Step 5 of 8", "STATUS=Steps 6 and 7 of 8",
                "STATUS=Ready", "STATUS=Ready",
            ]  # fmt: skip
            assert steps[-1] == "STATUS=Ready: cluster of 1, replication factor 1"
            assert heard.index(steps[3]) < heard.index("READY=1"), "readiness is sent at step 8, not before"
            assert heard.index("EXTEND_TIMEOUT_USEC=60000000") < heard.index("READY=1")

            manager.heard.clear()
            await manager.until("WATCHDOG=1".__eq__)
            assert node.process is not None
            node.process.send_signal(signal.SIGHUP)
            await manager.until("READY=1".__eq__)
            since = next(line for line in manager.heard if line.startswith("MONOTONIC_USEC="))
            assert manager.heard.index("RELOADING=1") + 1 == manager.heard.index(since)
            assert int(since.partition("=")[2]) > 0

            manager.heard.clear()
            assert await node.terminate() == 0
            heard = manager.drain()
            assert "STOPPING=1" in heard
            assert heard.index("STOPPING=1") < heard.index("EXTEND_TIMEOUT_USEC=60000000")
            # a stop that takes longer on a busy machine asks for more time again
            steps = [line for line in heard if line.startswith("STATUS=")]
            assert steps[-1] == "STATUS=Stopping: the server and its storage"


async def test_a_registry_says_when_it_listens(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with Manager(address) as manager:
        command = [sys.executable, "-m", "nimsnats", "registry", "--listen", "127.0.0.1:0"]
        process = await asyncio.create_subprocess_exec(
            *command, stderr=asyncio.subprocess.DEVNULL, env={**os.environ, "NOTIFY_SOCKET": address}
        )
        await manager.until("READY=1".__eq__)
        assert any(re.fullmatch(r"STATUS=Listening on http://127\.0\.0\.1:[1-9]\d+", line) for line in manager.heard)
        process.terminate()
        assert await process.wait() == 0
        assert "STOPPING=1" in manager.drain()


_STUCK = """
import time
from pathlib import Path
from forest.tree import Tree

class Sticky(Tree):
    patterns = ("river.stick.>",)
    leaves = ("stuck.>",)

    def parse(self, item):
        while not Path(item.data.decode()).exists():
            time.sleep(0.01)
        return self.leaf("stuck.no-more", {}, leaf_id="1")
"""


async def test_a_loop_that_is_stuck_gives_no_sign_of_life_and_its_place_is_logged(tmp_path: Path) -> None:
    address = f"@nimsnats-test-{os.getpid()}"
    (tmp_path / "sticky.py").write_text(_STUCK)
    (tmp_path / "n.conf").write_text('forest { trees: ["sticky:Sticky"] }')
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000", "PYTHONPATH": str(tmp_path)}
    node = NodeProcess(tmp_path / "data", "--config", str(tmp_path / "n.conf"), environment=environment)

    def logged(text: str) -> bool:
        return any(text in line for line in node.log)

    with Manager(address) as manager:
        async with node:
            client = await nats.connect(node.url)
            await client.publish("river.stick.1", str(tmp_path / "go on").encode())
            await client.flush()
            await until(lambda: logged("[WRN] Event loop has been stuck for"))
            await until(lambda: logged("in parse"))
            assert logged('sticky.py", line 12')
            manager.drain()
            manager.heard.clear()
            await asyncio.sleep(0.3)  # six beats, if there were any
            assert manager.drain() == []
            (tmp_path / "go on").touch()
            await manager.until("WATCHDOG=1".__eq__)
            await until(lambda: logged("[WRN] Event loop runs again after"))
            await client.close()
            page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{node.monitor_port}/metrics")
            assert re.search(rb"nimsnats_event_loop_stalls_total [1-9]", page.read())
            page.close()


def test_what_the_environment_asks_for_is_taken_out_of_it() -> None:
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7", "HOME": "/"}
    notify = Notify.from_environment(environ, pid=7)
    assert notify.listening and notify.watchdog == 30.0
    assert environ == {"HOME": "/"}
    other = Notify.from_environment({"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "8"}, pid=7)
    assert other.listening and other.watchdog == 0.0, "the watchdog of another process is none of ours"
    for address in ("", "vsock:2:1234", "relative"):
        assert not Notify.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"}).listening
    assert Notify.from_environment({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "soon"}).watchdog == 0.0


def test_a_manager_that_is_busy_hears_everything_later(tmp_path: Path) -> None:
    address = str(tmp_path / "s")
    with Manager(address) as manager:
        notify = Notify(address)
        steps: list[str] = []
        while notify.flush():  # the kernel keeps ten messages by default
            steps.append(f"STATUS=step {len(steps)}")
            notify.status(steps[-1].removeprefix("STATUS="))
        notify.ready("done")
        while not notify.flush():
            manager.drain()
        assert manager.drain() == [*steps, "READY=1", "STATUS=done"]
        notify.close()


def test_words_are_one_line_and_a_deaf_manager_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(tmp_path / "s")
    notify = Notify(address, monotonic_ns=lambda: 1_234_567)
    notify.alive()
    notify.alive()
    assert [record.getMessage() for record in caplog.records] == [
        "The service manager cannot be told WATCHDOG=1: No such file or directory"
    ]
    with Manager(address) as manager:
        notify.status("two\nREADY=1")
        notify.status("two\nREADY=1")
        notify.reloading()
        notify.extend(1.5)
        assert manager.drain() == [
            "STATUS=two READY=1",
            "RELOADING=1",
            "MONOTONIC_USEC=1234",
            "EXTEND_TIMEOUT_USEC=1500000",
        ]
    notify.close()
    notify.close()
