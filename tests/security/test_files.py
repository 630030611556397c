"""Files by name: what is no regular file, not ours, too wide or too much ends with one clear line; nothing hangs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nimsnats import cli, files
from nimsnats.backup.files import Damaged, Manifest, Opening, SegmentReader, SegmentWriter, _digest, read_messages
from nimsnats.config import ConfigError, ServerFlags, load_server
from nimsnats.config.fields import as_size
from nimsnats.log import LogOutput, LogSettings
from nimsnats.protocol import conf
from nimsnats.protocol.archive import ArchivedMessage
from nimsnats.protocol.conf import Item, Position
from nimsnats.registry.errors import RegistryStoreError
from nimsnats.registry.store import RegistryStore
from nimsnats.runtime import Runtime
from nimsnats.storage import open_database
from nimsnats.storage.audit import auditing
from nimsnats.storage.errors import Unwritable
from tests.broker.peer import until
from tests.certificates import Authority, needs_openssl
from tests.chaos.process import SERVER_READY, NodeProcess

Make = Callable[[Path], None]


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # the address of a socket has to be short
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def a_link(path: Path) -> None:
    victim = path.parent.parent / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)


STRANGE: dict[str, Make] = {
    "a FIFO": os.mkfifo,
    "a socket": a_socket,
    "a symbolic link": a_link,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.fixture(autouse=True)
def log_output() -> Iterator[None]:
    """Commands that run in this process send its log to a stream that is gone afterwards."""
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, LogOutput):
            root.removeHandler(handler)
            handler.close()


# -- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT | os.O_TRUNC])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, flags: int) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "file"
    STRANGE[kind](path)
    with pytest.raises(OSError, match=kind if kind != "a device" else "a symbolic link"):
        files.open_regular(path, flags, follow=False)
    if kind == "a symbolic link":
        assert files.read(path, 100) == b"precious"
    else:
        with pytest.raises(OSError, match=f"it is {kind}, not a file"):
            files.open_regular(path, flags)


def test_what_is_made_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.write(tmp_path / "a", "text")
        os.umask(0o777)
        files.write(tmp_path / "b", "text", 0o644)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o600, 0o644]
    with pytest.raises(OSError, match="larger than 3 bytes"):
        files.read(tmp_path / "a", 3)
    with pytest.raises(IsADirectoryError):
        files.read(tmp_path, 3)
    with pytest.raises(OSError, match="holds a NUL"):
        files.read("a\0b", 3)


# -- the data directory -----------------------------------------------------------------------------------------------


async def filled(path: Path) -> None:
    """A data directory with an entry in it, closed in order."""
    runtime = Runtime.real()
    database = await open_database(path, runtime, "oak")
    group = database.create_group("S", 1, "oak", b"")
    database.append(group, 1, 1, 0x81, 1, 1, b"payload")
    done = runtime.loop.create_future()
    database.sync(done.set_result)
    assert await done is None
    await database.close()


def modes(path: Path) -> dict[str, str]:
    found = {entry.name: f"{stat.S_IMODE(entry.stat().st_mode):o}" for entry in path.iterdir()}
    return {**found, ".": f"{stat.S_IMODE(path.stat().st_mode):o}"}


@pytest.mark.parametrize("umask", [0, 0o077, 0o277])
async def test_a_data_directory_is_its_owners_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        database = await open_database(tmp_path / "data", Runtime.real(), "oak")
        database.create_group("S", 1, "oak", b"")
        found = modes(tmp_path / "data")
        await database.close()
    finally:
        os.umask(before)
    assert found.pop(".") == "700"
    assert set(found.values()) == {"600"}
    assert {"nimsnats.db", "nimsnats.db-wal", "nimsnats.db-shm", "witness.0", "witness.1", "identity", "lock"} <= {
        *found
    }


async def test_one_that_was_open_to_others_is_tightened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data"
    await filled(path)
    path.chmod(0o755)
    for entry in path.iterdir():
        entry.chmod(0o644)
    caplog.clear()
    await filled_again(path)
    assert set(modes(path).values()) == {"700", "600"}
    (line,) = [message for message in caplog.messages if "was open to others" in message]
    assert "nimsnats.db" in line and "identity" in line
    caplog.clear()
    await filled_again(path)
    assert not [message for message in caplog.messages if "was open to others" in message]


async def filled_again(path: Path) -> None:
    await (await open_database(path, Runtime.real(), "oak")).close()


NAMES = ["identity", "lock", "nimsnats.db", "nimsnats.db-wal", "nimsnats.db-shm", "nimsnats.db.salvage", "witness.0",
         "witness.1", ".identity.new", ".probe", "registry.db", "anything"]  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", NAMES)
async def test_what_is_no_file_there_is_refused_before_anything_is_touched(
    tmp_path: Path, name: str, kind: str
) -> None:
    path = tmp_path / "data"
    await filled(path)
    (path / name).unlink(missing_ok=True)
    before = content(path)
    STRANGE[kind](path / name)
    wanted = "a symbolic link" if kind == "a device" else kind
    with pytest.raises(Unwritable, match=f"{name} is {wanted}, and only regular files belong there"):
        await open_database(path, Runtime.real(), "oak")
    with pytest.raises(Unwritable), auditing(path):
        pass
    (path / name).unlink()
    assert content(path) == before
    victim = tmp_path / "victim"
    assert not victim.exists() or victim.read_bytes() == b"precious"


def content(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


async def test_a_fresh_directory_with_strange_things_is_refused(tmp_path: Path) -> None:
    for kind, make in STRANGE.items():
        path = tmp_path / kind.replace(" ", "-")
        path.mkdir()
        make(path / "identity")
        with pytest.raises(Unwritable, match="only regular files belong there"):
            await open_database(path, Runtime.real(), "oak")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", "nimsnats.db", "witness.0"])
async def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data"
    await filled(path)
    os.chown(path / name if name else path, 65534, -1)
    with pytest.raises(Unwritable, match=r"belongs to user \w+, and this process runs as user root"):
        await open_database(path, Runtime.real(), "oak")
    with auditing(path) as audit:  # root may look at it all the same
        assert [group.name for group in audit.groups()] == ["S"]
    os.chown(path / name if name else path, 0, -1)
    await filled_again(path)


def test_a_node_says_so_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "jetstream"
    path.mkdir()
    os.mkfifo(path / "identity")
    assert cli.main(["server", "-p", "-1", "-js", "-sd", str(tmp_path)]) == 1
    out = capfd.readouterr().err
    (line,) = [line for line in out.splitlines() if "[FTL]" in line]
    assert "identity is a FIFO" in line and "Traceback" not in out


async def test_the_registrys_database(tmp_path: Path) -> None:
    path = tmp_path / "data" / "registry.db"
    runtime, log = Runtime.real(), logging.getLogger("test")
    before = os.umask(0)
    try:
        store = RegistryStore(path, runtime, log)
        await store.open()
        assert modes(path.parent) == {".": "700", **dict.fromkeys({*modes(path.parent)} - {"."}, "600")}
        await store.close()
    finally:
        os.umask(before)
    for name, make in STRANGE.items():
        path.unlink()
        make(path)
        with pytest.raises(RegistryStoreError, match=r"it is a|symbolic link"):
            await RegistryStore(path, runtime, log).open()
        assert name == "a symbolic link" or path.is_symlink() or not stat.S_ISREG(path.lstat().st_mode)


# -- backups ----------------------------------------------------------------------------------------------------------


def backup(directory: Path, **changes: Any) -> Manifest:
    """A whole backup of one message; `changes` are made to its manifest."""
    directory.mkdir()
    writer = SegmentWriter(directory, Opening("S", 1, 0))
    writer.add(ArchivedMessage(1, 5, b"a", b"", b"payload"))
    fields: dict[str, Any] = {
        "stream": "S", "taken": "now", "created": 1, "config": {"name": "S"}, "state": {"first_seq": 1},
        "consumers": {}, "messages": 1, "segments": [writer.finish()],
    }  # fmt: skip
    manifest = Manifest(**fields)
    manifest.write(directory)
    if changes:
        body = json.loads((directory / "manifest.json").read_text())
        del body["check"]
        for key, value in changes.items():
            if key == "file":
                body["segments"][0]["file"] = value
            else:
                body[key] = value
        (directory / "manifest.json").write_text(json.dumps({**body, "check": _digest(body)}))
    return manifest


def test_a_backup_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        manifest = backup(tmp_path / "S")
    finally:
        os.umask(before)
    assert {name: mode for name, mode in modes(tmp_path / "S").items() if name != "."} == {
        "manifest.json": "600", "messages-000001.nims": "600",
    }  # fmt: skip
    assert [message.payload for message in read_messages(tmp_path / "S", manifest)] == [b"payload"]


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../S/messages-000001.nims"},
        {"file": "/etc/passwd"},
        {"file": 7},
        {"stream": "../x"},
        {"stream": "x 5\r\nPUB y"},
        {"stream": "a.b"},
        {"stream": ">"},
        {"stream": ""},
        {"stream": ["S"]},
        {"state": []},
        {"state": {"first_seq": "1"}},
        {"consumers": {"C": 5}},
        {"messages": -1},
        {"gone": [1]},
        {"gone": ["1", 2]},
        {"config": None},
        {"created": 1 << 70},
    ],
)
def test_a_manifest_that_somebody_has_made_up(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    backup(tmp_path / "S", **changes)
    with pytest.raises(Damaged):
        Manifest.read(tmp_path / "S")
    assert cli.main(["verify", str(tmp_path / "S")]) == 1
    assert "manifest.json: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["manifest.json", "messages-000001.nims"])
def test_strange_files_in_a_backup(tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    backup(tmp_path / "S")
    (tmp_path / "S" / name).unlink()
    STRANGE[kind](tmp_path / "S" / name)
    for command in (["verify", str(tmp_path)], ["verify", str(tmp_path / "S")], ["restore", "-q", str(tmp_path)]):
        assert cli.main(command) == 1
        shown = capsys.readouterr().err
        assert "not a file" in shown and "Traceback" not in shown and len(shown.splitlines()) == 1
    with pytest.raises(OSError):
        SegmentReader(tmp_path / "S" / name).opening()


def test_a_segment_that_says_nonsense(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    writer = SegmentWriter(tmp_path / "S", Opening("S", 1, 0))
    writer._write(0, b'{"format":"9","stream":1,"created":[],"after":0}')
    other = tmp_path / "S" / writer.file
    whole = other.read_bytes()
    other.write_bytes(whole[whole.index(b"NBC1", 4) :])
    with pytest.raises(Damaged):
        SegmentReader(other).opening()


# -- configuration ----------------------------------------------------------------------------------------------------


def written(text: str | bytes) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    return make


def too_large(path: Path) -> None:
    path.touch()
    os.truncate(path, 20 << 20)


def including_a_fifo(path: Path) -> None:
    os.mkfifo(path.parent / "f")
    path.write_text("include f\n")


def including(path: Path) -> None:
    """A chain of 600 files, each of which includes the next."""
    for number in range(600):
        (path.parent / f"f{number}.inc").write_text(f"include f{number + 1}.inc\n")
    path.write_text("include f0.inc\n")


def doubling(path: Path) -> None:
    """Twenty files, each of which includes the next one four times."""
    for number in range(20):
        (path.parent / f"f{number}.inc").write_text(f"include f{number + 1}.inc\n" * 4)
    (path.parent / "f20.inc").write_text("debug: true\n")
    path.write_text("include f0.inc\n")


BAD: dict[str, tuple[Make, str]] = {
    "fifo": (os.mkfifo, "it is a fifo, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "socket": (a_socket, "it is a socket, not a file"),
    "directory": (Path.mkdir, "is a directory"),
    "too large": (too_large, "it is larger than"),
    "latin-1": (written("server_name: m\xfcller\n".encode("latin-1")), "it is not utf-8 text (byte 14)"),
    "utf-16": (written("port: 4222\n".encode("utf-16")), "it is not utf-8 text (byte 0)"),
    "no text": (written('server_name: "a\\xffb"\n'), "no UTF-8 text"),
    "nul": (written('store_dir: "a\\x00b"\njetstream: true\n'), "NUL"),
    "includes itself": (written("include bad.conf\n"), "the file includes itself"),
    "includes a fifo": (including_a_fifo, "fifo"),
    "includes a device": (written("include /dev/zero\n"), "it is a device"),
    "includes deep": (including, "nested too deep"),
    "includes often": (doubling, "more than 1000 files are included"),
    "long number": (written("port: " + "9" * 5000), "is out of the range"),
    "long negative": (written("port: -" + "9" * 5000), "is out of the range"),
    "long size": (written("max_payload: " + "9" * 5000 + "MB"), "is out of the range"),
    "size in quotes": (written('jetstream { max_mem: "' + "9" * 5000 + 'G" }'), "is out of the range"),
    "large size": (written('jetstream { max_mem: "99999999999T" }'), "is out of the range"),
    "long float": (written("authorization { timeout: " + "9" * 400 + ".0 }"), "is out of the range"),
    "large float": (written("authorization { timeout: " + "9" * 200 + ".0 }"), "out of the range"),
    "long duration": (written("ping_interval: " + "9" * 5000 + "s"), "invalid duration"),
    "large duration": (written("ping_interval: 9999999999h"), "invalid duration"),
    "large seconds": (written("ping_interval: 9223372036854775807"), "out of the range"),
    "many parts": (written("ping_interval: " + "999999h" * 5000), "invalid duration"),
    "long port": (written('listen: "127.0.0.1:' + "9" * 5000 + '"'), "could not parse port"),
    "long key": (written("k" * 100_000 + ": 1"), "unknown field"),
    "brackets": (written("a: " + "[" * 10_000), "Nested more than 100 levels deep"),
    "braces": (written("{" * 10_000), "Nested more than 100 levels deep"),
    "maps": (written("a {" * 10_000), "Nested more than 100 levels deep"),
    "deep variables": (
        written("a0 = 1\n" + "".join(f"a{n + 1} = {'[' * 90}$a{n}{']' * 90}\n" for n in range(20))),
        "nested too deep",
    ),
    "laughs": (
        written("a0 = 1\n" + "".join(f"a{n + 1} = [{', '.join([f'$a{n}'] * 9)}]\n" for n in range(20))),
        "more than 1000000 values",
    ),
    "environment loops": (written("port: $LOOP\n"), "variable reference cycle for 'LOOP'"),
    "environment laughs": (written("port: $LAUGH20\n"), "referred to more than 10000 times"),
    "one long line": (written("port:1," * 5_000 + "x"), "config is invalid"),
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOOP", "$LOOP")
    monkeypatch.setenv("LAUGH0", "1")
    for number in range(20):
        monkeypatch.setenv(f"LAUGH{number + 1}", f"[$LAUGH{number}, $LAUGH{number}]")
    yield


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", BAD)
def test_a_configuration_ends_with_one_clear_line(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, wanted = BAD[name]
    path = tmp_path / "bad.conf"
    make(path)
    with pytest.raises(ConfigError) as refused:
        load_server(ServerFlags(config=str(path)))
    assert wanted in str(refused.value)
    for command in (["-c", str(path)], ["server", "-c", str(path)], ["server", "-t", "-c", str(path)]):
        assert cli.main(command) == 1
        shown = capfd.readouterr().err
        lines = shown.splitlines()
        assert len(lines) == 1 and wanted in lines[0] and len(lines[0]) < 1500 and "Traceback" not in shown


@pytest.mark.parametrize("name", ["fifo", "device", "long number", "includes itself", "latin-1"])
def test_the_doctor_says_it_as_well(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, wanted = BAD[name]
    make(tmp_path / "bad.conf")
    assert cli.main(["-c", str(tmp_path / "bad.conf"), "doctor"]) == 1
    assert wanted in capfd.readouterr().out


@pytest.mark.parametrize("name", ["fifo", "device"])
def test_the_doctors_environment_file(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, wanted = BAD[name]
    make(tmp_path / "env")
    assert cli.main(["doctor", "--env-file", str(tmp_path / "env")]) == 1
    assert wanted in capfd.readouterr().out


async def test_a_reload_keeps_what_there_was(tmp_path: Path) -> None:
    config = tmp_path / "node.conf"
    config.write_text("max_payload: 2000\n")
    node = NodeProcess(tmp_path / "data", "-c", str(config), command="server", ready=SERVER_READY)
    async with node:
        assert node.process is not None
        for name in ("fifo", "device", "long number", "latin-1", "brackets"):
            make, wanted = BAD[name]
            config.unlink()
            make(config)
            heard = len(node.log)
            node.process.send_signal(1)
            while not any("Failed to reload" in line for line in node.log[heard:]):
                assert (await node.get("/varz"))["max_payload"] == 2000
            (line,) = [line for line in node.log[heard:] if "[ERR]" in line]
            assert wanted in line
        config.unlink()
        config.write_text("max_payload: 3000\n")
        node.process.send_signal(1)
        while (await node.get("/varz"))["max_payload"] != 3000:
            pass
        assert not any("Traceback" in line for line in node.log)


LONG = "9" * 5000


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((f"NATS_{port}_PORT", value) for port in ("CLIENT", "CLUSTER", "MONITOR") for value in (LONG, "70000", "x")),
        ("REGISTRY_HEARTBEAT_INTERVAL", LONG + "s"),
        ("REGISTRY_HEARTBEAT_INTERVAL", "9999999999h"),
        ("REGISTRY_HEARTBEAT_INTERVAL", "999999h" * 5000),
        ("REGISTRY_URL", "http://host:" + LONG),
        ("NATS_NODE_NAME", "$" * 5000),
    ],
)
def test_the_environment(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], variable: str, value: str, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, value)
    assert cli.main(["--data-dir", str(tmp_path)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert variable in line and len(line) < 1500


@pytest.mark.parametrize(
    "words",
    [
        ["--client-port", LONG],
        ["--cluster-port", "99999"],
        ["--heartbeat-interval", LONG + "h"],
        ["--registry-url", "http://h:" + LONG],
        ["--advertise", "h:" + LONG],
        ["server", "-p", LONG],
        ["server", "-p", "0x" + LONG],
        ["server", "-m", "1" * 30],
        ["registry", "--ttl", LONG + "s"],
        ["registry", "--listen", "127.0.0.1:" + LONG],
    ],
)
def test_the_command_line(capfd: pytest.CaptureFixture[str], words: list[str]) -> None:
    given = [*words[:-1], words[-1]]
    assert cli.main(given) in (0, 1, 2)  # 0 for a bad flag of `server`, as nats-server does
    out, err = capfd.readouterr()
    assert err.strip() and "Traceback" not in err + out


@needs_openssl
@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a socket"])
@pytest.mark.parametrize("field", ["cert_file", "key_file", "ca_file"])
def test_certificates(tmp_path: Path, field: str, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    authority = Authority.make(tmp_path / "ca")
    certificate, key = authority.issue("node")
    (tmp_path / "in").mkdir()
    STRANGE[kind](tmp_path / "in" / "bad")
    used = {"cert_file": certificate, "key_file": key, "ca_file": authority.ca, field: str(tmp_path / "in" / "bad")}
    config = tmp_path / "tls.conf"
    config.write_text("tls {\n" + "".join(f'{name}: "{path}"\n' for name, path in used.items()) + "}\n")
    assert cli.main(["server", "-c", str(config)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert f"it is {kind}, not a file" in line


@pytest.mark.parametrize("what", ["log_file", "pid_file"])
def test_a_fifo_for_what_is_written(tmp_path: Path, what: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    config = tmp_path / "node.conf"
    config.write_text(f'{what}: "{tmp_path}/fifo"\nlisten: "127.0.0.1:-1"\n')
    command = [sys.executable, "-m", "nimsnats", "server", "-c", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr and f"{tmp_path}/fifo" in ended.stderr


def test_a_full_log_file_goes_on_while_no_other_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    output = LogOutput(LogSettings(file=str(path), size_limit=10))
    opened = output._open
    missing = OSError(24, "Too many open files")

    def refuse() -> Any:
        raise missing

    output._open = refuse  # type: ignore[method-assign]
    output.handle(logging.LogRecord("nimsnats", logging.INFO, "", 0, "one, which fills it", None, None))
    output.handle(logging.LogRecord("nimsnats", logging.INFO, "", 0, "two", None, None))
    output._open = opened  # type: ignore[method-assign]
    output.handle(logging.LogRecord("nimsnats", logging.INFO, "", 0, "three", None, None))
    output.close()
    told = "".join(entry.read_text() for entry in sorted(tmp_path.iterdir(), reverse=True))
    assert all(word in told for word in ("one", "two", "three")) and "cannot be rotated: Too many" in told
    assert len(list(tmp_path.iterdir())) == 2


def test_sizes_and_positions() -> None:
    here = Position("f", 1, 0)
    assert as_size(Item("0009G", here), "x") == 9 << 30
    tree = conf.parse("\u00fc: 1, b: 2\nc: 3\n", "f", read=str, environ={})
    assert [item.at.column for item in tree.values()] == [0, 7, 1]


# -- a log that cannot be written -------------------------------------------------------------------------------------


async def test_a_full_disk_under_the_log_costs_lines_and_is_said_once(tmp_path: Path) -> None:
    """Neither a stack for each line, nor the server; /dev/full is a file on a full disk."""
    log = tmp_path / "n.log"
    log.symlink_to("/dev/full")
    server = NodeProcess(tmp_path / "data", "--log", str(log), command="server", ready="cannot be written")
    try:
        await server.start()
        client = await asyncio.to_thread(_connected, server.client_port)
        log.unlink()  # and there is room again
        assert server.process is not None
        server.process.send_signal(signal.SIGUSR1)
        await until(lambda: log.exists() and "lines of this log are lost" in log.read_text())
        client.close()
    finally:
        await server.signal(signal.SIGTERM)
    assert server.log == [f"log file {log} cannot be written: No space left on device"]
    assert "Traceback" not in log.read_text()


def _connected(port: int) -> socket.socket:
    """A client that has been greeted."""
    while True:
        client = socket.socket()
        if client.connect_ex(("127.0.0.1", port)) == 0:
            assert client.recv(1)
            return client
        client.close()
