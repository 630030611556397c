"""The routes of one broker: the listener on the cluster port, who is dialled, who is connected.

Owns registration (one route a peer), the checks that decide about it, and what follows from it: interest for the
newcomer, gossip, client URLs, the news for the cluster manager (`RouteTable` is a `nimsnats.cluster.routes.Routes`).
What is said on a connection is in `route`, dialling in `route_dial`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import platform
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, cast

from nimsnats.broker.reasons import Reason
from nimsnats.broker.route import RouteConnection, Stage
from nimsnats.broker.route_account import AccountRouting
from nimsnats.broker.route_brake import RouteBrakes
from nimsnats.broker.route_dial import Solicitation, parse_route
from nimsnats.broker.route_gossip import address_of, follow, forward
from nimsnats.broker.route_groups import OwnGroups, tell
from nimsnats.broker.route_proof import Name, Nonces, RouteProof
from nimsnats.broker.route_strangers import Strangers
from nimsnats.broker.server import Broker, ListenError
from nimsnats.broker.stats import BrokerStats
from nimsnats.broker.tls import TlsContexts, TlsOptions
from nimsnats.broker.trace import quoted
from nimsnats.broker.wheel import Wheel
from nimsnats.protocol.route_info import AUTH, PROTOCOL, TAGS_GROUPS, RouteInfo, encode_info
from nimsnats.version import NATS_VERSION

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.plan import Lane
    from nimsnats.broker.route_options import RouteOptions
    from nimsnats.protocol.parser import Line

Watcher = Callable[[str, str, bool], None]

_CLOSE_PATIENCE: Final = 1.0
"""Seconds that a stopping table waits for its last words to reach the peers."""
_NAME: Final = re.compile(r"[!-~\w]{1,256}")
_WILDCARD: Final = ("", "0.0.0.0", "::")
_COMPLAINTS_KEPT: Final = 1024
"""Addresses whose faults are remembered."""
_COMPLAINTS_EACH: Final = 16
_COMPLAINT: Final = 400
"""Characters of one: it may quote what a stranger has said."""
_DIALS_BY_GOSSIP: Final = 256
"""Addresses at most that peers can make us dial at one time."""


class RouteTable:
    """All connections to other servers. Made after its broker, started after it and stopped before it."""

    def __init__(self, broker: Broker, options: RouteOptions) -> None:
        self.broker = broker
        self.options = options
        self.port = 0
        self.routes: dict[str, RouteConnection] = {}
        """Registered ones, by server id."""
        self.open: dict[RouteConnection, None] = {}
        """Every connection that is not closed."""
        self.routings: dict[bytes, AccountRouting] = {}
        self.groups = OwnGroups(broker, options.secret, broker.runtime.random)
        self.lines: dict[bytes, Line[Lane]] = {}
        """Known control lines of all routes to members; see `protocol.parser.Commands.lines`."""
        self.core_lines: dict[bytes, Line[Lane]] = {}
        """Those of the other routes, for which fewer lines mean something."""
        self.tls = None if options.tls is None else TlsContexts.between_servers(options.tls)
        """What every connection begins with; StartError of the constructor says what is wrong with the files."""
        self.timers: Wheel[RouteConnection] = Wheel(broker.runtime, RouteConnection.timer)
        self.brakes = RouteBrakes(broker)
        self._past = BrokerStats()
        self._dials: dict[str, Solicitation] = {}
        self._watchers: list[Watcher] = []
        self.refused = 0
        """What peers said or were that was not accepted."""
        self._told: dict[str, set[str]] = {}
        self._nonces = Nonces()
        self._strangers = Strangers()
        self._server: asyncio.Server | None = None
        self._stopping = False

    # -- life cycle ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for peers and dial the configured ones. Raises ListenError."""
        options, broker = self.options, self.broker
        for account in broker.accounts.values():
            self.adopt(account)
        broker.routes = self
        self.brakes.listen()
        try:
            self._server = await broker.runtime.loop.create_server(
                lambda: RouteConnection(self), options.host or None, max(options.port, 0)
            )
        except OSError as error:
            reason = error.strerror or str(error)
            where = f"{options.host or '*'}:{options.port}"
            raise ListenError(error.errno, f"cannot listen for routes on {where}: {reason}") from error
        self.port = self._server.sockets[0].getsockname()[1]
        broker.log.info("Listening for route connections on %s:%d", options.host, self.port)
        self._tell_urls()
        for url in options.routes:
            host, port, user, password = parse_route(url)
            self._dial(Solicitation(self, host, port, user=user, password=password, explicit=True))

    async def stop(self) -> None:
        """Hang up and dial no more; returns when the peers have been told or after a second. Idempotent."""
        self._stopping = True
        self.brakes.close()
        if self._server is not None:
            self._server.close()
            self._server = None
        for dial in list(self._dials.values()):
            await dial.stop()
        connections = list(self.open)
        for connection in connections:
            connection.close(Reason.SERVER_SHUTDOWN)
        deadline = self.broker.runtime.monotonic() + _CLOSE_PATIENCE
        while any(connection.transport is not None for connection in connections):
            if self.broker.runtime.monotonic() > deadline:
                for connection in connections:
                    if connection.transport is not None:
                        connection.transport.abort()
                break
            await self.broker.runtime.sleep(0.005)
        self.timers.close()
        for routing in self.routings.values():
            routing.account.routing = None
        self.broker.routes = None

    def lame_duck(self) -> None:
        """Tell the peers that clients should not be sent here any more."""
        for route in self.routes.values():
            route.send(self.info_line(route))

    def adopt(self, account: Account) -> None:
        """An account exists: it takes part in routing, with what peers have said of it already."""
        routing = AccountRouting(account, self.groups, self._tell, (self.lines, self.core_lines))
        self.routings[routing.name] = account.routing = routing
        for route in self.routes.values():
            route.send(b"".join(routing.everything(member=route.member)))
            route.adopt(routing.name)

    # -- what the cluster asks for (nimsnats.cluster.routes.Routes) -----------------------------------------------

    def add_route(self, address: str) -> None:
        """Connect to `host:port` and keep trying, with back-off. Idempotent.

        Raises ValueError, also for user and password in an address: whoever can write into a registry would otherwise
        say what the server there has to know.
        """
        host, port, user, password = parse_route(address)
        if user or password:
            raise ValueError(f"an address that others have told us of has no password: {host}:{port}")
        self._dial(Solicitation(self, host, port, user="", password="", explicit=True))

    def renew_tls(self, options: TlsOptions) -> None:
        """Use these files from the next handshake on. Raises StartError, and changes nothing, when they are no use."""
        self.tls = TlsContexts.between_servers(options)
        self.options.tls = options

    def remove_route(self, address: str) -> None:
        """Stop trying; a connection that is up stays until it ends. Harmless for an unknown address."""
        host, port, _, _ = parse_route(address)
        dial = self._dials.pop(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", None)
        if dial is not None:
            dial.withdraw()

    def connected(self) -> dict[str, str]:
        """Peers of our kind whose route is up: name -> address."""
        return {
            route.peer.server_name: self._address(route)
            for route in self.routes.values()
            if route.peer is not None and route.peer.node is not None
        }

    def tags(self, name: str) -> list[str] | None:
        """The tags of a connected peer of our kind; None when there is none of this name."""
        told = self._told_by(name)
        return None if told is None else [tag for tag in told.get("tags", "").split(",") if tag]

    def instance(self, name: str) -> str:
        """The data directory behind a connected peer of our kind, "" where it is not known."""
        return (self._told_by(name) or {}).get("instance", "")

    def _told_by(self, name: str) -> dict[str, str] | None:
        for route in self.routes.values():
            if route.peer is not None and route.peer.node is not None and route.peer.server_name == name:
                return route.peer.node
        return None

    def watch(self, listener: Watcher) -> Callable[[], None]:
        """Call `listener(name, address, up)` for peers of our kind that come and go; returns what ends that."""
        self._watchers.append(listener)

        def unwatch() -> None:
            if listener in self._watchers:
                self._watchers.remove(listener)

        return unwatch

    def belong_to(self, cluster: str) -> None:
        """Our JetStream is part of the cluster with that id; see `route_groups`."""
        self.groups.belong_to(cluster, list(self.routes.values()), self.routings.values())

    # -- what connections ask for -------------------------------------------------------------------------------

    def opened(self, route: RouteConnection) -> None:
        """A connection exists."""
        if self._stopping:
            route.close(Reason.SERVER_SHUTDOWN)
            return
        self.open[route] = None
        leaving = self._strangers.admit(route) if route.dial is None else None
        if leaving is not None:
            self.complain(leaving, "too many connections wait for introductions, the one that has waited longest ends")
            leaving.close(Reason.MAX_CONNECTIONS)

    def admits(self, user: str, password: str) -> bool:
        """Whether these credentials open the cluster port."""
        options = self.options
        if not options.auth_required:
            return True
        named = hmac.compare_digest(user.encode("utf-8", "replace"), options.user.encode())
        return hmac.compare_digest(password.encode("utf-8", "replace"), options.password.encode()) and named

    def new_proof(self, secret: str) -> RouteProof:
        """What a new connection proves, and asks to be proven."""
        return RouteProof(secret, self.own_name, self._nonces, self.broker.runtime.random)

    @property
    def own_name(self) -> Name:
        """Who we are, in proofs."""
        options, broker = self.options, self.broker
        return options.name, broker.server_id, broker.server_name, options.node.get("instance", "")

    def is_own_nonce(self, text: str) -> bool:
        """Whether one of our own connections has drawn it: then it is this server that has been dialled."""
        return any(route.proof is not None and route.proof.nonce == text for route in self.open)

    def belongs(self, route: RouteConnection, info: RouteInfo) -> bool:
        """Check what an introduction says; the connection is closed if that is no server of this cluster."""
        name = self.options.name
        if not info.server_id or (route.dial is not None and "client_id" in info.raw):
            route.refuse("attempted to connect to route port", Reason.WRONG_PORT, "this is not a cluster port")
        elif info.cluster not in ("", name):
            self.complain(route, f'cluster name "{info.cluster}" does not match "{name}"')
            route.close(Reason.WRONG_CLUSTER)
        elif info.route_account:
            text = f'Not possible to have a dedicated route for account "{info.route_account}" between those servers'
            route.send(f"-ERR '{text}'\r\n".encode("utf-8", "replace"))
            route.close(Reason.DUPLICATE_ROUTE)
        elif info.node is not None and not _NAME.fullmatch(info.server_name):
            self.complain(route, f"{quoted(info.server_name)} is no name for a node")
            route.close(Reason.PROTOCOL_VIOLATION)
        else:
            return True
        return False

    def has_place(self, route: RouteConnection, info: RouteInfo) -> bool:
        """Check whether there is room for a server that belongs to the cluster; the connection is closed if not.

        What is connected stays: a newcomer that says it is the same server, or one of the same name, makes us ask the
        old connection for a sign of life, and comes in (it will dial again) when there is none.
        """
        known = self.routes.get(info.server_id)
        if info.server_id == self.broker.server_id:
            route.close(Reason.SELF_ROUTE)
        elif known is not None:
            known.doubt()
            route.close(Reason.DUPLICATE_ROUTE)
        elif self._is_namesake(route, info):
            route.close(Reason.DUPLICATE_NAME)
        else:
            return route.dial is not None or self._wins(route, info)
        return False

    def _is_namesake(self, route: RouteConnection, info: RouteInfo) -> bool:
        """Whether another server has that name; the log hears of it unless it can be the same one, started again."""
        name = info.server_name
        other = next((up for up in self.routes.values() if up.peer is not None and up.peer.server_name == name), None)
        if other is not None and other.peer is not None:
            if route.member and not other.member:  # a core peer has no right to a node's name
                self.complain(other, f"the name {quoted(name)} belongs to a node of the cluster")
                other.close(Reason.DUPLICATE_NAME)
                return False
            other.doubt()
            instance = info.node.get("instance", "") if info.node else ""
            if instance and (other.peer.node or {}).get("instance") == instance:
                route.log(logging.DEBUG, "%s is still connected", quoted(name))
                return True
        elif name != self.broker.server_name:
            return False
        self.complain(route, f"there is a server of the name {quoted(name)} already")
        return True

    def _wins(self, accepted: RouteConnection, info: RouteInfo) -> bool:
        """Two servers that dial each other keep the connection of the lower id; both decide alike, nothing flaps."""
        mutual = info.node is not None and bool(self.options.node)
        for other in list(self.open):
            if other.stage is Stage.OFFERED and other.peer is not None and other.peer.server_id == info.server_id:
                if mutual and self.broker.server_id < info.server_id:
                    accepted.close(Reason.DUPLICATE_ROUTE)
                    return False
                other.close(Reason.DUPLICATE_ROUTE)
        return True

    def register(self, route: RouteConnection) -> None:
        """Both sides have agreed: the route carries messages from now on."""
        info = route.peer
        assert info is not None
        if info.server_id in self.routes:
            route.close(Reason.DUPLICATE_ROUTE)
            return
        others = list(self.routes.values())
        self._strangers.forget(route)
        self.routes[info.server_id] = route
        route.up()
        self._review_groups()
        for routing in self.routings.values():
            lines = routing.everything(member=route.member)
            if lines:
                route.send(b"".join(lines))
        route.log(logging.INFO, "Route connection created")
        forward(route, others)
        self._tell_urls()
        if info.node is not None:
            self._notify(info.server_name, self._address(route), up=True)

    def forget(self, route: RouteConnection) -> None:
        """A connection is closed."""
        self.open.pop(route, None)
        self._strangers.forget(route)
        self.timers.cancel(route)
        for name in ("in_msgs", "in_bytes", "out_msgs", "out_bytes"):
            setattr(self._past, name, getattr(self._past, name) + getattr(route, name))
        info = route.peer
        if info is None or self.routes.get(info.server_id) is not route:
            return
        del self.routes[info.server_id]
        route.drop_interest()
        self._review_groups()
        assert route.reason is not None
        route.log(logging.INFO, "Router connection closed: %s", route.reason.value)
        self._tell_urls()
        if info.node is not None:
            self._notify(info.server_name, self._address(route), up=False)

    def heard(self, route: RouteConnection, info: RouteInfo) -> None:
        """A later INFO: of a newcomer, or of the peer itself, which is about to leave."""
        assert route.peer is not None
        if info.server_id != route.peer.server_id:
            if route.stage is Stage.UP:
                follow(self, route, info)
        elif info.lame_duck and not route.peer.lame_duck:
            route.peer.lame_duck = True
            self._tell_urls()

    def complain(self, route: RouteConnection, text: str) -> None:
        """Count and log what a peer did wrong; the log hears of it once, because it will try again, and of a few things
        for each address: strangers may always think of something new."""
        self.refused += 1
        text = text[:_COMPLAINT]
        where = route.name if route.stage is Stage.UP else route.ip if route.dial is None else route.dial.address
        told = self._told.get(where, set())
        known = text in told or len(told) >= _COMPLAINTS_EACH or len(self._told) >= _COMPLAINTS_KEPT
        if not known:
            self._told.setdefault(where, told).add(text)
        route.log(logging.DEBUG if known else logging.ERROR, "%s", text)

    async def absent(self, server_id: str) -> None:
        """Wait until there is no route to that server."""
        while (route := self.routes.get(server_id)) is not None:
            await route.gone.wait()

    # -- dialling -----------------------------------------------------------------------------------------------

    def dial_implicit(self, host: str, port: int, gossip_mode: int) -> None:
        """Dial a peer that another one has told us of."""
        if sum(not dial.explicit for dial in self._dials.values()) < _DIALS_BY_GOSSIP:
            self._dial(Solicitation(self, host, port, user="", password="", explicit=False, gossip_mode=gossip_mode))

    def _dial(self, dial: Solicitation) -> None:
        known = self._dials.get(dial.address)
        if self._stopping or (known is not None and (known.explicit or not dial.explicit)):
            return
        if known is not None:  # it was dialled because of gossip: from now on for ever
            known.explicit = True
            return
        self._dials[dial.address] = dial
        dial.start()

    def dialled(self, dial: Solicitation) -> None:
        """An address is not dialled any more."""
        if self._dials.get(dial.address) is dial:
            del self._dials[dial.address]

    # -- what is told -------------------------------------------------------------------------------------------

    def info_line(
        self, route: RouteConnection, *, gossip_mode: int = 0, auth: Mapping[str, str] | None = None, whole: bool = True
    ) -> bytes:
        """What we tell a peer about ourselves. `auth` is our part of a proof; without `whole` it is for somebody of
        whom we know nothing yet, and says what a nats-server needs."""
        options, broker = self.options, self.broker
        return encode_info(
            {
                "server_id": broker.server_id,
                "server_name": broker.server_name,
                "version": NATS_VERSION,
                "proto": PROTOCOL,
                "go": f"python{platform.python_version()}",
                "host": options.host or "0.0.0.0",
                "port": self.port,
                "auth_required": options.auth_required,
                "headers": broker.options.headers,
                "tls_required": self.tls is not None,
                "tls_verify": self.tls is not None,
                "max_payload": broker.options.max_payload,
                "ip": f"nats-route://{self.advertised}/" if options.advertise else "",
                "cluster": options.name,
                "connect_urls": [] if options.no_advertise else self._own_urls(route),
                "ldm": broker.lame_duck,
                "gossip_mode": gossip_mode,
                "nimsnats": options.node if whole else None,
                TAGS_GROUPS: whole,
                AUTH: auth,
            }
        )

    @property
    def advertised(self) -> str:
        """`host:port` that peers are told to dial; empty when they have to see for themselves."""
        text = self.options.advertise
        if not text or "]:" in text or text.count(":") == 1:
            return text
        return f"[{text.strip('[]')}]:{self.port}" if ":" in text else f"{text}:{self.port}"

    @property
    def stats(self) -> BrokerStats:
        """What all routes have carried so far."""
        total = BrokerStats()
        for part in (self._past, *self.open):
            total.in_msgs += part.in_msgs
            total.in_bytes += part.in_bytes
            total.out_msgs += part.out_msgs
            total.out_bytes += part.out_bytes
        return total

    def _own_urls(self, route: RouteConnection | None) -> list[str]:
        """Where clients reach this server; `route` shows which of our addresses its peer sees."""
        host = self.broker.info.host
        if host in _WILDCARD and self.options.advertise:
            host = parse_route(self.advertised)[0]
        if host in _WILDCARD:
            transport = route.transport if route is not None else None
            local: object = transport.get_extra_info("sockname") if transport is not None else None
            if not isinstance(local, tuple):
                return []
            host = str(cast("tuple[object, ...]", local)[0])
        return [f"[{host}]:{self.broker.info.port}" if ":" in host else f"{host}:{self.broker.info.port}"]

    def _tell_urls(self) -> None:
        """Tell the clients where else they can go."""
        if self.options.no_advertise or self._stopping:
            return
        routes = list(self.routes.values())
        urls = dict.fromkeys(self._own_urls(routes[0] if routes else None))
        for route in routes:
            if route.peer is not None and not route.peer.lame_duck:
                urls.update(dict.fromkeys(route.peer.connect_urls))
        self.broker.set_connect_urls(list(urls))

    def _tell(self, line: bytes, outside: bytes) -> None:
        for route in list(self.routes.values()):
            tell(route, line if route.member else outside)

    def _review_groups(self) -> None:
        self.groups.review(self.routes.values(), self.routings.values())

    def _notify(self, name: str, address: str, *, up: bool) -> None:
        for watcher in list(self._watchers):
            try:
                watcher(name, address, up)
            except Exception as error:
                self.broker.runtime.fence.caught(watcher, error)

    @staticmethod
    def _address(route: RouteConnection) -> str:
        """Where the peer was dialled, or else where it can be."""
        if route.dial is not None:
            return route.dial.address
        host, port = address_of(route) or (route.ip, 0)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
