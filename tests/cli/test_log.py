"""What log lines look like and where they go."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimsnats.log import (
    FATAL,
    TRACE,
    JsonFormatter,
    LogOutput,
    LogSettings,
    Repeats,
    TextFormatter,
    current_output,
    start_logging,
)

ours = logging.getLogger("nimsnats.test")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    for handler in list(root.handlers):
        if isinstance(handler, LogOutput):
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    for name in ("nimsnats", "forest"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def record(level: int, text: str, created: float = 1767366245.000009) -> logging.LogRecord:
    entry = logging.LogRecord("nimsnats.broker", level, __file__, 1, text, (), None)
    entry.created = created
    return entry


def test_format_of_nats_server() -> None:
    line = TextFormatter(LogSettings(utc=True)).format(record(logging.INFO, "Server is ready"))
    assert re.fullmatch(r"\[\d+\] 2026/01/02 15:04:05\.000009 \[INF\] Server is ready", line)
    local = TextFormatter(LogSettings()).format(record(logging.WARNING, "x", 1767366245.5))
    stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(1767366245))
    assert local.partition("] ")[2] == f"{stamp}.500000 [WRN] x"


@pytest.mark.parametrize(("level", "label"), [
    (TRACE, "TRC"), (logging.DEBUG, "DBG"), (logging.INFO, "INF"), (logging.WARNING, "WRN"), (logging.ERROR, "ERR"),
    (FATAL, "FTL"), (15, "DBG"), (1, "TRC"),
])  # fmt: skip
def test_labels(level: int, label: str) -> None:
    plain = TextFormatter(LogSettings(logtime=False)).format(record(level, "x"))
    assert plain.partition("] ")[2] == f"[{label}] x"
    coloured = TextFormatter(LogSettings(logtime=False), colours=True).format(record(level, "x"))
    assert re.search(rf"\[\x1b\[[0-9;]+m{label}\x1b\[0m\] x$", coloured)


def test_json_lines() -> None:
    entry = json.loads(JsonFormatter().format(record(logging.ERROR, "bröken\n2")))
    assert entry.pop("pid") > 0
    assert entry == {
        "time": "2026-01-02T15:04:05.000009Z", "level": "ERR", "logger": "nimsnats.broker", "message": "bröken\n2",
    }  # fmt: skip


def test_stderr_levels_and_other_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(LogSettings(logtime=False))
    ours.debug("no")
    ours.info("yes %d", 1)
    logging.getLogger("forest.tree").info("yes")
    logging.getLogger("aiohttp").info("no")
    logging.getLogger("aiohttp").warning("yes")
    output = capsys.readouterr()
    assert output.out == ""
    assert re.sub(r"\[\d+\] ", "", output.err) == "[INF] yes 1\n[INF] yes\n[WRN] yes\n"


def test_trace_does_not_imply_debug(capsys: pytest.CaptureFixture[str]) -> None:
    output = start_logging(LogSettings(logtime=False, trace=True))
    ours.log(TRACE, "yes")
    ours.debug("no")
    output.apply(LogSettings(logtime=False, debug=True))
    ours.log(TRACE, "no")
    ours.debug("yes")
    assert re.sub(r"\[\d+\] ", "", capsys.readouterr().err) == "[TRC] yes\n[DBG] yes\n"


def test_a_file_is_reopened_after_it_was_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "n.log"
    assert current_output() is None
    output = start_logging(LogSettings(file=str(path)))
    assert current_output() is output
    ours.info("one")
    assert path.stat().st_mode & 0o777 == 0o640
    path.rename(tmp_path / "old.log")
    output.reopen()
    ours.info("two")
    assert "one" in (tmp_path / "old.log").read_text()
    assert [line.partition("[INF] ")[2] for line in path.read_text().splitlines()] == ["File log re-opened", "two"]
    output.apply(LogSettings())
    output.reopen()
    assert "File log re-open ignored, not a file logger" in capsys.readouterr().err


def test_a_file_is_rotated_at_its_limit_and_old_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "n.log"
    start_logging(LogSettings(file=str(path), size_limit=200, max_files=3))
    for number in range(40):
        ours.info("line %d", number)
    files = sorted(tmp_path.iterdir())
    assert path in files
    assert len(files) == 3
    assert all(re.fullmatch(r"n\.log(\.\d{4}(\.\d\d){5}\.\d{9})?", file.name) for file in files)
    assert all(file.stat().st_size < 300 for file in files)


def test_a_log_that_cannot_be_moved_or_opened_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    output = start_logging(LogSettings(file=str(folder / "n.log"), size_limit=100))
    ours.info("one")
    folder.rename(tmp_path / "moved")
    for number in range(4):
        ours.info("after %d, and quite a few words more", number)
    kept = (tmp_path / "moved" / "n.log").read_text()
    assert "cannot be rotated: No such file or directory" in kept
    assert "after 3" in kept
    output.reopen()
    ours.info("two")
    here = capsys.readouterr().err
    assert f"[ERR] File log {folder / 'n.log'} cannot be re-opened, going on here: No such file or directory" in here
    assert "two" in here


def test_exceptions_follow_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(LogSettings(logtime=False))
    try:
        raise ValueError("why")
    except ValueError:
        ours.exception("what")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("[ERR] what")
    assert lines[-1] == "ValueError: why"


def test_repeats_are_held_back_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    repeats = Repeats(lambda: now, interval=10, limit=2)
    written = [repeats.log(ours, logging.WARNING, "k", "bad %s", "x") for _ in range(3)]
    now = 110.0
    written.append(repeats.log(ours, logging.WARNING, "k", "bad %s", "x"))
    assert written == [True, False, False, True]
    assert [entry.getMessage() for entry in caplog.records] == ["bad x", "bad x (2 more since)"]
    for key in "abc":
        assert repeats.log(ours, logging.WARNING, key, "m")
    assert repeats.log(ours, logging.WARNING, "k", "m")  # forgotten: only the two newest are known


def test_a_flood_becomes_its_first_lines_and_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    output = start_logging(LogSettings(logtime=False, debug=True))
    for number in range(200):
        ours.error("client %d: wrong password", number)
        ours.debug("all of these")
    logging.getLogger("nimsnats.storage").error("losses are named, each of them")
    ours.error("another matter")
    lines = capsys.readouterr().err.splitlines()
    assert sum("all of these" in line for line in lines) == 200
    assert [line.partition("[ERR] ")[2] for line in lines if "[ERR]" in line] == [
        *(f"client {number}: wrong password" for number in range(50)),
        "losses are named, each of them",
        "another matter",
    ]
    output.tell_repeats(time.time())
    assert capsys.readouterr().err == "", "the window is not over"
    output.tell_repeats(time.time() + 11)
    (told,) = capsys.readouterr().err.splitlines()
    assert re.search(r"\[ERR\] 150 more in 1 s like: client 199: wrong password$", told)
    ours.error("client %d: wrong password", 200)
    assert "client 200" in capsys.readouterr().err, "a new window begins with a line"


def test_what_was_held_back_is_told_at_the_end(tmp_path: Path) -> None:
    output = start_logging(LogSettings(file=str(tmp_path / "log")))
    for _ in range(60):
        ours.warning("again")
    output.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 51
    assert lines[-1].endswith("[WRN] 10 more in 1 s like: again")
