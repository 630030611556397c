"""Which of this machine's addresses other nodes should connect to, when nobody said.

Owns: the choice, as a pure function of what the kernel tells over netlink, and the short visit to the kernel. pyroute2
is imported only then, in a thread, with an event loop of its own: it takes 0.2 s to import and does not run on uvloop.
Where there is no netlink the answer is loopback, and says so: guessing would put an unreachable peer into the registry.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_DEPRECATED: Final = 0x20
_TENTATIVE: Final = 0x40
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str
    up: bool
    loopback: bool


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface, in the kernel's order. `usable`: neither deprecated nor tentative."""

    link: int
    family: int
    address: str
    usable: bool = True


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A route to everywhere. `source` is the address the kernel prefers on it, if it names one."""

    link: int
    family: int
    priority: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Advertised:
    """The address to advertise, and why, for the log."""

    address: str
    reason: str


def choose(links: Sequence[Link], addresses: Sequence[Address], routes: Iterable[DefaultRoute]) -> Advertised:
    """The default route's interface first (IPv4 before IPv6, lowest metric), then any other, then loopback.

    Link-local addresses never count: a peer cannot dial them without naming one of its own interfaces.
    """
    up = {link.index: link for link in links if link.up and not link.loopback}
    offered = [entry for entry in addresses if entry.link in up and entry.usable and _is_reachable(entry.address)]
    for route in sorted(routes, key=lambda route: (_FAMILIES.index(route.family), route.priority)):
        here = [entry.address for entry in offered if (entry.link, entry.family) == (route.link, route.family)]
        if here:
            chosen = route.source if route.source in here else here[0]
            return Advertised(chosen, f"default route via {up[route.link].name}")
    for family in _FAMILIES:
        for entry in offered:
            if entry.family == family:
                return Advertised(entry.address, f"no default route, address of {up[entry.link].name}")
    return Advertised("127.0.0.1", "no network but loopback: only nodes of this machine can connect")


async def find_address() -> Advertised:
    """Ask the kernel and choose. Never raises: without netlink it is loopback, with the reason."""
    try:
        return await asyncio.to_thread(lambda: choose(*_look()))
    except Exception as error:
        # Whatever pyroute2 or the kernel dislikes (no netlink in a sandbox, a missing module), a node must start.
        cause = " ".join(str(error).split())[:120] or type(error).__name__
        return Advertised("127.0.0.1", f"netlink is not available ({cause}): set the address to advertise yourself")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener at that address or name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _is_reachable(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast)


def _look() -> tuple[list[Link], list[Address], list[DefaultRoute]]:
    """The kernel's view of this network namespace. Runs in a thread."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(_ask_kernel())


async def _ask_kernel() -> tuple[list[Link], list[Address], list[DefaultRoute]]:
    from pyroute2 import AsyncIPRoute  # pyright: ignore[reportUnknownVariableType]

    route_socket: Any = AsyncIPRoute()
    async with route_socket as kernel:
        links = [
            Link(
                message["index"],
                message.get_attr("IFLA_IFNAME"),
                bool(message["flags"] & _IFF_UP),
                bool(message["flags"] & _IFF_LOOPBACK),
            )
            async for message in await kernel.get_links()
        ]
        addresses = [_address(message) async for message in await kernel.get_addr()]
        routes = [
            _route(message, family)
            for family in _FAMILIES
            async for message in await kernel.get_default_routes(family=family)
        ]
    return links, addresses, [route for route in routes if route is not None]


def _address(message: Any) -> Address:
    # On a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL, where present, is ours.
    own = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS") or ""
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    return Address(message["index"], message["family"], own, not flags & (_DEPRECATED | _TENTATIVE))


def _route(message: Any, family: int) -> DefaultRoute | None:
    hops = message.get_attr("RTA_MULTIPATH")
    link = hops[0]["oif"] if hops else message.get_attr("RTA_OIF")
    if link is None:
        return None  # "unreachable" and its like: a default route to nowhere
    return DefaultRoute(link, family, message.get_attr("RTA_PRIORITY") or 0, message.get_attr("RTA_PREFSRC") or "")
