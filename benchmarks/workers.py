"""Load generators as processes of their own: start, wait until ready, collect the result, never leave one behind.

Owns the child processes it forks. A worker function takes a `Signals` first; it calls `ready()` when its part of the
set-up is done, polls `stopped()` while it works, and returns a picklable result.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Event
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast

_P = ParamSpec("_P")
_R = TypeVar("_R")
_fork = multiprocessing.get_context("fork")


class WorkerError(Exception):
    """A load generator failed or did not answer in time; the text holds its traceback."""


class Signals:
    """What a worker and the parent tell each other."""

    def __init__(self, pipe: Pipe, stop: Event) -> None:
        self._pipe = pipe
        self._stop = stop

    def ready(self, value: object = None) -> None:
        """Set-up is complete; `value` goes to the parent's `wait_ready`."""
        self._pipe.send(("ready", value))

    def stopped(self) -> bool:
        """The parent wants the worker to finish."""
        return self._stop.is_set()

    def wait_stopped(self, timeout: float) -> bool:
        """Sleep until the parent wants the worker to finish, at most `timeout` seconds."""
        return self._stop.wait(timeout)


class Worker(Generic[_R]):
    """One load generator process, started by the constructor."""

    def __init__(self, function: Callable[Concatenate[Signals, _P], _R], *args: _P.args, **kwargs: _P.kwargs):
        self._pipe, theirs = _fork.Pipe()
        self._stop = _fork.Event()
        signals = Signals(cast("Pipe", theirs), self._stop)
        self._process = _fork.Process(target=_run, args=(function, signals, theirs, args, kwargs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_ready(self, timeout: float = 20.0) -> Any:
        """What the worker passed to `ready()`. Raises WorkerError."""
        return self._receive("ready", timeout)

    def stop(self) -> None:
        """Ask the worker to finish."""
        self._stop.set()

    def result(self, timeout: float = 60.0) -> _R:
        """What the worker function returned. Raises WorkerError."""
        return self._receive("result", timeout)

    def kill(self) -> None:
        """End the process if it still lives."""
        self._stop.set()
        if self._process.is_alive():
            self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._pipe.close()

    def _receive(self, wanted: str, timeout: float) -> Any:
        try:
            if not self._pipe.poll(timeout):
                raise WorkerError(f"no {wanted} from a load generator within {timeout} s")
            kind, value = self._pipe.recv()
        except EOFError:
            raise WorkerError("a load generator died") from None
        if kind != wanted:
            raise WorkerError(str(value))
        return value


def _run(function: Any, signals: Signals, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        pipe.send(("result", function(signals, *args, **kwargs)))
    except KeyboardInterrupt:
        pass  # the parent was interrupted as well and says so itself
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))


class Crew(ExitStack):
    """Workers of one measurement; leaving the block ends them all."""

    def start(
        self, function: Callable[Concatenate[Signals, _P], _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> Worker[_R]:
        """Start a worker that ends with the block."""
        return self.enter_context(Worker(function, *args, **kwargs))
