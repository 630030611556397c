"""Query parameters: the same answer or the same complaint as the Go server's."""

from __future__ import annotations

import pytest

from tests.monitor.sides import Side, gone, traffic

_COMPLAINTS = (
    "/connz?limit=abc",
    "/connz?limit=1_0",
    "/connz?limit=99999999999999999999",
    "/connz?cid=abc",
    "/connz?cid=-1",
    "/connz?subs=yes",
    "/connz?auth=2",
    "/connz?state=zz",
    "/connz?sort=zzz",
    "/connz?sort=stop",
    "/connz?sort=reason&state=any",
    "/subsz?test=foo.*",
    "/subsz?offset=1.5",
    "/accountz?acc=none",
    "/jsz?limit=x",
    "/jsz?raft=x",
    "/leafz?subs=q",
    "/gatewayz?accs=x",
    "/accstatz?unused=x",
    "/healthz?js-enabled-only=x",
    "/healthz?stream=S",
    "/healthz?consumer=C",
    "/healthz?stream=S&details=1",
    "/raftz",
    "/nope",
    "/varz/",
)


@pytest.mark.parametrize("path", _COMPLAINTS)
async def test_complaint_is_the_oracles(path: str, theirs: Side, ours: Side) -> None:
    expected, answer = [await side.ask(path) for side in (theirs, ours)]
    assert (answer.status, answer.text) == (expected.status, expected.text)
    assert answer.headers["Content-Type"] == expected.headers["Content-Type"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
async def test_any_method_is_answered_like_get(method: str, theirs: Side, ours: Side) -> None:
    expected, answer = [await side.ask("/healthz", method) for side in (theirs, ours)]
    assert (answer.status, answer.text) == (expected.status, expected.text) == (200, answer.text)
    assert answer.headers["Content-Length"] == expected.headers["Content-Length"]
    assert "Server" not in answer.headers


async def test_paging_sorting_and_filters_of_connections(theirs: Side, ours: Side) -> None:
    for side in (theirs, ours):
        one, other = await traffic(side), await traffic(side)
        everything = await side.get("/connz")
        assert everything["num_connections"] == everything["total"] == 2
        cids = [connection["cid"] for connection in everything["connections"]]
        assert cids == sorted(cids)
        page = await side.get("/connz?limit=1&offset=1")
        assert (page["num_connections"], page["total"], page["limit"], page["offset"]) == (1, 2, 1, 1)
        assert page["connections"][0]["cid"] == cids[1]
        for key, order in (("start", cids), ("uptime", cids[::-1])):
            listed = (await side.get(f"/connz?sort={key}"))["connections"]
            assert [connection["cid"] for connection in listed] == order, (side.name, key)
        chosen = await side.get(f"/connz?cid={cids[0]}&subs=1")
        assert chosen["limit"] == 1
        assert sorted(chosen["connections"][0]["subscriptions_list"]) == ["orders.*", "orders.>"]
        closed = await side.get("/connz?state=closed&sort=stop")
        assert {connection["reason"] for connection in closed["connections"]} == {"Client Closed"}
        assert (await side.get("/connz?user=nobody"))["connections"] == []
        assert (await side.get("/connz?acc=$G"))["num_connections"] == 2
        await one.close()
        await other.close()
        await gone(side)


async def test_traffic_is_counted_as_by_the_oracle(theirs: Side, ours: Side) -> None:
    counted = []
    for side in (theirs, ours):
        before = await side.get("/varz")
        client = await traffic(side)
        after = await side.get("/varz")
        fields = ("in_msgs", "in_bytes", "out_msgs", "out_bytes", "total_connections", "connections")
        counted.append({field: after[field] - before[field] for field in fields})
        await client.close()
        await gone(side)
    assert counted[0] == counted[1]
    assert counted[1]["out_msgs"] == 2
    assert counted[1]["in_bytes"] == 5


async def test_requests_are_counted_by_path(ours: Side) -> None:
    await ours.get("/connz")
    await ours.get("/connz?limit=1")
    assert (await ours.get("/varz"))["http_req_stats"] == {"/connz": 2, "/varz": 1}


async def test_index_links_to_the_endpoints(ours: Side) -> None:
    page = await ours.ask("/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert 'href="./varz"' in page.text
