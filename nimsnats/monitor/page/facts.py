"""`NODEZ`: what one node tells the others about itself for the status page.

Owns the shape of the answer and its bounds: however much a node holds, building the answer looks at a limited number
of streams, consumers and connections, and is done once for all who ask within half a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

from nimsnats.broker.client import ClientConnection
from nimsnats.jetstream.consumer.pull import PullSide
from nimsnats.monitor import health
from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.process import resident_bytes
from nimsnats.monitor.view import NodeView
from nimsnats.raft.transport import node_of
from nimsnats.version import __version__

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.jetstream.stream import Stream

MOST: Final = 100
"""Streams, consumers and connections in one answer."""
_SEARCHED: Final = 1000
"""Streams, consumers and connections among which the busiest are looked for; 1,000 consumers take 7 ms."""
_FRESH: Final = 0.5
"""Seconds that an answer serves again."""
_FOREST: Final = "$G"
_STAGES: Final = {
    "RIVER": ("river", "tree", "tree-"),
    "WIND": ("wind", "nim", "nim-"),
    "HUMUS": ("humus", "decomposer", "decomposer"),
    "KV_SOIL": ("soil", "", ""),
}
"""Streams of the forest: the stage that a stream is, the stage that its consumers are, and how these are called."""

EXAMPLE: Final[JsonObject] = {
    "name": "", "now": 0, "version": "", "uptime": 0, "memory": 0, "cpu": 0.0, "lag": {"seconds": 0.0, "count": 0},
    "commits": {"seconds": 0.0, "count": 0}, "health": "", "problems": [""], "clustered": False, "leader": "",
    "known": [""], "routes": [{"name": "", "rtt": 0}],
    "size": 0, "replication_factor": 0,
    "in_msgs": 0, "out_msgs": 0, "in_bytes": 0, "out_bytes": 0, "connections": 0, "subscriptions": 0,
    "slow_consumers": 0,
    "registry": {"url": "", "connected": False, "registered": False, "watch": "", "error": ""},
    "streams": 0, "stream_list": [{
        "account": "", "name": "", "leading": False, "leader": "",
        "replicas": [{"name": "", "current": False, "offline": False, "lag": 0}],
        "messages": 0, "bytes": 0, "last": 0, "consumers": 0, "lost": 0,
    }],
    "consumers": 0, "consumer_list": [{
        "account": "", "stream": "", "name": "", "pull": False, "delivered": 0, "pending": 0, "ack_pending": 0,
        "redelivered": 0, "waiting": 0,
    }],
    "client_list": [{
        "cid": 0, "name": "", "address": "", "account": "", "language": "", "subs": 0, "in_msgs": 0, "out_msgs": 0,
        "pending": 0, "rtt": 0, "uptime": 0,
    }],
    "flow": [{"stage": "", "total": 0, "waiting": 0, "kept": 0}],
    "events": [{"at": 0, "level": "", "text": ""}],
}  # fmt: skip
"""An answer by example: what `fits` compares with. Times are nanoseconds, sizes bytes; `lag` and `commits` are
seconds in all and how often. `kept` is what a stage's stream holds, or how many consumers it has.
`streams` and `consumers` count those that this node leads. `notes`, a list of sentences, older nodes do not have."""


def nodez(view: NodeView) -> JsonObject:
    """This node's answer; not to be changed by who gets it."""
    now = view.broker.runtime.monotonic()
    if view.facts is None or now - view.facts[0] >= _FRESH:
        view.facts = (now, _built(view))
    return view.facts[1]


def fits(value: Any, example: Any) -> bool:
    """Whether an answer has everything that `example` has, in the same types."""
    if isinstance(example, dict):
        if not isinstance(value, dict):
            return False
        given, wanted = cast("JsonObject", value), cast("JsonObject", example)
        return all(key in given and fits(given[key], kind) for key, kind in wanted.items())
    if isinstance(example, list):
        kinds = cast("list[Any]", example)
        return isinstance(value, list) and all(fits(item, kinds[0]) for item in cast("list[Any]", value))
    if isinstance(example, float):
        return isinstance(value, int | float)
    return isinstance(value, type(example))


def _built(view: NodeView) -> JsonObject:
    broker, stats = view.broker, view.broker.stats
    state = health.overall(view)
    seen, status = view.cluster(), view.registry()
    return {
        "name": broker.server_name,
        "now": view.now_ns(),
        "version": __version__,
        "uptime": view.now_ns() - view.started_ns,
        "memory": resident_bytes(),
        "cpu": view.cpu.percent(),
        "lag": {"seconds": view.lag.seconds.sum, "count": view.lag.seconds.count},
        "commits": {"seconds": view.commits.seconds.sum, "count": view.commits.seconds.count},
        "health": state["status"],
        "problems": state.get("problems", []),
        "notes": view.told(),
        "size": seen.size,
        "replication_factor": seen.replication_factor,
        "known": _known(view),
        "routes": _routes(view),
        "in_msgs": stats.in_msgs,
        "out_msgs": stats.out_msgs,
        "in_bytes": stats.in_bytes,
        "out_bytes": stats.out_bytes,
        "connections": len(broker.clients),
        "subscriptions": view.subscriptions(),
        "slow_consumers": stats.slow_consumers,
        "registry": {
            "url": status.url if status else "",
            "connected": status is not None and status.connected,
            "registered": status is not None and status.registered,
            "watch": status.watch if status else "",
            "error": status.last_error if status and not status.connected else "",
        },
        "client_list": _clients(view),
        "events": view.journal.lines(),
        **_jetstream(view.jetstream),
    }


def _known(view: NodeView) -> list[str]:
    """Nodes that belong to the cluster as far as this one can tell, this one included."""
    names = {view.broker.server_name, *view.cluster().peers}
    if view.cluster_page is not None:
        names.update(node["name"] for node in view.cluster_page()["cluster"]["nodes"])
    cluster = view.jetstream.cluster if view.jetstream is not None else None
    if cluster is not None and cluster.several:
        names.update(map(node_of, cluster.nodes))
    return sorted(names)


def _routes(view: NodeView) -> list[JsonObject]:
    table = view.broker.routes
    routes = table.routes.values() if table is not None else ()
    return [
        {"name": route.peer.server_name, "rtt": round(route.rtt * 1e9)} for route in routes if route.peer is not None
    ]


def _jetstream(jetstream: JetStream | None) -> JsonObject:
    if jetstream is None:
        nothing: JsonObject = {
            "clustered": False,
            "leader": "",
            "streams": 0,
            "stream_list": [],
            "consumers": 0,
            "consumer_list": [],
        }
        return {**nothing, "flow": []}
    held = [(name, stream) for name, account in jetstream.accounts.items() for stream in account]
    led = [(name, stream) for name, stream in held if stream.leading]
    searched = sorted(islice(held, _SEARCHED), key=lambda one: (not one[1].leading, -one[1].store.last_time))
    consumers = sorted(islice(_consumers(led), _SEARCHED), key=_urgency, reverse=True)
    cluster = jetstream.cluster
    return {
        "clustered": cluster is not None and cluster.several,
        "leader": jetstream.meta.group.leader or "",
        "streams": len(led),
        "stream_list": [_stream(jetstream, name, stream) for name, stream in searched[:MOST]],
        "consumers": sum(len(stream.consumers) for _, stream in led),
        "consumer_list": consumers[:MOST],
        "flow": _flow(led),
    }


def _stream(jetstream: JetStream, account: str, stream: Stream) -> JsonObject:
    group, store = stream.group, stream.store
    return {
        "account": account,
        "name": stream.name,
        "leading": stream.leading,
        "leader": group.leader or "",
        "replicas": [{"offline": False, "lag": 0, **one} for one in jetstream.peers.replicas(group)],
        "messages": store.messages,
        "bytes": store.bytes,
        "last": store.last_seq,
        "consumers": len(stream.consumers),
        "lost": len(store.lost),
    }


def _consumers(led: list[tuple[str, Stream]]) -> Iterator[JsonObject]:
    for account, stream in led:
        for name in stream.consumers.names():
            consumer = stream.consumers.get(name)
            if consumer is not None:
                yield {"account": account, "stream": stream.name, "name": name, **_progress(consumer)}


def _progress(consumer: Consumer) -> JsonObject:
    delivery, side = consumer.delivery, consumer.side
    pull = isinstance(side, PullSide)
    return {
        "pull": pull,
        "delivered": consumer.position()[0],
        "pending": consumer.num_pending(),
        "ack_pending": delivery.outstanding if delivery is not None else 0,
        "redelivered": len(delivery.attempts) if delivery is not None else 0,
        "waiting": side.count() if isinstance(side, PullSide) else 0,
    }


def _urgency(consumer: JsonObject) -> tuple[int, int]:
    return consumer["pending"] + consumer["ack_pending"], consumer["delivered"]


def _flow(led: list[tuple[str, Stream]]) -> list[JsonObject]:
    """What went through the forest's stages that are led here, and what waits before them."""
    flow: list[JsonObject] = []
    for account, stream in led:
        if account != _FOREST or stream.name not in _STAGES:
            continue
        stage, workers, prefix = _STAGES[stream.name]
        waiting = stream.store.messages if stage == "river" else 0
        kept = stream.store.messages
        flow.append({"stage": stage, "total": stream.store.last_seq, "waiting": waiting, "kept": kept})
        if workers:
            flow.append({"stage": workers, **_handled(stream, prefix)})
    return flow


def _handled(stream: Stream, prefix: str) -> JsonObject:
    found = [stream.consumers.get(name) for name in stream.consumers.names() if name.startswith(prefix)]
    progress = [_progress(consumer) for consumer in found if consumer is not None]
    return {
        "total": sum(max(0, one["delivered"] - one["ack_pending"]) for one in progress),
        "waiting": sum(one["pending"] + one["ack_pending"] for one in progress),
        "kept": len(progress),
    }


def _clients(view: NodeView) -> list[JsonObject]:
    now = view.now_ns()
    open_now = list(islice(view.broker.clients.values(), _SEARCHED))
    open_now.sort(key=lambda client: client.in_msgs + client.out_msgs, reverse=True)
    return [_client(client, now) for client in open_now[:MOST]]


def _client(client: ClientConnection, now: int) -> JsonObject:
    options = client.options
    address = f"[{client.ip}]:{client.port}" if ":" in client.ip else f"{client.ip}:{client.port}"
    return {
        "cid": client.cid,
        "name": options.name or "",
        "address": address,
        "account": client.account.name,
        "language": f"{options.lang or ''} {options.version or ''}".strip(),
        "subs": len(client.subs),
        "in_msgs": client.in_msgs,
        "out_msgs": client.out_msgs,
        "pending": client.pending,
        "rtt": round(client.rtt * 1e9),
        "uptime": now - client.start_ns,
    }
