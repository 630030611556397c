"""`--signal word[=pid]`: tell a running server to stop, reload, reopen its log or go into lame duck mode.

Owns: nats-server's words for signals, and finding the process meant. Sends one signal to one process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

WORDS: Final[Mapping[str, signal.Signals]] = {
    "stop": signal.SIGKILL,
    "quit": signal.SIGINT,
    "term": signal.SIGTERM,
    "reload": signal.SIGHUP,
    "reopen": signal.SIGUSR1,
    "ldm": signal.SIGUSR2,
}
_COMMANDS: Final = ("nimsnats", "nimsnats-server")


class SignalError(Exception):
    """The signal was not sent; nats-server's text."""


def send_signal(request: str, proc: Path = Path("/proc")) -> None:
    """Send what `request` asks for: `word`, `word=pid` or `word=pidfile`. Raises SignalError.

    Without a pid there must be exactly one server of ours on this machine; `proc` is where processes are listed.
    """
    word, *rest = request.split("=")
    if len(rest) > 1:
        raise SignalError(f"invalid signal parameters: [{' '.join(rest[1:])}]")
    target = _pid(rest[0]) if rest and rest[0] else None
    if word not in WORDS:
        raise SignalError(f'unknown signal "{word}"')
    pid = target if target is not None else _only_server(proc)
    try:
        os.kill(pid, WORDS[word])
    except ProcessLookupError:
        raise SignalError(f'\nsignal "{word}" {pid}: no such process') from None
    except PermissionError:
        raise SignalError(f'\nsignal "{word}" {pid}: operation not permitted') from None


def _pid(text: str) -> int:
    """A pid, or the pid in the file of that name."""
    try:
        written = Path(text).read_text().strip()
    except (OSError, UnicodeDecodeError):
        written = text
    if not written.isascii() or not written.isdigit() or not 0 < int(written) < 2**31:
        raise SignalError(f"invalid pid: {written}")
    return int(written)


def _only_server(proc: Path) -> int:
    pids = servers(proc)
    if not pids:
        raise SignalError("no nats-server processes running")
    if len(pids) > 1:
        raise SignalError("multiple nats-server processes running:\n" + "\n".join(map(str, pids)))
    return pids[0]


def servers(proc: Path = Path("/proc")) -> list[int]:
    """Pids of our servers on this machine, without this process; only those that the system shows to us."""
    found: list[int] = []
    for entry in proc.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:
            continue  # it has gone in the meantime, or is not ours to see
        if _is_server(arguments):
            found.append(int(entry.name))
    return sorted(found)


def _is_server(arguments: list[str]) -> bool:
    """Whether a command line runs a node or a server, not the registry, the forest or `--signal` itself."""
    for index, argument in enumerate(arguments[:4]):
        by_module = argument == "-m" and arguments[index + 1 : index + 2] == ["nimsnats"]
        if by_module or (index < 2 and Path(argument).name in _COMMANDS):
            rest = arguments[index + 1 + by_module :]
            is_sender = any(flag.lstrip("-").partition("=")[0] in ("sl", "signal") for flag in rest if flag[:1] == "-")
            return not is_sender and rest[:1] not in (["registry"], ["forest"], ["status"])
    return False
