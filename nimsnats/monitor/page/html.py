"""The status page as HTML: complete without a script, and with the templates that the script fills.

Owns the markup. Every text that may come from outside passes through `escape` here. The style sheet and the script
are files beside this module: nothing is inline, so that the page's policy can forbid all that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.page import present
from nimsnats.monitor.page.flow import forest_flow
from nimsnats.monitor.page.map import cluster_map, summary

_NUMBER: Final = "num"
_WIDE: Final = "wide"
_BADGE: Final = "badge"


@dataclass(frozen=True, slots=True)
class _Table:
    """A section with one table; `columns` are (title, classes), the first one names the row."""

    name: str
    title: str
    caption: str
    empty: str
    columns: Sequence[tuple[str, str]]


_STREAMS: Final = _Table(
    "streams", "Streams", "Where they are and how they grow, all accounts", "There are no streams yet.",
    (("Stream", ""), ("Account", _WIDE), ("State", _BADGE), ("Leader", ""), ("Replicas", _WIDE),
     ("Messages", _NUMBER), ("Size", f"{_NUMBER} {_WIDE}"), ("Stored", _NUMBER), ("Consumers", f"{_NUMBER} {_WIDE}")),
)  # fmt: skip
_CONSUMERS: Final = _Table(
    "consumers", "Consumers", "Consumers with what they still have to do", "There are no consumers yet.",
    (("Consumer", ""), ("Stream", ""), ("Kind", _WIDE), ("Pending", _NUMBER), ("Unacknowledged", f"{_NUMBER} {_WIDE}"),
     ("Redelivered", f"{_NUMBER} {_WIDE}"), ("Waiting pulls", f"{_NUMBER} {_WIDE}"),
     ("Delivered", f"{_NUMBER} {_WIDE}"), ("Rate", _NUMBER)),
)  # fmt: skip
_CONNECTIONS: Final = _Table(
    "connections", "Connections", "Clients that are connected now", "No client is connected.",
    (("Client", ""), ("Node", ""), ("Address", _WIDE), ("Language", _WIDE), ("Subscriptions", f"{_NUMBER} {_WIDE}"),
     ("From", _NUMBER), ("To", _NUMBER), ("Unsent", f"{_NUMBER} {_WIDE}"), ("Round trip", f"{_NUMBER} {_WIDE}"),
     ("Since", f"{_NUMBER} {_WIDE}")),
)  # fmt: skip
_REGISTRY: Final = _Table(
    "registry", "Registry", "How each node stands with the registry", "No node has a registry.",
    (("Node", ""), ("Connection", _BADGE), ("Registration", _BADGE), ("Changes by", _WIDE), ("Address or error", "")),
)  # fmt: skip
_EVENTS: Final = _Table(
    "events", "Recent events", "Latest lines of the nodes' logs, newest first", "Nothing was logged yet.",
    (("Time (UTC)", ""), ("Node", ""), ("Level", f"{_BADGE} {_WIDE}"), ("Event", "")),
)  # fmt: skip
_LINKS: Final = _Table("links", "", "", "", (("Between", ""), ("State", _BADGE), ("Round trip", _NUMBER)))
_TABLES: Final = (_STREAMS, _CONSUMERS, _CONNECTIONS, _REGISTRY, _EVENTS)

_FIGURES: Final = (
    ("Connections", ""), ("Messages", "long"), ("Streams led", ""), ("Processor", ""), ("Memory", ""),
    ("Entries behind", ""), ("Round trip", ""), ("Loop lag", ""), ("Disk sync", ""),
)  # fmt: skip
_TILES: Final = (
    ("nodes", "Nodes", "replication"), ("in", "Messages in", "in-bytes"), ("out", "Messages out", "out-bytes"),
    ("streams", "Streams", "stored"), ("consumers", "Consumers", "pending"),
    ("connections", "Connections", "subscriptions"),
)  # fmt: skip


def page(overview: JsonObject) -> JsonObject:
    """What an overview puts onto the page: the cells of `present.page`, and `drawn`, markup by its place."""
    cells = present.page(overview)
    drawn = {
        "map": cluster_map(overview),
        "map-text": escape(summary(overview)),
        "flow": forest_flow(cells["lists"].pop("flow")),
    }
    return {**cells, "drawn": drawn}


def render(node: str, version: str, cells: JsonObject, links: Iterable[tuple[str, str]]) -> str:
    """The whole page. `cells` are `page`'s, `links` are (title, path) of the port's endpoints."""
    facts, lists = cells["facts"], cells["lists"]
    sections = [_cluster(lists, cells["drawn"]), _forest(cells["drawn"]["flow"])]
    sections += [_table(table, lists[table.name], facts) for table in _TABLES]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(facts["title"][0])}</title>
<link rel="icon" href="./-/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="./-/status.css">
<script src="./-/status.js" defer></script>
</head>
<body>
<a class="skip" href="#main">Skip to the figures</a>
{_header(node, version, facts)}
<main id="main" tabindex="-1">
{_summary(facts, lists["problems"])}
{"".join(sections)}</main>
<footer>
<nav aria-labelledby="endpoints">
<h2 id="endpoints">Endpoints of this node</h2>
<ul class="links">
{_links(links)}
</ul>
</nav>
</footer>
</body>
</html>
"""


def _header(node: str, version: str, facts: JsonObject) -> str:
    names = [("cluster", "Cluster"), ("forest", "Forest"), *((table.name, table.title) for table in _TABLES)]
    jumps = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in names)
    return f"""<header>
<div class="bar">
<h1><span class="mark" aria-hidden="true"></span>{escape(node)}</h1>
<p class="version">nimsnats {escape(version)}</p>
<p class="live"><span id="live" data-s="off">as of</span> {_fact("time", facts)}</p>
<button id="pause" type="button" hidden>Pause</button>
</div>
<noscript><p class="note">These figures are from when the page was loaded. Without a script they do not move: load
it again for new ones.</p></noscript>
<nav aria-label="Sections"><ul class="jumps">{jumps}</ul></nav>
</header>"""


def _summary(facts: JsonObject, problems: list[list[Any]]) -> str:
    tiles = "".join(_tile(name, title, below, facts) for name, title, below in _TILES)
    return f"""<section class="summary" aria-labelledby="summary">
<h2 id="summary" class="unseen">Summary</h2>
<p class="headline" role="status">{_fact("status", facts, "badge")} {_fact("headline", facts)}</p>
{_list("problems", "ul", problems, _problem, "")}
<dl class="tiles">{tiles}</dl>
</section>
"""


def _tile(name: str, title: str, below: str, facts: JsonObject) -> str:
    more = f'<dd class="below">{_fact(below, facts)}</dd>' if below else ""
    moves = name in ("in", "out")
    spark = f'<dd class="spark" aria-hidden="true"><svg id="spark-{name}"></svg></dd>' if moves else ""
    return f'<div class="tile"><dt>{title}</dt><dd class="figure">{_fact(name, facts)}</dd>{more}{spark}</div>'


def _cluster(lists: JsonObject, drawn: JsonObject) -> str:
    cards = _list("nodes", "ul", lists["nodes"], _node, "")
    links = "".join(_table_row(_LINKS, row) for row in lists["links"])
    blank: list[Any] = ["", "", [["", ""]] * len(_LINKS.columns)]
    hidden = "" if lists["links"] else " hidden"
    return f"""<section aria-labelledby="cluster"><h2 id="cluster">Cluster</h2>
<div class="cluster">
<figure class="map">
<div data-drawn="map">{drawn["map"]}</div>
<figcaption data-drawn="map-text">{drawn["map-text"]}</figcaption>
<details data-table="links"{hidden}><summary>Links as a table</summary>
<table><thead><tr>{_head(_LINKS)}</tr></thead><tbody data-list="links">{links}</tbody></table>
<template id="t-links">{_table_row(_LINKS, blank)}</template>
</details>
</figure>
{cards}
</div>
</section>
"""


def _forest(flow: str) -> str:
    return f"""<section aria-labelledby="forest"><h2 id="forest">Forest</h2>
<ol class="flow" data-drawn="flow">{flow}</ol>
<p class="empty none">No forest grows here.</p>
</section>
"""


def _problem(row: list[Any]) -> str:
    return f"<li{_row_attributes(row)}>{_cell('span', row[2][0])}</li>"


def _node(row: list[Any]) -> str:
    name, state, role, *figures, note = row[2]
    shown = "".join(
        f'<div class="{extra}"><dt>{title}</dt>{_cell("dd", cell)}</div>' if extra else
        f'<div><dt>{title}</dt>{_cell("dd", cell)}</div>'
        for (title, extra), cell in zip(_FIGURES, figures, strict=True)
    )  # fmt: skip
    head = f"{_cell('h3', name)}{_cell('span', state, 'badge')}{_cell('span', role, 'role')}"
    spot = f' id="node-{escape(row[0])}"' if row[0] else ""
    return (
        f'<li data-id="node-"{spot}{_row_attributes(row)}><div class="head">{head}</div><dl>{shown}</dl>'
        f"{_cell('p', note, 'note')}</li>"
    )


def _table(table: _Table, rows: list[list[Any]], facts: JsonObject) -> str:
    note = f'<p class="note">{_fact(f"{table.name}-note", facts)}</p>' if f"{table.name}-note" in facts else ""
    blank: list[Any] = ["", "", [["", ""]] * len(table.columns)]
    body = "".join(_table_row(table, row) for row in rows)
    return f"""<section aria-labelledby="{table.name}"><h2 id="{table.name}">{table.title}</h2>
<div class="scroll" role="group" aria-label="{table.title}, table" tabindex="0">
<table data-table="{table.name}"{" hidden" if not rows else ""}>
<caption>{table.caption}</caption>
<thead><tr>{_head(table)}</tr></thead>
<tbody data-list="{table.name}">{body}</tbody>
</table>
</div>
<template id="t-{table.name}">{_table_row(table, blank)}</template>
<p class="empty" data-empty="{table.name}"{" hidden" if rows else ""}>{table.empty}</p>
{note}
</section>
"""


def _head(table: _Table) -> str:
    return "".join(f'<th scope="col"{_classes(_outer(c))}>{title}</th>' for title, c in table.columns)


def _table_row(table: _Table, row: list[Any]) -> str:
    cells: list[str] = []
    for number, ((_, classes), cell) in enumerate(zip(table.columns, row[2], strict=True)):
        if number == 0:
            cells.append(_cell("th", cell, classes, ' scope="row"'))
        elif _BADGE in classes:
            cells.append(f"<td{_classes(_outer(classes))}>{_cell('span', cell, _BADGE)}</td>")
        else:
            cells.append(_cell("td", cell, classes))
    return f"<tr{_row_attributes(row)}>{''.join(cells)}</tr>"


def _outer(classes: str) -> str:
    """A column's classes but for the one that its cells' inner element has."""
    return " ".join(one for one in classes.split() if one != _BADGE)


_BLANKS: Final = {"problems": 1, "nodes": 13}
"""Cells of the items of lists that are no tables."""


def _list(name: str, tag: str, rows: list[list[Any]], item: Any, empty: str) -> str:
    blank = item(["", "", [["", ""]] * _BLANKS[name]])
    items = "".join(item(row) for row in rows)
    hidden = " hidden" if rows else ""
    nothing = f'<p class="empty" data-empty="{name}"{hidden}>{empty}</p>' if empty else ""
    absent = " hidden" if not rows else ""
    return (
        f'<{tag} class="{name}" data-list="{name}" data-table="{name}"{absent}>{items}</{tag}>'
        f'<template id="t-{name}">{blank}</template>{nothing}'
    )


def _links(links: Iterable[tuple[str, str]]) -> str:
    return "\n".join(
        f'<li><a href="./{escape(path)}">{escape(title)} <span>/{escape(path)}</span></a></li>' for title, path in links
    )


def _fact(name: str, facts: JsonObject, classes: str = "") -> str:
    text, state = facts[name]
    return f'<span data-f="{name}" data-s="{state}"{_classes(classes)}>{escape(text)}</span>'


def _cell(tag: str, cell: Sequence[str], classes: str = "", more: str = "") -> str:
    text, state = cell
    return f'<{tag}{more} data-c data-s="{state}"{_classes(classes)}>{escape(text)}</{tag}>'


def _row_attributes(row: list[Any]) -> str:
    return f' data-key="{escape(row[0])}" data-s="{row[1]}"'


def _classes(classes: str) -> str:
    return f' class="{classes}"' if classes else ""
