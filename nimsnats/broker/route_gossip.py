"""Who tells whom about whom: how a full mesh grows out of one known address.

Owns the passing on of a newcomer's INFO and the reaction to one that was passed on. A newcomer is announced to the
routes that exist already; these dial it, so that it never has to be told of them. `gossip_mode` keeps announcements
from going in circles between servers that know each other by configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nimsnats.broker.route_dial import parse_route
from nimsnats.protocol.route_info import AUTH, RouteInfo, encode_info

if TYPE_CHECKING:
    from nimsnats.broker.route import RouteConnection
    from nimsnats.broker.route_table import RouteTable

_QUIET: Final = 1
_LOUD: Final = 2


def address_of(route: RouteConnection) -> tuple[str, int] | None:
    """Where others can dial a peer: what it says, else where it comes from; None when it listens nowhere."""
    info = route.peer
    assert info is not None
    if info.ip:
        try:
            host, port, _, _ = parse_route(info.ip)
        except ValueError:
            return None
        return host, port
    return (route.ip, info.port) if 0 < info.port < 65536 else None


def forward(newcomer: RouteConnection, routes: list[RouteConnection]) -> None:
    """Tell the existing routes of a newcomer."""
    info, dial = newcomer.peer, newcomer.dial
    assert info is not None
    if (info.gossip_mode == _QUIET) if dial is None else not (dial.explicit or dial.gossip_mode == _LOUD):
        return
    found = address_of(newcomer)
    if found is None:
        return
    host = f"[{found[0]}]" if ":" in found[0] else found[0]
    fields = {key: value for key, value in info.raw.items() if key not in ("nonce", AUTH)}
    fields["ip"] = f"nats-route://{host}:{found[1]}/"
    for route in routes:
        if dial is None:
            mode = _LOUD if route.dial is not None and route.dial.explicit else _QUIET
        else:
            mode = _LOUD if dial.explicit else 0
        route.send(encode_info({**fields, "gossip_mode": mode}))


def follow(table: RouteTable, teller: RouteConnection, info: RouteInfo) -> None:
    """A peer has told of a newcomer: dial it, unless it is known."""
    if info.server_id in (table.broker.server_id, "") or info.server_id in table.routes:
        return
    try:
        host, port, _, _ = parse_route(info.ip)
    except ValueError as error:
        table.complain(teller, f"told of a server without an address: {error}")
        return
    table.dial_implicit(host, port, info.gossip_mode)
