"""A cluster's overview as tables of text: the same cells as on the status page, for a terminal.

Owns columns, widths and colours. Names come from clients: whatever would move a terminal's cursor is replaced.
Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.page.present import page

_COLOURS: Final = {"ok": "\x1b[32m", "warn": "\x1b[33m", "bad": "\x1b[31m", "off": "\x1b[90m"}
_BOLD: Final = "\x1b[1m"
_PLAIN: Final = "\x1b[0m"

_TABLES: Final[dict[str, Sequence[str]]] = {
    "nodes": ("node", "state", "role", ">clients", "messages", ">leads", ">cpu", ">memory", ">behind", ">rtt", ">loop",
              ">sync", "since"),
    "streams": ("stream", "account", "state", "leader", "replicas", ">messages", ">size", ">stored", ">consumers"),
    "consumers": ("consumer", "stream", "kind", ">pending", ">unacked", ">redelivered", ">pulls", ">delivered",
                  ">rate"),
    "connections": ("client", "node", "address", "language", ">subs", ">from", ">to", ">unsent", ">rtt", ">since"),
    "registry": ("node", "registry", "registration", "changes", "address or error"),
    "events": ("time", "node", "level", "event"),
}  # fmt: skip
"""Titles of the columns of each list; those that begin with > are aligned to the right."""


def tables(overview: JsonObject, names: Sequence[str], *, colours: bool = False) -> list[str]:
    """Lines with these lists of an overview. Raises what reading it raises when it is no overview of ours."""
    cells, lines = page(overview), list[str]()
    for name in names:
        rows = cells["lists"][name]
        if name == "flow":
            lines += ["", *_flow(rows)] if rows else []
        elif rows:
            lines += ["", *_table(_TABLES[name], [row[2] for row in rows], colours=colours)]
            note = cells["facts"].get(f"{name}-note", [""])[0]
            lines += [note] if note else []
    return lines


def headline(overview: JsonObject, *, colours: bool = False) -> list[str]:
    """The cluster in a line, and a line for each of its problems."""
    cells = page(overview)
    facts = cells["facts"]
    text = f"{overview['cluster'] or overview['node']}: "
    status = _coloured(facts["status"][0], facts["status"][1], colours=colours)
    problems = [f"  ! {clean(row[2][0][0])}" for row in cells["lists"]["problems"]]
    traffic = f"{facts['in'][0]} in, {facts['out'][0]} out"
    return [f"{clean(text)}{status}  {clean(facts['headline'][0])}  {traffic}  {facts['time'][0]}", *problems]


def clean(text: str) -> str:
    """The text without anything that a terminal would act on."""
    return "".join(character if character.isprintable() else "?" for character in text)


def clip(line: str, width: int) -> str:
    """The first `width` characters of a line, colours not counted and ended."""
    shown, at, kept = 0, 0, list[str]()
    while at < len(line) and shown < width:
        end = line.find("m", at) + 1 if line[at] == "\x1b" else at + 1
        kept.append(line[at:end])
        shown += line[at] != "\x1b"
        at = end
    return "".join(kept) + (_PLAIN if "\x1b" in line else "")


def _flow(rows: list[list[Any]]) -> list[str]:
    """The forest in one line: what went through each stage, and how much waits."""
    return ["FOREST", "  ->  ".join(f"{title[0]} {total[0]} ({rate[0]})" for _, _, (title, total, _, rate, _) in rows)]


def _table(titles: Sequence[str], rows: Sequence[Sequence[Sequence[str]]], *, colours: bool) -> list[str]:
    head = [title.removeprefix(">").upper() for title in titles]
    texts = [[clean(cell[0]) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    lines = [_BOLD + _line(head, titles, widths) + _PLAIN if colours else _line(head, titles, widths)]
    for row, text in zip(rows, texts, strict=True):
        padded = _padded(text, titles, widths)
        shown = [_coloured(one, cell[1], colours=colours) for one, cell in zip(padded, row, strict=True)]
        lines.append("  ".join(shown).rstrip())
    return lines


def _line(texts: Sequence[str], titles: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(_padded(texts, titles, widths)).rstrip()


def _padded(texts: Sequence[str], titles: Sequence[str], widths: Sequence[int]) -> list[str]:
    columns = zip(texts, titles, widths, strict=True)
    return [text.rjust(width) if title[0] == ">" else text.ljust(width) for text, title, width in columns]


def _coloured(text: str, state: str, *, colours: bool) -> str:
    return f"{_COLOURS[state]}{text}{_PLAIN}" if colours and state in _COLOURS else text
