"""The status page as browsers and programs get it: HTML, files, events, and the cluster seen from each node."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import aiohttp
import nats
import pytest

from nimsnats.monitor.healthz import healthz
from nimsnats.monitor.page import collect, merge
from nimsnats.monitor.page.facts import EXAMPLE, fits, nodez
from nimsnats.monitor.page.live import MOST_PER_SOURCE, MOST_VIEWERS
from nimsnats.monitor.server import MonitorServer
from nimsnats.monitor.view import NodeView
from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.jetstream.trio import TrioNode
from tests.monitor.sides import Side

BROWSER = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
EVIL = "</td><script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """What a reader without a script finds: the tags with their attributes, and the text outside of templates."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside += tag == "template"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag == "template"

    def handle_data(self, data: str) -> None:
        if not self._inside and data.strip():
            self.words.append(data.strip())


async def events(url: str, many: int) -> list[dict[str, Any]]:
    """The first events that a browser gets."""
    found: list[dict[str, Any]] = []
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        async for line in answer.content:
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
                if len(found) == many:
                    break
    return found


async def test_a_browser_gets_a_page_that_is_whole_without_a_script(ours: Side) -> None:
    client = await nats.connect(ours.url, name=EVIL)
    logging.getLogger("nimsnats").warning("Odd name: %s", EVIL)
    answer = await ours.ask("/", **BROWSER)
    await client.close()
    page = Page(answer.text)
    assert "This node stands alone." in page.words
    assert page.words.count(EVIL) == 1  # as text: in the table of connections
    assert f"Odd name: {EVIL}" in page.words
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [script["src"] for script in scripts] == ["./-/status.js"]
    assert all(not name.startswith("on") and name != "style" for _, given in page.tags for name in given)
    links = [given["href"] for tag, given in page.tags if tag == "a"]
    assert {"./varz", "./connz", "./jsz", "./healthz", "./raftz", "./metrics", "./statusz"} <= set(links)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


async def test_a_tool_gets_the_plain_list_of_endpoints(ours: Side) -> None:
    answer = await ours.ask("/", Accept="*/*")
    assert 'href="./varz"' in answer.text
    assert "<script" not in answer.text


async def test_files_are_served_once_and_then_only_confirmed(ours: Side) -> None:
    for name, kind in (("status.css", "text/css"), ("status.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        first = await ours.ask(f"/-/{name}")
        assert (first.status, first.headers["Content-Type"].partition(";")[0]) == (200, kind)
        (tag,) = (value for key, value in first.headers.items() if key.lower() == "etag")
        again = await ours.ask(f"/-/{name}", **{"If-None-Match": tag})
        assert (again.status, again.text) == (304, "")


async def test_events_move_with_what_happens(ours: Side, view: NodeView) -> None:
    client = await nats.connect(ours.url, name="app")

    async def publish() -> None:
        while True:
            await client.publish("orders", b"x")
            await asyncio.sleep(0.05)

    work = asyncio.create_task(publish())
    first, second = await events(f"http://127.0.0.1:{ours.http_port}/-/events", 2)
    work.cancel()
    await client.close()
    assert first["raw"]["in"] is None, "one answer makes no rate"
    assert second["raw"]["in"] > 1
    assert [row[2][0] for row in second["lists"]["connections"]] == [["app", ""]]


@pytest.mark.errors_inside
async def test_a_failure_costs_one_event_and_is_logged(
    ours: Side, view: NodeView, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([ZeroDivisionError("a bug")] * 2)  # when others ask this node, and when it builds its own page

    def problems() -> list[str]:
        for failure in failures:
            raise failure
        return []

    view.problems = problems
    (event,) = await events(f"http://127.0.0.1:{ours.http_port}/-/events", 1)
    assert event["facts"]["status"] == ["healthy", "ok"]
    assert "The status page cannot be made" in caplog.text


async def test_only_so_many_may_look_and_stopping_sends_them_away(ours: Side, http: MonitorServer) -> None:
    url = f"http://127.0.0.1:{ours.http_port}/-/events"
    async with AsyncExitStack() as stack:
        sources: list[aiohttp.ClientSession] = []
        for number in range(MOST_VIEWERS // MOST_PER_SOURCE + 1):
            connector = aiohttp.TCPConnector(limit=0, local_addr=(f"127.0.0.{2 + number}", 0))
            sources.append(await stack.enter_async_context(aiohttp.ClientSession(connector=connector)))
        *looking_from, last = sources
        looking = [await source.get(url) for source in looking_from for _ in range(MOST_PER_SOURCE)]
        assert len(looking) == MOST_VIEWERS
        refused = await last.get(url)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        for answer in looking:
            assert (await answer.content.readline()).startswith(b"retry:")
        stopping = asyncio.create_task(http.stop())
        await asyncio.gather(*(answer.content.read() for answer in looking), return_exceptions=True)
        await stopping
        for answer in looking:
            answer.close()


def test_an_answer_that_lacks_something_does_not_fit() -> None:
    assert fits(EXAMPLE, EXAMPLE)
    assert not fits({**EXAMPLE, "cpu": "much"}, EXAMPLE)
    assert not fits({**EXAMPLE, "stream_list": [{"name": "S"}]}, EXAMPLE)
    assert not fits({key: value for key, value in EXAMPLE.items() if key != "flow"}, EXAMPLE)
    assert not fits([], EXAMPLE)


async def test_what_a_node_says_fits_and_is_built_once_for_all(view: NodeView) -> None:
    said = nodez(view)
    assert fits(json.loads(json.dumps(said)), EXAMPLE)
    assert nodez(view) is said


@pytest.mark.parametrize(("stored", "lag", "state"), [
    (100, 200, "ok"), (100, 201, "behind"), (0, 1, "behind"), (None, 50, "ok"), (None, 51, "behind"),
])  # fmt: skip
async def test_a_replica_that_lacks_only_what_is_on_its_way_is_current(
    view: NodeView, stored: int | None, lag: int, state: str
) -> None:
    replica = {"name": "n2", "current": False, "offline": False, "lag": lag}
    stream = {**EXAMPLE["stream_list"][0], "name": "S", "leading": True, "last": 1000, "replicas": [replica]}
    now = {**EXAMPLE, "name": "n1", "now": 10**9, "stream_list": [stream]}
    before = {**now, "now": 0, "stream_list": [{**stream, "last": 1000 - (stored or 0)}]}
    answer = merge.Answer(now, None if stored is None else before, 0, None)
    found = merge.overview(view, now, [answer])
    assert [one["state"] for one in found["streams"]["list"]] == [state]


async def overview(node: TrioNode) -> dict[str, Any]:
    found: dict[str, Any] = await node.get("/statusz")
    return found


async def until_seen(node: TrioNode, wanted: Any) -> dict[str, Any]:
    """Look until `wanted` holds of what is seen; nearly once a second there is something new."""
    while not wanted(found := await overview(node)):  # noqa: ASYNC110 - the page tells it to who asks
        await asyncio.sleep(0.1)
    return found


async def test_any_node_shows_the_whole_cluster_and_who_is_away(tmp_path: Path) -> None:
    hub = MemoryHub(Runtime.real())
    first, second = (TrioNode(tmp_path, name, hub) for name in ("n1", "n2"))
    async with first, second:
        client = await nats.connect(second.url, name="worker")
        js = client.jetstream()
        await until_seen(first, lambda seen: len(seen["nodes"]) == 2 and seen["status"] == "healthy")
        await js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=2)
        await js.publish("orders.1", b"x")
        await js.pull_subscribe("orders.>", "billing")
        for node in (first, second):
            seen = await until_seen(node, lambda seen: seen["consumers"]["list"] and seen["connections"]["list"])
            assert [(one["name"], one["state"]) for one in seen["nodes"]] == [("n1", "healthy"), ("n2", "healthy")]
            (stream,) = seen["streams"]["list"]
            assert (stream["name"], stream["messages"], len(stream["replicas"])) == ("ORDERS", 1, 1)
            assert [(one["name"], one["pending"]) for one in seen["consumers"]["list"]] == [("billing", 1)]
            assert ("n2", "worker") in [(one["node"], one["name"]) for one in seen["connections"]["list"]]
            assert [(one["node"], one["connected"]) for one in seen["registry"]] == [("n1", True), ("n2", True)]
        await client.close()
        await second.kill()
        seen = await until_seen(first, lambda seen: seen["nodes"][1]["state"] == "away")
        assert seen["nodes"][0]["name"] == "n1"
        assert seen["status"] != "healthy"
        assert "n2 is away" in seen["problems"]
        assert [one["name"] for one in seen["streams"]["list"]] == ["ORDERS"]
        await first.kill()  # there is nobody to take leave of


async def test_who_was_not_asked_for_long_is_waited_for_and_who_left_in_order_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = MemoryHub(Runtime.real())
    first, second = (TrioNode(tmp_path, name, hub) for name in ("n1", "n2"))
    async with first:
        async with second:
            await until_seen(first, lambda seen: len(seen["nodes"]) == 2 and seen["status"] == "healthy")
            monkeypatch.setattr(collect, "_PERIOD", 0.01)
            monkeypatch.setattr(collect, "_PATIENCE", 20.0)
            monkeypatch.setattr(merge, "_SILENT", 0.05)
            await asyncio.sleep(0.1)  # nobody looks
            assert [one["state"] for one in (await overview(first))["nodes"]] == ["healthy", "healthy"]
        seen = await until_seen(first, lambda seen: len(seen["nodes"]) == 1)
        assert (seen["status"], seen["problems"]) == ("healthy", [])


async def test_a_node_that_returns_is_sound_only_when_it_has_its_copies_again(tmp_path: Path) -> None:
    hub, many = MemoryHub(Runtime.real()), 400
    first, second = (TrioNode(tmp_path, name, hub) for name in ("n1", "n2"))
    async with first:
        async with second:
            client = await nats.connect(first.url)
            js = client.jetstream()
            await js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=2)
            await until(lambda: sound(second))
        for _ in range(many):
            await js.publish("orders.1", b"x")
        returning = asyncio.create_task(second.start())
        while not sound(second):  # noqa: ASYNC110 - in every turn of the loop
            await asyncio.sleep(0)
        served = second.served("ORDERS")
        assert served is not None and served.stream.store.last_seq == many
        await returning
        await second.stop()
        await client.close()


def sound(node: TrioNode) -> bool:
    """What `/healthz` says."""
    view = node.server.view
    return view is not None and view.cluster_page is not None and healthz(view)["status_code"] == 200
