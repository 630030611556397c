"""A node or server as a process: signals, the service manager, the ports file, fatal errors as one line, the exit code.

Owns what only exists because there is a process around the server (nats-server's conventions: INT and TERM stop, HUP
reloads, USR1 reopens the log, USR2 is lame duck mode; systemd's for services that notify). What is started and stopped
is handed in.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from nimsnats import files
from nimsnats.collector import Collector
from nimsnats.config.settings import Settings
from nimsnats.log import FATAL, current_output
from nimsnats.monitor.stall import StallWatch
from nimsnats.notify import Notify
from nimsnats.runtime import Runtime, StartError
from nimsnats.storage.directory import last_written_ns
from nimsnats.version import RELEASED_NS

_NAMES: Final = {
    signal.SIGINT: "interrupt",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "hangup",
    signal.SIGUSR1: "user defined signal 1",
    signal.SIGUSR2: "user defined signal 2",
}


_SWITCH_INTERVAL: Final = 0.0005
"""Seconds that the loop may keep the interpreter from the storage thread. Python's own 5 ms make every commit wait for
a busy loop: measured, a tenth of it stores 1.2 to 2.1 times the 64 KiB blocks."""


_TICK: Final = 5.0
"""Seconds between two looks at what is due: a sign of life, more time, lines of log that were held back."""
_DAY_NS: Final = 86_400 * 10**9
_CLOCK_SLACK_NS: Final = 60 * 10**9
_LONG_AWAY_DAYS: Final = 90
_RETRY: Final = 0.05
"""Seconds between two looks while the service manager has no time to listen."""
_EXTENSION: Final = 60.0
"""Seconds that a start or stop is given each time when it is still going on, and the loop turns."""
_STOP_LIMIT: Final = 600.0
"""Seconds of a stop for which more time is asked. A start gets all it takes: recovery that is cut off begins anew."""


class Service(Protocol):
    """What a process runs.

    `progress` is called with what the service is at, in words for people. `stalls` tells it how often the loop was
    stuck, `collector` how long the garbage collector has stopped it. `reloading` reads the configuration again when the
    system account asks for it; it returns what was wrong.
    """

    settings: Settings
    progress: Callable[[str], None]
    stalls: StallWatch | None
    collector: Collector | None
    reloading: Callable[[], str] | None

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def lame_duck(self) -> None:
        """Send the clients away gently; returns when the last one has gone."""
        ...

    def reload(self, settings: Settings) -> list[str]:
        """Take over what can change while running; returns a line for each change. Raises ConfigError for the rest."""
        ...

    def listening(self) -> dict[str, list[str]]:
        """URLs by kind, as the ports file has them."""
        ...


class Process:
    """Runs one service until a signal ends it. Without `notify` nobody is told how it is going."""

    def __init__(
        self,
        service: Service,
        notify: Notify | None = None,
        log: logging.Logger | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._service = service
        self._notify = notify or Notify()
        self._log = log or logging.getLogger("nimsnats")
        self._given_runtime = runtime
        self._done = asyncio.Event()
        self._lame: asyncio.Task[None] | None = None
        self._ports_file: Path | None = None
        self._status = ""
        self._timer: asyncio.TimerHandle | None = None
        self._is_starting = True
        self._stop_began = -1.0

    async def run(self) -> int:
        """The exit code: 0 after a signal, 1 when the service could not start."""
        settings = self._service.settings
        sys.setswitchinterval(_SWITCH_INTERVAL)
        for level, text in settings.notes:
            self._log.log(level, "%s", text)
        runtime = self._given_runtime or Runtime.real()
        runtime.loop.set_exception_handler(runtime.fence.escaped)
        for number in _NAMES:
            runtime.loop.add_signal_handler(number, self._on_signal, number)
        self._service.progress = self._progress
        self._service.reloading = self._reload
        self._service.stalls = stalls = StallWatch(runtime)
        stalls.start()
        self._service.collector = collector = Collector(runtime)
        collector.start()
        self._tick(runtime)
        try:
            return await self._run(runtime, settings)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            collector.stop()
            stalls.stop()
            self._notify.close()

    async def _run(self, runtime: Runtime, settings: Settings) -> int:
        try:
            self._check_clock(runtime.time_ns(), settings)
            if not await self._start(runtime):
                return 0
        except StartError as error:
            self._notify.status(f"Cannot start: {error}")
            self._log.log(FATAL, "%s", error)
            return 1
        self._is_starting = False
        try:
            self._write_ports(settings)
            self._notify.ready(self._status or "Ready")
            await self._done.wait()
        finally:
            self._begin_stop(runtime)
            await self._stop()
        return 0

    async def _start(self, runtime: Runtime) -> bool:
        """Start the service; false when a signal came first: then what had been started is stopped again."""
        starting = runtime.spawn(self._service.start(), "start")
        ended = runtime.spawn(self._done.wait(), "signal")
        try:
            await asyncio.wait((starting, ended), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                self._begin_stop(runtime)
                self._log.info("Told to stop while starting")
        finally:
            ended.cancel()
            if not starting.done():
                starting.cancel()
            await asyncio.wait((starting, ended))
        if not starting.cancelled():
            starting.result()
            return True
        self._log.info("Server Exiting..")
        return False

    def _begin_stop(self, runtime: Runtime) -> None:
        self._stop_began = runtime.monotonic()
        self._notify.stopping("Stopping")
        self._tick(runtime)

    def _check_clock(self, now_ns: int, settings: Settings) -> None:
        """Messages are stamped with the clock and expire by it. Raises StartError for one that cannot be right."""
        if now_ns < RELEASED_NS:
            day = datetime.fromtimestamp(now_ns / 1e9, UTC).date()
            raise StartError(f"the clock says {day}, which cannot be: set it, then start again; no data was touched")
        written = last_written_ns(settings.data_dir) if settings.broker.jetstream else 0
        if not written:
            return
        days = (now_ns - written) / _DAY_NS
        if written - now_ns > _CLOCK_SLACK_NS:
            seconds = (written - now_ns) // 10**9
            text = "The clock is %d s behind what was last written to %s: has it been set back?"
            self._log.warning(text, seconds, settings.data_dir)
        elif days > _LONG_AWAY_DAYS:
            text = "By the clock, %s was last written %d days ago; if the clock is wrong, messages expire too early"
            self._log.warning(text, settings.data_dir, days)

    async def _stop(self) -> None:
        if self._lame is not None:
            self._lame.cancel()
            await asyncio.gather(self._lame, return_exceptions=True)
        self._log.info("Initiating Shutdown...")
        await self._service.stop()
        if self._ports_file is not None:
            self._ports_file.unlink(missing_ok=True)
        self._log.info("Server Exiting..")

    def _progress(self, text: str) -> None:
        self._status = text
        self._notify.status(text)

    def _tick(self, runtime: Runtime) -> None:
        """What is due every now and then. Comes from the loop itself: a loop that is stuck gives no sign of life."""
        if self._timer is not None:
            self._timer.cancel()
        pause = _RETRY
        try:
            pause = self._look_after(runtime)
        except Exception as error:  # without a next tick the service manager would take this process for stuck
            runtime.fence.caught(self._tick, error)
        self._timer = runtime.call_later(pause, self._tick, runtime)

    def _look_after(self, runtime: Runtime) -> float:
        """Do what is due; seconds until there is more."""
        if self._notify.watchdog:
            self._notify.alive()
        is_stopping = self._stop_began >= 0 and runtime.monotonic() - self._stop_began < _STOP_LIMIT
        if self._is_starting or is_stopping:
            self._notify.extend(_EXTENSION)
        output = current_output()
        if output is not None:
            output.tell_repeats(runtime.time_ns() / 1e9)
        pause = min(_TICK, self._notify.watchdog / 2) if self._notify.watchdog else _TICK
        return pause if self._notify.flush() else _RETRY

    def _on_signal(self, number: signal.Signals) -> None:
        self._log.debug('Trapped "%s" signal', _NAMES[number])
        actions: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGINT: self._done.set,
            signal.SIGTERM: self._terminate,
            signal.SIGHUP: self._hang_up,
            signal.SIGUSR1: self._reopen,
            signal.SIGUSR2: self._lame_duck,
        }
        actions[number]()

    def _terminate(self) -> None:
        if self._lame is None:  # lame duck mode ends by itself; only an interrupt cuts it short
            self._done.set()

    def _lame_duck(self) -> None:
        if self._lame is None:
            self._lame = asyncio.create_task(self._send_away(self._service.lame_duck()), name="lame duck")

    async def _send_away(self, leaving: Awaitable[None]) -> None:
        try:
            await leaving
        finally:
            self._done.set()

    def _hang_up(self) -> None:
        self._reload()

    def _reload(self) -> str:
        """Read the configuration again; why that did not work, or nothing."""
        read = self._service.settings.reload
        if read is None:
            self._log.warning("There is nothing to reload: no configuration file was given")
            return "config file not specified"
        self._notify.reloading()
        try:
            settings = read()
            changes = self._service.reload(settings)
        except (StartError, ValueError, OSError) as error:
            self._log.error("Failed to reload server configuration: %s", error)
            return str(error)
        finally:
            self._notify.ready(self._status or "Ready")
        for change in changes:
            self._log.info("Reloaded: %s", change)
        digest = f" ({settings.config_digest})" if settings.config_digest else ""
        self._log.info("Reloaded server configuration%s", digest)
        return ""

    def _reopen(self) -> None:
        output = current_output()
        if output is not None:
            output.reopen()

    def _write_ports(self, settings: Settings) -> None:
        if not settings.ports_file_dir:
            return
        program = Path(sys.argv[0]).stem
        name = f"{'nimsnats' if program == '__main__' else program}_{os.getpid()}.ports"  # `python -m nimsnats`
        path = Path(settings.ports_file_dir) / name
        try:
            files.write(path, json.dumps(self._service.listening()), 0o644)
        except OSError as error:
            self._log.error("Error writing ports file %s: %s", path, error.strerror)
            return
        self._ports_file = path
