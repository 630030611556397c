"""Log output in nats-server's format, or as JSON lines; to stderr or to a file that can be reopened and rotated.

Owns: the level names, the formatters, the handler, and what becomes of floods: `RepeatLimit` for every message, and
`Repeats` for those whose second occurrence already says nothing new. Every module
logs through `logging.getLogger("nimsnats.…")` or `"forest.…"` as usual; only the command line calls `start_logging`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TextIO

TRACE: Final = 5
"""Level of protocol traces, below DEBUG."""

FATAL: Final = logging.CRITICAL

_LABELS: Final = {
    TRACE: "TRC",
    logging.DEBUG: "DBG",
    logging.INFO: "INF",
    logging.WARNING: "WRN",
    logging.ERROR: "ERR",
    FATAL: "FTL",
}
_COLOURS: Final = {"INF": "32", "DBG": "36", "WRN": "0;93", "ERR": "31", "FTL": "31", "TRC": "33"}
_OURS: Final = ("nimsnats", "forest")
_BURST: Final = 50
_WINDOW: Final = 10.0
_MOST_WINDOWS: Final = 1000


@dataclass(slots=True)
class LogSettings:
    """How this process logs. `size_limit` in bytes and `max_files` (rotated files kept) are off at 0."""

    debug: bool = False
    trace: bool = False
    trace_verbose: bool = False
    """Implies `trace`. nats-server traces its internal system client besides; there is none here."""
    format: Literal["text", "json"] = "text"
    file: str = ""
    logtime: bool = True
    utc: bool = False
    size_limit: int = 0
    max_files: int = 0

    def level(self) -> int:
        """The lowest level that is written. TRC does not imply DBG: `LogOutput` leaves DBG out when only tracing."""
        return TRACE if self.trace else logging.DEBUG if self.debug else logging.INFO


def label(level: int) -> str:
    """The three letters of a level; levels in between count as the next lower one."""
    return _LABELS.get(level) or next((text for at, text in reversed(_LABELS.items()) if at <= level), "TRC")


def _split(seconds: float) -> tuple[int, int]:
    """Whole seconds and microseconds."""
    return divmod(int(seconds * 1_000_000), 1_000_000)


def _one_line(text: str) -> str:
    """Control characters as escapes: what others have written ends no line, begins none and colours no terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _lines(text: str) -> str:
    """The same for a text of several lines, none of which can pass for the beginning of another record."""
    first, *others = text.split("\n")
    shown = map(_one_line, others)
    return "\n".join([_one_line(first), *(" " + line if line.startswith("[") else line for line in shown)])


class TextFormatter(logging.Formatter):
    """`[pid] 2026/01/02 15:04:05.000000 [INF] text`, as nats-server writes it."""

    def __init__(self, settings: LogSettings, *, colours: bool = False) -> None:
        super().__init__()
        self._head = f"[{os.getpid()}] "
        self._time = settings.logtime
        self._clock = time.gmtime if settings.utc else time.localtime
        self._labels = {
            text: f"[\x1b[{_COLOURS[text]}m{text}\x1b[0m] " if colours else f"[{text}] " for text in _LABELS.values()
        }
        self._second = -1
        self._date = ""

    def format(self, record: logging.LogRecord) -> str:
        stamp = ""
        if self._time:
            second, micro = _split(record.created)
            if second != self._second:
                self._second = second
                self._date = time.strftime("%Y/%m/%d %H:%M:%S", self._clock(second))
            stamp = f"{self._date}.{micro:06d} "
        message = record.getMessage()
        if not message.isprintable():  # lines of our own are ours alone when the format has them
            message = _lines(message) if "\n" in str(record.msg) else _one_line(message)
        text = f"{self._head}{stamp}{self._labels[label(record.levelno)]}{message}"
        return f"{text}\n{_lines(self.formatException(record.exc_info))}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, pid, logger, message, and error for exceptions."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        second, micro = _split(record.created)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        entry: dict[str, str | int] = {
            "time": f"{stamp}.{micro:06d}Z",
            "level": label(record.levelno),
            "pid": self._pid,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


@dataclass(slots=True)
class _Window:
    """One message's records since `start`: those written, those held back, and the latest of these."""

    start: float
    written: int = 0
    held: int = 0
    latest: logging.LogRecord | None = None


class RepeatLimit:
    """Turns a flood into a few lines and a count.

    Of one message (its text before arguments are filled in, of one logger) `burst` records pass within `window`
    seconds; the rest are counted, and `due` returns one record that tells how many there were. Traces and debugging
    output pass: who asks for them wants all. So do fatal errors and what storage says: it names losses.
    """

    def __init__(self, burst: int = _BURST, window: float = _WINDOW) -> None:
        self._burst = burst
        self._window = window
        self._windows: dict[tuple[str, int, str], _Window] = {}

    def admits(self, record: logging.LogRecord) -> bool:
        """Whether this record is to be written."""
        if not logging.INFO <= record.levelno < FATAL or record.name == "nimsnats.storage":
            return True
        key = (record.name, record.levelno, str(record.msg))
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(record.created)
        if window.written < self._burst:
            window.written += 1
            return True
        window.held += 1
        window.latest = record
        return False

    def due(self, now: float | None = None) -> list[logging.LogRecord]:
        """What is to be told of windows that have ended at `now` (seconds since the epoch); of all without it."""
        told: list[logging.LogRecord] = []
        for key, window in list(self._windows.items()):
            is_over = now is None or abs(now - window.start) >= self._window  # clocks are set back, too
            if not is_over and len(self._windows) <= _MOST_WINDOWS:
                continue
            del self._windows[key]
            if window.latest is not None:
                told.append(_summary(window, window.latest, window.latest.created if now is None else now))
        return told


def _summary(window: _Window, latest: logging.LogRecord, now: float) -> logging.LogRecord:
    text = latest.getMessage().partition("\n")[0]
    seconds = max(1, round(abs(latest.created - window.start)))
    record = logging.LogRecord(
        latest.name, latest.levelno, latest.pathname, latest.lineno,
        "%d more in %d s like: %s", (window.held, seconds, text), None,
    )  # fmt: skip
    record.created = now
    return record


class LogOutput(logging.Handler):
    """Where the log goes. Raises OSError when the log file cannot be opened."""

    def __init__(self, settings: LogSettings) -> None:
        super().__init__()
        self._settings = settings
        self._stderr = sys.stderr
        self._stream: TextIO = sys.stderr
        self._size = 0
        self._lost = 0
        """Lines that could not be written since the latest that could."""
        self._limit = RepeatLimit()
        self.setFormatter(self._formatter())
        if settings.file:
            self._stream = self._open()

    def apply(self, settings: LogSettings) -> None:
        """Take over changed settings: levels, format, file."""
        old_file, self._settings = self._settings.file, settings
        if settings.file != old_file:
            self._close_file()
            self._stream = self._open() if settings.file else self._stderr
        self.setFormatter(self._formatter())
        for name in _OURS:
            logging.getLogger(name).setLevel(settings.level())

    def reopen(self) -> None:
        """Open the log file anew after somebody moved it away (SIGUSR1)."""
        log = logging.getLogger("nimsnats")
        if not self._settings.file:
            log.info("File log re-open ignored, not a file logger")
            return
        self.acquire()
        try:
            self._close_file()
            self._stream = self._open()
        except OSError as error:
            log.error("File log %s cannot be re-opened, going on here: %s", self._settings.file, error.strerror)
            return
        finally:
            self.release()
        log.info("File log re-opened")

    def tell_repeats(self, now: float) -> None:
        """Write how many lines were held back, where it is time to tell. To be called every few seconds; `now` is
        in seconds since the epoch."""
        self.acquire()
        try:
            for summary in self._limit.due(now):
                self._write(summary)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.DEBUG and not self._settings.debug:
            return  # tracing alone shows no DBG lines
        if record.levelno >= logging.INFO:
            for summary in self._limit.due(record.created):
                self._write(summary)
        if self._limit.admits(record):
            self._write(record)

    def close(self) -> None:
        for summary in self._limit.due():
            self._write(summary)
        self._close_file()
        super().close()

    def _write(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            self._stream.write(line)
            self._stream.flush()
        except BrokenPipeError:  # nobody reads stderr any more: not a reason to stop
            return
        except OSError as error:
            self._lose(error)
            return
        except Exception:
            self.handleError(record)
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            note = f"{lost} lines of this log are lost: it could not be written"
            self._write(logging.LogRecord(__name__, logging.WARNING, __file__, 0, note, (), None))
        if self._settings.file:
            self._size += len(line)
            if 0 < self._settings.size_limit < self._size:
                self._rotate(record.created)

    def _lose(self, error: OSError) -> None:
        """A line could not be written, because the disk is full, say; it is said once where the log is none.

        The log goes on as soon as it can, and says then how many lines it has not.
        """
        self._lost += 1
        if self._lost == 1 and self._settings.file:
            with suppress(OSError):  # nobody may be left to tell
                self._stderr.write(f"log file {self._settings.file} cannot be written: {error.strerror}\n")
                self._stderr.flush()

    def _formatter(self) -> logging.Formatter:
        if self._settings.format == "json":
            return JsonFormatter()
        return TextFormatter(self._settings, colours=not self._settings.file and self._stderr.isatty())

    def _open(self) -> TextIO:
        # Not waited for: a FIFO that nobody reads is an error at once.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self._settings.file, flags, 0o640)
        os.set_blocking(descriptor, True)
        stream = os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
        self._size = os.fstat(descriptor).st_size
        return stream

    def _close_file(self) -> None:
        if self._stream is not self._stderr:
            stream, self._stream = self._stream, self._stderr
            with suppress(OSError):  # what it still holds were lines that could not be written
                stream.close()

    def _rotate(self, now: float) -> None:
        """Move the full file to `<name>.YYYY.MM.DD.hh.mm.ss.nnnnnnnnn` and go on in a new one.

        What the system refuses here must not reach whoever was logging; the next try is when it is full once more.
        """
        path = Path(self._settings.file)
        second, micro = _split(now)
        stamp = time.strftime("%Y.%m.%d.%H.%M.%S", time.localtime(second))
        self._size = 0
        aside = Path(f"{path}.{stamp}.{micro * 1000:09d}")
        try:
            path.rename(aside)
            try:
                fresh = self._open()
            except OSError:
                aside.rename(path)  # go on in it, and try again when it has grown
                raise
            self._close_file()
            self._stream = fresh
            if self._settings.max_files:
                # max_files counts the live file too, as log_max_num does
                old = sorted(path.parent.glob(f"{path.name}.[0-9][0-9][0-9][0-9].*"))
                for surplus in old[: max(0, len(old) - (self._settings.max_files - 1))]:
                    surplus.unlink(missing_ok=True)
        except OSError as error:
            self._stream.write(f"log file {path} cannot be rotated: {error.strerror}\n")


def start_logging(settings: LogSettings) -> LogOutput:
    """Send all log records of this process to one output: ours by `settings`, other libraries' from WARNING up.

    Raises OSError when the log file cannot be opened.
    """
    output = LogOutput(settings)
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, LogOutput):
            root.removeHandler(handler)
            handler.close()
    root.addHandler(output)
    root.setLevel(logging.WARNING)
    logging.getLogger("pyroute2").setLevel(logging.ERROR)  # warns of kernel features that nobody here asks for
    for name in _OURS:
        logging.getLogger(name).setLevel(settings.level())
    return output


def current_output() -> LogOutput | None:
    """Where `start_logging` has sent this process's log; None when somebody else (an embedding program) owns it."""
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, LogOutput)), None)


class Repeats:
    """Lets a message through once an interval and counts the rest, for errors that clients can cause at will.

    `clock` returns seconds (`Runtime.monotonic`). Keys are forgotten when more than `limit` are known, oldest first.
    """

    def __init__(self, clock: Callable[[], float], interval: float = 10.0, limit: int = 1000) -> None:
        self._clock = clock
        self._interval = interval
        self._limit = limit
        self._seen: dict[Hashable, tuple[float, int]] = {}

    def log(self, log: logging.Logger, level: int, key: Hashable, message: str, *args: object) -> bool:
        """Log unless `key` was logged within the interval; true when written."""
        now = self._clock()
        since, held_back = self._seen.get(key, (now - self._interval, 0))
        if now - since < self._interval:
            self._seen[key] = (since, held_back + 1)
            return False
        if held_back:
            message, args = message + " (%d more since)", (*args, held_back)
        log.log(level, message, *args)
        self._seen.pop(key, None)
        self._seen[key] = (now, 0)
        if len(self._seen) > self._limit:
            self._seen.pop(next(iter(self._seen)))
        return True
