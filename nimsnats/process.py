"""A node or server as a process: signals, the ports file, fatal errors as one line, the exit code.

Owns what only exists because there is a process around the server (nats-server's conventions: INT and TERM stop, HUP
reloads, USR1 reopens the log, USR2 is lame duck mode). What is started and stopped is handed in.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

from nimsnats.config.settings import Settings
from nimsnats.log import FATAL, current_output
from nimsnats.runtime import StartError

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


class Service(Protocol):
    """What a process runs."""

    settings: Settings

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
    """Runs one service until a signal ends it."""

    def __init__(self, service: Service, log: logging.Logger | None = None) -> None:
        self._service = service
        self._log = log or logging.getLogger("nimsnats")
        self._done = asyncio.Event()
        self._lame: asyncio.Task[None] | None = None
        self._ports_file: Path | None = None

    async def run(self) -> int:
        """The exit code: 0 after a signal, 1 when the service could not start."""
        settings = self._service.settings
        sys.setswitchinterval(_SWITCH_INTERVAL)
        for level, text in settings.notes:
            self._log.log(level, "%s", text)
        loop = asyncio.get_running_loop()
        for number in _NAMES:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self._service.start()
        except StartError as error:
            self._log.log(FATAL, "%s", error)
            return 1
        try:
            self._write_ports(settings)
            await self._done.wait()
        finally:
            await self._stop()
        return 0

    async def _stop(self) -> None:
        if self._lame is not None:
            self._lame.cancel()
            await asyncio.gather(self._lame, return_exceptions=True)
        self._log.info("Initiating Shutdown...")
        await self._service.stop()
        if self._ports_file is not None:
            self._ports_file.unlink(missing_ok=True)
        self._log.info("Server Exiting..")

    def _on_signal(self, number: signal.Signals) -> None:
        self._log.debug('Trapped "%s" signal', _NAMES[number])
        actions: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGINT: self._done.set,
            signal.SIGTERM: self._terminate,
            signal.SIGHUP: self._reload,
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

    def _reload(self) -> None:
        read = self._service.settings.reload
        if read is None:
            self._log.warning("There is nothing to reload: no configuration file was given")
            return
        try:
            settings = read()
            changes = self._service.reload(settings)
        except (StartError, ValueError, OSError) as error:
            self._log.error("Failed to reload server configuration: %s", error)
            return
        for change in changes:
            self._log.info("Reloaded: %s", change)
        digest = f" ({settings.config_digest})" if settings.config_digest else ""
        self._log.info("Reloaded server configuration%s", digest)

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
            path.write_text(json.dumps(self._service.listening()))
        except OSError as error:
            self._log.error("Error writing ports file %s: %s", path, error.strerror)
            return
        self._ports_file = path
