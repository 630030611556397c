"""nats-server's monitoring endpoints: fields, types, order and errors, compared with the Go server."""

from __future__ import annotations

import pytest

from tests.monitor.sides import Side, differences, gone, keys_in_order, shape, traffic

_PATHS = (
    "/varz",
    "/connz",
    "/connz?subs=1",
    "/connz?subs=detail&auth=1",
    "/connz?state=closed",
    "/connz?state=any&subs=detail&sort=start",
    "/connz?acc=none",
    "/connz?cid=999999",
    "/subsz",
    "/subsz?subs=1&test=orders.new",
    "/accountz",
    "/accountz?acc=$G",
    "/accountz?acc=$SYS",
    "/accstatz?unused=1",
    "/jsz",
    "/healthz",
    "/routez",
    "/gatewayz",
    "/leafz",
    "/ipqueuesz",
)
_DIFFERENT = {
    "/varz": [
        "-feature_flags",  # options of the Go implementation
        "-git_commit",
    ],
    "/accountz?acc=$G": ["-account_detail.imports"],  # system services are plain subscriptions here
    "/accountz?acc=$SYS": ["-account_detail.exports", "-account_detail.imports"],
}


@pytest.mark.parametrize("path", _PATHS)
async def test_shape_is_the_oracles(path: str, theirs: Side, ours: Side) -> None:
    clients = [await traffic(side) for side in (theirs, ours)]
    answers = [await side.ask(path) for side in (theirs, ours)]
    expected, answer = answers
    assert answer.status == expected.status
    assert answer.headers["Content-Type"] == expected.headers["Content-Type"]
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    found = differences(shape(expected.json), shape(answer.json))
    allowed = _DIFFERENT.get(path, [])
    asked_before = "-http_req_stats./"  # the oracle's are those of all tests so far, in whatever order
    assert [line for line in found if line not in allowed and not line.startswith(asked_before)] == []
    both = keys_in_order(answer.json)
    assert [key for key in keys_in_order(expected.json) if key in both] == both
    for client, side in zip(clients, (theirs, ours), strict=True):
        await client.close()
        await gone(side)
