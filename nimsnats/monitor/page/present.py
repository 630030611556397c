"""Puts an overview into words: every text of the status page that changes, as cells that HTML and events share.

Owns formats and wording; the same cells are written into the first HTML and sent to browsers that keep looking, so a
browser's script formats nothing. Pure functions.

A page is `{"facts": {name: cell}, "lists": {name: [row]}, "raw": {...}}`. A cell is `[text, state]`, a row
`[key, state, [cell, ...]]`; a state is one of "ok", "warn", "bad", "off" and "" and chooses a colour beside the word.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nimsnats.monitor.format import JsonObject, uptime

Cell = list[str]
Row = list[object]

_NONE: Final = "-"
STATES: Final = {
    "healthy": "ok", "ok": "ok", "degraded": "warn", "behind": "warn", "silent": "warn", "leader away": "warn",
    "unhealthy": "bad", "no leader": "bad", "damaged": "bad", "offline": "bad", "away": "bad", "core": "off",
}  # fmt: skip
LINK_WORDS: Final = {"up": "up", "one way": "one way only", "down": "down", "away": "away"}
LINK_STATES: Final = {"up": "ok", "one way": "warn", "down": "bad", "away": "off"}
_NODE_WORDS: Final[dict[str, str]] = {"silent": "not answering", "core": "other server"}
_STAGES: Final = {
    "river": ("River", "events received", "waiting"),
    "tree": ("Tree", "events parsed", "waiting"),
    "wind": ("Wind", "leaves dropped", ""),
    "nim": ("Nim", "leaves caught", "waiting"),
    "humus": ("Humus", "changes composted", ""),
    "soil": ("Soil", "changes settled", "waiting"),
}
_LEVELS: Final = {"warning": "warn", "error": "bad", "critical": "bad"}


def page(overview: JsonObject) -> JsonObject:
    """All cells of the page."""
    return {
        "facts": _facts(overview),
        "lists": {
            "problems": [_row(str(n), "", text) for n, text in enumerate(overview["problems"][:20])],
            "nodes": [_node(node) for node in overview["nodes"]],
            "links": [_link(link) for link in overview.get("links", ())],
            "flow": [_stage(stage) for stage in _stages(overview["flow"])],
            "streams": [_stream(one, overview["nodes"]) for one in overview["streams"]["list"]],
            "consumers": [_consumer(one) for one in overview["consumers"]["list"]],
            "connections": [_connection(one) for one in overview["connections"]["list"]],
            "registry": [_registry(one) for one in overview["registry"]],
            "events": [_event(one) for one in overview["events"]],
        },
        "raw": {"in": overview["traffic"]["in_msgs"], "out": overview["traffic"]["out_msgs"]},
    }


def _facts(overview: JsonObject) -> dict[str, Cell]:
    nodes, traffic, status = overview["nodes"], overview["traffic"], overview["status"]
    present = sum(node["state"] not in ("away", "silent") for node in nodes)
    everybody = present == len(nodes)
    return {
        "title": _cell(f"{overview['cluster'] or overview['node']}: {status}"),
        "status": _cell(status, STATES[status]),
        "headline": _cell(_headline(present, len(nodes), overview)),
        "time": _cell(overview["time"][11:19] + " UTC"),
        "nodes": _cell(f"{present} of {len(nodes)}" if not everybody else str(present), "" if everybody else "bad"),
        "replication": _cell(f"replication factor {overview['replication_factor']}"),
        "in": _cell(rate(traffic["in_msgs"])),
        "in-bytes": _cell(_per_second(traffic["in_bytes"])),
        "out": _cell(rate(traffic["out_msgs"])),
        "out-bytes": _cell(_per_second(traffic["out_bytes"])),
        "streams": _cell(count(overview["streams"]["total"])),
        "consumers": _cell(count(overview["consumers"]["total"])),
        "connections": _cell(count(overview["connections"]["total"])),
        "stored": _cell(f"{size(sum(one['bytes'] for one in overview['streams']['list']))} stored"),
        "pending": _cell(f"{count(sum(one['pending'] for one in overview['consumers']['list']))} messages pending"),
        "subscriptions": _cell(f"{count(sum(one.get('subscriptions', 0) for one in nodes))} subscriptions"),
        **{f"{name}-note": _cell(_left_out(overview[name])) for name in ("streams", "consumers", "connections")},
    }


def _headline(present: int, nodes: int, overview: JsonObject) -> str:
    who = "This node stands alone" if nodes == 1 else f"{present} of {nodes} nodes are here"
    leader = f", {overview['leader']} leads" if overview["leader"] and nodes > 1 else ""
    problems = len(overview["problems"])
    trouble = f"; {problems} problem{'s' if problems > 1 else ''}" if problems else ""
    return f"{who}{leader}{trouble}."


def _left_out(listed: JsonObject) -> str:
    shown = len(listed["list"])
    return f"Shown: {count(shown)} of {count(listed['total'])}." if shown < listed["total"] else ""


def node_word(state: str) -> str:
    """A node's state for people."""
    return _NODE_WORDS.get(state, state)


def link_label(link: JsonObject) -> str:
    """What the map says at a link; nothing where the node at its end says it."""
    if link["state"] == "up":
        return seconds(link["rtt"] / 1e9) if link["rtt"] else ""
    return {"one way": "one way", "down": "no route"}.get(link["state"], "")


def _link(link: JsonObject) -> Row:
    one, other = link["nodes"]
    state = link["state"]
    rtt = seconds(link["rtt"] / 1e9) if link["rtt"] and state == "up" else _NONE
    return _row(f"{one} {other}", "", f"{one} and {other}", _cell(LINK_WORDS[state], LINK_STATES[state]), rtt)


def _node(node: JsonObject) -> Row:
    state: str = node["state"]
    word = _cell(node_word(state), STATES[state])
    role = _cell("leader" if node["leader"] else "")
    rtt = _NONE if node["rtt"] is None else seconds(node["rtt"] / 1e9 or None)
    absent = _cell(node["name"], "off")
    if not node["answered"]:
        return _row(node["name"], STATES[state], absent, word, role, *[_NONE] * 6, rtt, *[_NONE] * 2, "")
    lag = _cell(count(node["lag"]), "warn" if node["lag"] else "")
    note = ". ".join([f"{node['version']}, up {uptime(node['uptime'])}", *node.get("notes", ())])
    if state in ("away", "silent"):
        lag, note = _cell(_NONE), f"last heard {uptime(round(node['heard'] * 1e9))} ago"
        return _row(node["name"], STATES[state], absent, word, role, *[_NONE] * 5, lag, rtt, *[_NONE] * 2, note)
    return _row(
        node["name"],
        STATES[state],
        node["name"],
        word,
        role,
        count(node["connections"]),
        f"{rate(node['in_rate'])} in, {rate(node['out_rate'])} out",
        count(node["streams"]),
        f"{node['cpu']:.0f} %",
        size(node["memory"]),
        lag,
        rtt,
        seconds(node["loop_lag"]),
        seconds(node["commit_time"]),
        note,
    )


def _stages(flow: list[JsonObject]) -> list[JsonObject]:
    """The stages to show; what waits before the soil is the decomposer's to know."""
    waiting = {stage["stage"]: stage["waiting"] for stage in flow}
    shown = [stage for stage in flow if stage["stage"] in _STAGES]
    return [
        {**stage, "waiting": waiting.get("decomposer", 0)} if stage["stage"] == "soil" else stage for stage in shown
    ]


def _stage(stage: JsonObject) -> Row:
    title, what, waits = _STAGES[stage["stage"]]
    waiting = _cell(f"{count(stage['waiting'])} {waits}" if waits else f"{count(stage['kept'])} kept")
    moving = "ok" if stage["rate"] else ""
    return _row(stage["stage"], moving, title, count(stage["total"]), what, rate(stage["rate"]), waiting)


def _stream(stream: JsonObject, nodes: Iterable[JsonObject]) -> Row:
    away = {node["name"] for node in nodes if node["state"] in ("away", "silent")}
    state = "ok" if stream["state"] == "ok" else stream["state"]
    others = [_replica(one, away) for one in stream["replicas"]]
    return _row(
        f"{stream['name']} {stream['account']}",
        STATES[state],
        stream["name"],
        stream["account"],
        _cell("current" if state == "ok" else state, STATES[state]),
        stream["leader"] or _NONE,
        ", ".join(others) or _NONE,
        count(stream["messages"]),
        size(stream["bytes"]),
        rate(stream["rate"]),
        count(stream["consumers"]),
    )


def _replica(replica: JsonObject, away: set[str]) -> str:
    name = replica["name"]
    if replica["offline"] or name in away:
        return f"{name} (away)"
    if replica["current"]:
        return name
    return f"{name} ({count(replica['lag'])} behind)" if replica["lag"] else f"{name} (behind)"


def _consumer(consumer: JsonObject) -> Row:
    account, stream, name = consumer["account"], consumer["stream"], consumer["name"]
    return _row(
        f"{stream} {name} {account}",
        "",
        name,
        stream if account == "$G" else f"{account} {stream}",
        "pull" if consumer["pull"] else "push",
        _cell(count(consumer["pending"]), "warn" if consumer["pending"] else ""),
        count(consumer["ack_pending"]),
        _cell(count(consumer["redelivered"]), "warn" if consumer["redelivered"] else ""),
        count(consumer["waiting"]) if consumer["pull"] else _NONE,
        count(consumer["delivered"]),
        rate(consumer["rate"]),
    )


def _connection(client: JsonObject) -> Row:
    return _row(
        f"{client['cid']} {client['node']}",
        "",
        client["name"] or f"connection {client['cid']}",
        client["node"],
        client["address"],
        client["language"] or _NONE,
        count(client["subs"]),
        count(client["in_msgs"]),
        count(client["out_msgs"]),
        _cell(size(client["pending"]), "warn" if client["pending"] > 1 << 20 else ""),
        seconds(client["rtt"] / 1e9) if client["rtt"] else _NONE,
        uptime(client["uptime"]),
    )


def _registry(registry: JsonObject) -> Row:
    if not registry["url"]:
        return _row(registry["node"], "off", registry["node"], _cell("none", "off"), _NONE, _NONE, "")
    connected = registry["connected"]
    return _row(
        registry["node"],
        "ok" if connected else "bad",
        registry["node"],
        _cell("connected", "ok") if connected else _cell("not connected", "bad"),
        _cell("registered", "ok") if registry["registered"] else _cell("not registered", "warn"),
        registry["watch"] or _NONE,
        registry["error"] or registry["url"],
    )


def _event(event: JsonObject) -> Row:
    level = event["level"]
    key = f"{event['at']} {event['node']} {event['text']}"
    return _row(key, "", event["time"][11:19], event["node"], _cell(level, _LEVELS.get(level, "")), event["text"])


def count(value: float) -> str:
    """A whole number for people."""
    return f"{value:,.0f}" if value < 10_000_000 else f"{value / 1e6:,.1f} M"


def rate(value: float | None) -> str:
    """How often a second; a dash while that is not known."""
    if value is None:
        return _NONE
    return f"{value:.1f}/s" if 0 < value < 10 else f"{count(value)}/s"


def size(value: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _per_second(value: float | None) -> str:
    return _NONE if value is None else f"{size(value)}/s"


def seconds(value: float | None) -> str:
    """A duration in its unit; a dash while it is not known."""
    if value is None:
        return _NONE
    if value < 0.0001:
        return "< 0.1 ms"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.1f} s"


def _cell(text: str, state: str = "") -> Cell:
    return [text, state]


def _row(key: str, state: str, *cells: str | Cell) -> Row:
    return [key, state, [_cell(cell) if isinstance(cell, str) else cell for cell in cells]]
