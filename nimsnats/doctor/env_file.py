"""An environment file as systemd reads it (systemd.exec(5), EnvironmentFile=), and the lines that it would drop."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


@dataclass(slots=True)
class EnvironmentFile:
    """The variables, and what is wrong, as `line 3: …`."""

    variables: dict[str, str] = field(default_factory=dict[str, str])
    mistakes: list[str] = field(default_factory=list[str])


def parse(text: str) -> EnvironmentFile:
    """Read a whole file. Never raises: a line that is no assignment is a mistake, and the rest is read on."""
    found = EnvironmentFile()
    start, gathered = 1, ""
    for number, line in enumerate(text.split("\n"), 1):
        if not gathered:
            start = number
        gathered += line
        if line.endswith("\\") and not line.lstrip().startswith(("#", ";")):
            gathered = gathered[:-1]
            continue
        _read(found, start, gathered)
        gathered = ""
    if gathered:
        _read(found, start, gathered)
    return found


def _read(found: EnvironmentFile, number: int, line: str) -> None:
    if line.endswith("\r"):
        found.mistakes.append(f"line {number} ends as on Windows: the carriage return becomes part of the value")
        line = line[:-1]
    stripped = line.strip()
    if not stripped or stripped.startswith(("#", ";")):
        return
    assignment = _ASSIGNMENT.fullmatch(stripped)
    if assignment is None:
        shown = stripped.partition("=")[0][:40]  # what is behind it may be a secret
        why = "'export' is the shell's" if stripped.startswith("export ") else "it must be NAME=value"
        found.mistakes.append(f"line {number} is ignored by systemd ({why}): {shown}")
        return
    name, value = assignment[1], assignment[2].strip()
    quote = value[:1]
    if quote in ("'", '"'):
        if len(value) < 2 or value[-1] != quote:
            found.mistakes.append(f"line {number}: the quoted value of {name} does not end on its line")
            return
        value = value[1:-1]
    elif re.search(r"\s#", value):
        found.mistakes.append(f"line {number}: a comment behind a value becomes part of {name}")
    if name in found.variables:
        found.mistakes.append(f"line {number} sets {name} again: the last one counts")
    found.variables[name] = value
