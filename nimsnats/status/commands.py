"""What `nimsnats status` and `nimsnats top` do."""

from __future__ import annotations

import json
import sys
import threading
from typing import Final

from nimsnats.monitor.format import JsonObject
from nimsnats.status.health import NoAnswer, ask, ask_overview, summary
from nimsnats.status.tables import headline, tables

_PERIOD: Final = 1.0
_CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"
_STATUS: Final = ("nodes", "flow", "streams", "registry")
_TOP: Final = ("nodes", "flow", "streams", "consumers", "connections", "events")
_NO_OVERVIEW: Final = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def status(url: str, *, as_json: bool, watch: bool) -> int:
    """Print how the node at `url` is, once or until interrupted; the exit code. Raises NoAnswer, unless watching."""
    if not watch:
        text, code = _status(url, as_json=as_json, colours=False)
        print(text)
        return code
    screen, code = sys.stdout.isatty() and not as_json, 1
    try:
        while True:
            try:
                text, code = _status(url, as_json=as_json, colours=screen)
            except NoAnswer as error:
                text, code = (json.dumps({"error": str(error)}) if as_json else str(error)), 1
            print(f"{_CLEAR}{text}" if screen else text, flush=True)
            threading.Event().wait(_PERIOD)
    except KeyboardInterrupt:
        return code


def _status(url: str, *, as_json: bool, colours: bool) -> tuple[str, int]:
    health, overview = ask(url), ask_overview(url)
    code = 1 if health.get("status") == "unhealthy" else 0
    if as_json:
        return json.dumps({**health, "overview": overview} if overview is not None else health, indent=2), code
    return "\n".join([summary(health), *_tables(overview, colours=colours)]), code


def _tables(overview: JsonObject | None, *, colours: bool) -> list[str]:
    if overview is None:
        return []  # a node from before there was one
    try:
        return tables(overview, _STATUS, colours=colours)
    except _NO_OVERVIEW:
        return ["", "the rest of the answer is not understood: a node of another version?"]


def top(url: str) -> int:
    """Show the cluster until `q`, or once where there is no terminal; the exit code. Raises NoAnswer without one."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        ask(url)
        lines = _screen(url, colours=False)
        print("\n".join(lines))
        return 0
    from nimsnats.status.terminal import Terminal

    try:
        with Terminal() as terminal:
            while True:
                lines = _screen(url, colours=True)
                terminal.draw(lines)
                while (key := terminal.wait(_PERIOD)) == "resize":
                    terminal.draw(lines)
                if key in ("q", "Q"):
                    return 0
    except KeyboardInterrupt:
        return 0


def _screen(url: str, *, colours: bool) -> list[str]:
    overview = ask_overview(url)
    if overview is None:
        return [f"no overview from {url}; trying again", "", "q quits"]
    try:
        return [*headline(overview, colours=colours), *tables(overview, _TOP, colours=colours)]
    except _NO_OVERVIEW:
        return [f"the answer of {url} is not understood: a node of another version?", "", "q quits"]
