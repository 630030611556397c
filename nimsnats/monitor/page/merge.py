"""Makes one overview of what the nodes of a cluster say.

Owns its shape, which `/statusz` serves as JSON. Pure functions: answers in, an overview out. Rates come from a node's
two latest answers and its own clock; they are None where there is only one answer yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, cast

from nimsnats.jetstream.clock import format_time
from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.view import NodeView

_SILENT: Final = 2.5
"""Seconds without an answer after which a node counts as silent (connected) or away (not connected)."""
_LONGEST: Final = 30e9
"""Nanoseconds between two answers beyond which no rate is made of them."""
_ON_ITS_WAY: Final = 2.0
"""Seconds of a stream's messages that a replica may lack and still count as current."""
_FEW: Final = 50
"""The same in entries, as long as the stream's rate is not known."""
_MOST: Final = 100
"""Streams, consumers and connections in an overview."""
_MESHED: Final = 24
"""Nodes up to which all links of the mesh are listed; beyond, those of this node and the broken ones."""
_MOST_LINKS: Final = 400
_MOST_NOTES: Final = 10
_EVENTS: Final = 30
_HEALTH: Final = ("healthy", "degraded", "unhealthy")
_STAGES: Final = ("river", "tree", "wind", "nim", "humus", "decomposer", "soil")

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node said last and before; `age` is how many seconds ago, `flow` what it told of the forest earlier."""

    latest: JsonObject
    previous: JsonObject | None
    age: float
    flow: JsonObject | None

    @property
    def name(self) -> str:
        """The node's name."""
        return self.latest["name"]

    @property
    def fresh(self) -> bool:
        """Whether the node answers."""
        return self.age < _SILENT

    def rates(self, read: Callable[[JsonObject], Mapping[Key, float]]) -> Callable[[Key], float | None]:
        """How fast the counters grow that `read` finds in an answer, a second; asked for by their keys."""
        return self._rates(read, self.previous)

    def flow_rates(self) -> Callable[[Key], float | None]:
        """The same for the forest's stages, over some seconds."""
        return self._rates(lambda said: {(one["stage"],): one["total"] for one in said["flow"]}, self.flow)

    def _rates(
        self, read: Callable[[JsonObject], Mapping[Key, float]], since: JsonObject | None
    ) -> Callable[[Key], float | None]:
        after = read(self.latest)
        before: Mapping[Key, float] = read(since) if since is not None else {}
        elapsed = self.latest["now"] - since["now"] if since is not None else 0

        def rate(key: Key) -> float | None:
            if key not in before or after[key] < before[key] or not 0 < elapsed < _LONGEST:
                return None
            return round((after[key] - before[key]) / elapsed * 1e9, 1)

        return rate


def overview(view: NodeView, own: JsonObject, answers: Sequence[Answer]) -> JsonObject:
    """The cluster as one node sees it.

    `status` is "healthy", "degraded" or "unhealthy"; `nodes` have a `state`: the node's own health, or "silent"
    (connected, no answer), "core" (connected, never answered: another kind of server) or "away". `links` are pairs of
    nodes: "up" (both ends have a route), "one way" (only one says so), "down" (neither), or "away" with one of the
    nodes; `rtt` is the slower of both ends' measurements, in nanoseconds. Lists come with a `total`; what is left out
    of them is what has least to do.
    """
    fresh = [answer for answer in answers if answer.fresh]
    streams, consumers = _streams(answers), _consumers(fresh)
    nodes = [{**node, "lag": _lag(node["name"], streams)} for node in _nodes(own, answers)]
    links = _links(own, nodes, fresh)
    problems = [*_problems(own, nodes), *_link_problems(links), *_stream_problems(streams)]
    return {
        "node": own["name"],
        "cluster": view.broker.options.cluster_name,
        "time": format_time(own["now"]),
        "status": _status(own, nodes, streams, problems),
        "problems": problems,
        "size": own["size"],
        "replication_factor": own["replication_factor"],
        "leader": own["leader"],
        "nodes": nodes,
        "links": links,
        "traffic": _traffic(fresh),
        "streams": _listed(streams, max(len(streams), sum(one.latest["streams"] for one in fresh)), _stream_weight),
        "consumers": _listed(consumers, sum(one.latest["consumers"] for one in fresh), _consumer_weight),
        "connections": _listed(_clients(fresh), sum(one.latest["connections"] for one in fresh), _client_weight),
        "flow": _flow(fresh),
        "registry": [{"node": one.name, **one.latest["registry"]} for one in sorted(fresh, key=_by_name)],
        "events": _events(answers),
    }


def _by_name(answer: Answer) -> str:
    return answer.name


def _nodes(own: JsonObject, answers: Sequence[Answer]) -> list[JsonObject]:
    known = {answer.name: answer for answer in answers}
    rtt = {route["name"]: route["rtt"] for route in own["routes"]}
    names = {*known, *own["known"], *rtt}
    return [_node(own, name, known.get(name), rtt.get(name)) for name in sorted(names)]


def _node(own: JsonObject, name: str, answer: Answer | None, rtt: int | None) -> JsonObject:
    connected = rtt is not None or name == own["name"]
    node: JsonObject = {"name": name, "state": _state(answer, connected), "leader": name == own["leader"], "rtt": rtt}
    if answer is None:
        return {**node, "answered": False}
    latest = answer.latest
    rate = answer.rates(_counters)
    kept = ("version", "uptime", "memory", "cpu", "connections", "subscriptions", "slow_consumers", "streams")
    return {
        **node,
        "answered": True,
        "heard": round(answer.age, 1),
        **{key: latest[key] for key in kept},
        "consumers": latest["consumers"],
        "in_rate": rate(("in_msgs",)),
        "out_rate": rate(("out_msgs",)),
        "loop_lag": _mean(answer, "lag"),
        "commit_time": _mean(answer, "commits"),
        "routes": sorted({route["name"] for route in latest["routes"]}),
        "problems": latest["problems"],
        "notes": _sentences(latest.get("notes")),
    }


def _sentences(value: object) -> list[str]:
    """What another node's notes are, whatever it sends."""
    items = cast("list[object]", value)[:_MOST_NOTES] if isinstance(value, list) else []
    return [item for item in items if isinstance(item, str)]


def _state(answer: Answer | None, connected: bool) -> str:
    if answer is None:
        return "core" if connected else "away"
    if answer.fresh and connected:
        said = answer.latest["health"]
        return said if said in _HEALTH else "degraded"
    return "silent" if connected else "away"


def _links(own: JsonObject, nodes: Sequence[JsonObject], fresh: Sequence[Answer]) -> list[JsonObject]:
    """Every pair of nodes of which at least one tells what it is connected to."""
    heard = {one.name: {route["name"]: route["rtt"] for route in one.latest["routes"]} for one in fresh}
    found: list[JsonObject] = []
    for one, other in combinations(nodes, 2):
        ends = one["name"], other["name"]
        said = [heard[end].get(far) for end, far in (ends, ends[::-1]) if end in heard]
        if said:
            state = _link_state(said, away="away" in (one["state"], other["state"]))
            if len(nodes) <= _MESHED or state in ("one way", "down") or own["name"] in ends:
                found.append({"nodes": list(ends), "state": state, "rtt": max(filter(None, said), default=None)})
    return found[:_MOST_LINKS]


def _link_state(said: Sequence[int | None], *, away: bool) -> str:
    """From what the ends say: the round trip of their route, or None for no route."""
    if None not in said:
        return "up"
    return "away" if away else "one way" if any(rtt is not None for rtt in said) else "down"


def _link_problems(links: Iterable[JsonObject]) -> Iterator[str]:
    for link in links:
        one, other = link["nodes"]
        if link["state"] == "down":
            yield f"no route between {one} and {other}"
        elif link["state"] == "one way":
            yield f"only one of {one} and {other} has a route to the other"


def _mean(answer: Answer, key: str) -> float | None:
    """Seconds, over what happened between the two latest answers."""
    before = answer.previous[key] if answer.previous is not None else {"seconds": 0.0, "count": 0}
    count = answer.latest[key]["count"] - before["count"]
    return (answer.latest[key]["seconds"] - before["seconds"]) / count if count > 0 else None


def _lag(name: str, streams: Iterable[JsonObject]) -> int:
    """Entries of streams that a node does not have yet, as their leaders know."""
    replicas = [one for stream in streams if stream["leading"] for one in stream["replicas"] if one["name"] == name]
    return sum(one["lag"] for one in replicas)


def _counters(said: JsonObject) -> dict[Key, float]:
    return {(key,): said[key] for key in ("in_msgs", "out_msgs", "in_bytes", "out_bytes")}


def _traffic(fresh: Sequence[Answer]) -> JsonObject:
    """The nodes together, routed messages counted on either side."""
    rates = [answer.rates(_counters) for answer in fresh]
    sums: JsonObject = {}
    for key in ("in_msgs", "out_msgs", "in_bytes", "out_bytes"):
        known = [found for rate in rates if (found := rate((key,))) is not None]
        sums[key] = round(sum(known), 1) if known else None
    return sums


def _streams(answers: Sequence[Answer]) -> list[JsonObject]:
    """Each stream once: as its leader tells it, else a replica, else as it was when its nodes were still there."""
    found: dict[Key, tuple[tuple[bool, bool, float], JsonObject]] = {}
    away = {answer.name for answer in answers if not answer.fresh}
    for answer in answers:
        rate = answer.rates(lambda said: {_key(one): one["last"] for one in said["stream_list"]})
        for stream in answer.latest["stream_list"]:
            key = _key(stream)
            worth = (answer.fresh, stream["leading"], -answer.age)
            if key not in found or worth > found[key][0]:
                told = {
                    **stream,
                    "rate": rate(key),
                    "replicas": [_judged(one, rate(key)) for one in stream["replicas"]],
                }
                found[key] = worth, {**told, "state": _stream_state(answer, told, away)}
    return [stream for _, (_, stream) in sorted(found.items())]


def _key(thing: JsonObject) -> Key:
    return thing["account"], thing["name"]


def _judged(replica: JsonObject, rate: float | None) -> JsonObject:
    """A replica that lacks no more than what is always on its way is current: else a busy stream never is.

    `rate` is the stream's, in messages a second; None when that is not known yet.
    """
    on_its_way = _FEW if rate is None else rate * _ON_ITS_WAY
    near = not replica["offline"] and 0 < replica["lag"] <= on_its_way
    return {**replica, "current": True, "lag": 0} if near else replica


def _stream_state(answer: Answer, stream: JsonObject, away: set[str]) -> str:
    if not answer.fresh:
        return "offline"
    if not stream["leading"]:
        return "leader away" if stream["leader"] in away else "no leader" if not stream["leader"] else "ok"
    if stream["lost"]:
        return "damaged"
    return "ok" if all(replica["current"] for replica in stream["replicas"]) else "behind"


def _stream_weight(stream: JsonObject) -> float:
    return (stream["state"] != "ok") * 1e12 + (stream["rate"] or 0)


def _consumers(fresh: Sequence[Answer]) -> list[JsonObject]:
    found: list[JsonObject] = []
    for answer in fresh:
        rate = answer.rates(lambda said: {_consumer_key(one): one["delivered"] for one in said["consumer_list"]})
        found += [{**one, "rate": rate(_consumer_key(one))} for one in answer.latest["consumer_list"]]
    return sorted(found, key=_consumer_key)


def _consumer_key(consumer: JsonObject) -> Key:
    return consumer["account"], consumer["stream"], consumer["name"]


def _consumer_weight(consumer: JsonObject) -> float:
    return consumer["pending"] + consumer["ack_pending"] + (consumer["rate"] or 0)


def _clients(fresh: Sequence[Answer]) -> list[JsonObject]:
    listed = [{"node": one.name, **client} for one in fresh for client in one.latest["client_list"]]
    return sorted(listed, key=lambda client: (client["node"], client["cid"]))


def _client_weight(client: JsonObject) -> float:
    return client["in_msgs"] + client["out_msgs"]


def _listed(found: list[JsonObject], total: int, weight: Callable[[JsonObject], float]) -> JsonObject:
    if len(found) > _MOST:
        least = sorted(map(weight, found), reverse=True)[_MOST - 1]
        found = [one for one in found if weight(one) >= least][:_MOST]
    return {"total": max(total, len(found)), "list": found}


def _flow(fresh: Sequence[Answer]) -> list[JsonObject]:
    """The forest's stages in order; those that nobody leads are missing, all of them where there is no forest."""
    found: dict[str, JsonObject] = {}
    for answer in fresh:
        rate = answer.flow_rates()
        for stage in answer.latest["flow"]:
            found[stage["stage"]] = {**stage, "rate": rate((stage["stage"],))}
    return [found[name] for name in _STAGES if name in found]


def _events(answers: Iterable[Answer]) -> list[JsonObject]:
    events: list[JsonObject] = [
        {"node": answer.name, **event} for answer in answers for event in answer.latest["events"]
    ]
    events.sort(key=lambda event: event["at"], reverse=True)
    return [{**event, "time": format_time(event["at"])} for event in events[:_EVENTS]]


def _problems(own: JsonObject, nodes: Iterable[JsonObject]) -> Iterator[str]:
    if own["clustered"] and not own["leader"]:
        yield "the cluster's catalogue of streams has no leader: nothing can be created or changed"
    for node in nodes:
        if node["state"] == "away":
            yield f"{node['name']} is away"
        elif node["state"] == "silent":
            yield f"{node['name']} is connected but has not answered for {node['heard']:.0f} s"
        yield from (f"{node['name']}: {problem}" for problem in node.get("problems", ()))


def _stream_problems(streams: Iterable[JsonObject]) -> Iterator[str]:
    for stream in streams:
        if stream["state"] in ("offline", "no leader", "leader away"):
            yield f"stream {stream['name']}: {stream['state']}"
        elif stream["state"] == "damaged":
            yield f"stream {stream['name']} has lost {stream['lost']} messages to damage"


def _status(
    own: JsonObject, nodes: Iterable[JsonObject], streams: Iterable[JsonObject], problems: Sequence[str]
) -> str:
    """Unhealthy is a cluster that cannot serve something; one that can, but should be looked at, is degraded."""
    stuck = any(stream["state"] in ("offline", "no leader") for stream in streams)
    if stuck or own["health"] == "unhealthy" or (own["clustered"] and not own["leader"]):
        return "unhealthy"
    if problems or any(node["state"] not in ("healthy", "core") for node in nodes):
        return "degraded"
    return "healthy"
