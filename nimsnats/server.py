"""A NATS server with JetStream inside this process: storage, Raft, broker, JetStream and the HTTP port, in order.

Owns the composition and its start and stop order. It knows nothing of registries, clusters or the forest: `node.py`
adds those. As an async context manager it is what other programs and tests embed:

    async with Server(port=4222, store_dir="data") as server:
        client = await server.client()
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from nimsnats.broker.route_options import RouteOptions
from nimsnats.broker.route_table import RouteTable
from nimsnats.broker.server import Broker
from nimsnats.config.exposure import exposure
from nimsnats.config.settings import Settings, for_server
from nimsnats.jetstream.engine import JetStream
from nimsnats.monitor.view import NodeView
from nimsnats.raft.host import Host
from nimsnats.reload import reload
from nimsnats.runtime import Runtime, StartError
from nimsnats.storage import Database, open_database
from nimsnats.version import NATS_VERSION, __version__

if TYPE_CHECKING:
    from nats.aio.client import Client

    from nimsnats.collector import Collector
    from nimsnats.monitor.server import MonitorServer
    from nimsnats.monitor.stall import StallWatch
    from nimsnats.monitor.system import SystemServices


def embedded_settings(
    host: str, port: int, store_dir: Path | str | None, *, jetstream: bool, monitor_port: int, name: str
) -> Settings:
    """Settings of a server inside another program: loopback and any free port unless told otherwise."""
    settings = for_server()
    settings.node_name = name
    settings.broker = replace(settings.broker, host=host, port=port, server_name=name, jetstream=jetstream)
    settings.monitor = replace(settings.monitor, host=host, port=monitor_port)
    if store_dir is not None:
        settings.data_dir = Path(store_dir)
        settings.jetstream = replace(settings.jetstream, store_dir=settings.data_dir)
    return settings


def entitled_accounts(settings: Settings) -> frozenset[str] | None:
    """Accounts with JetStream: all while there are only `$G` and the system account, else those that ask for it."""
    system = settings.broker.system_account
    others = [account for account in settings.accounts if account.name != system]
    return frozenset(account.name for account in others if account.jetstream) if others else None


class StorageOpener(Protocol):
    """Opens what a node stores its groups in; `open_database` is the one of production."""

    async def __call__(
        self, path: Path, runtime: Runtime, node_name: str = "", *, sync_always: bool = True, sync_interval: float = 0.1
    ) -> Database: ...


class Server:
    """One server. Either from complete `settings`, or from the few arguments that embedding needs.

    `port` and `monitor_port`: -1 is any free port; a `monitor_port` of 0 means no HTTP. Without a `store_dir` streams
    live in a temporary folder that is removed at the end. `runtime` and `open_storage` are the ways to time, chance,
    network and disk; a simulator hands in others than those of production.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = -1,
        store_dir: Path | str | None = None,
        jetstream: bool = True,
        monitor_port: int = 0,
        name: str = "",
        log: logging.Logger | None = None,
        runtime: Runtime | None = None,
        open_storage: StorageOpener = open_database,
    ) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if settings is None and jetstream and store_dir is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="nimsnats-", ignore_cleanup_errors=True)
            store_dir = self._temporary.name
        self.settings = settings or embedded_settings(
            host, port, store_dir, jetstream=jetstream, monitor_port=monitor_port, name=name
        )
        self.log = log or logging.getLogger("nimsnats")
        self.on_http: list[Callable[[MonitorServer], Awaitable[None]]] = []
        """Called with the HTTP server before it listens, so that others add their routes."""
        self.progress: Callable[[str], None] = lambda _text: None
        """Called with what the server is at, in words for people."""
        self.stalls: StallWatch | None = None
        """How often the loop was stuck, if somebody counts (the process does)."""
        self.collector: Collector | None = None
        """How long the garbage collector has stopped everything, if somebody counts (the process does)."""
        self.reloading: Callable[[], str] | None = None
        """Reads the configuration again, where there is one to read; returns what was wrong."""
        self.clustered = False
        """Whether peers are told that this server takes part in the cluster: not only as a core server."""
        self._given_runtime = runtime
        self._open_storage = open_storage
        self._runtime: Runtime | None = None
        self._broker: Broker | None = None
        self._host: Host | None = None
        self._system: SystemServices | None = None
        self.jetstream: JetStream | None = None
        self.storage: Database | None = None
        self.routes: RouteTable | None = None
        self.monitor: MonitorServer | None = None
        self.view: NodeView | None = None

    @property
    def broker(self) -> Broker:
        """The broker. Only between `start` and `stop`."""
        assert self._broker is not None, "the server is not running"
        return self._broker

    @property
    def runtime(self) -> Runtime:
        """The runtime. Only between `start` and `stop`."""
        assert self._runtime is not None, "the server is not running"
        return self._runtime

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return self.broker.port

    @property
    def url(self) -> str:
        """Where clients of this machine connect."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.settings.broker.host, self.settings.broker.host)
        return f"nats://{host}:{self.port}"

    async def start(self) -> None:
        """Recover what is on disk, then listen. Raises StartError in one clear line; then nothing is left running."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        settings = self.settings
        self._runtime = runtime = self._given_runtime or Runtime.real()
        self._broker = broker = Broker(settings.broker, runtime)
        self._introduce(broker)
        self.progress(f"Recovering {settings.jetstream.store_dir}" if settings.broker.jetstream else "Starting")
        if settings.broker.jetstream:
            await self._start_jetstream(broker, runtime)
        self.view = NodeView(
            broker,
            self.jetstream,
            self.storage,
            config_digest=settings.config_digest,
            config_loaded_ns=runtime.time_ns(),
            stalls=self.stalls,
            collector=self.collector,
            reload=self.reloading,
        )
        if warning := exposure(settings, embeds_registry=bool(self.on_http)):
            self.log.warning("%s", warning)
            self.view.notes.append(lambda: warning)
        self.view.start()
        from nimsnats.monitor.system import SystemServices

        self._system = SystemServices(self.view)
        self._system.start()
        if settings.monitor.port != 0:
            await self._start_http(self.view)
        await broker.start()
        self.log.info("Server is ready")
        self.progress(f"Ready: clients on {broker.options.host}:{broker.port}")
        if settings.cluster.enabled:
            self.routes = RouteTable(broker, self._route_options())
            if self.jetstream is not None:
                self.routes.belong_to(self.jetstream.meta.group.name)
            await self.routes.start()
            if self.jetstream is not None and self.jetstream.cluster is not None:
                self.jetstream.tags.others = self.routes.tags
                self.routes.watch(self._on_route)
                self.jetstream.cluster.start(self.routes.connected)

    def _on_route(self, name: str, address: str, up: bool) -> None:
        del address
        if not up and self._host is not None:
            self._host.suspect(name)

    def _route_options(self) -> RouteOptions:
        cluster = self.settings.cluster
        instance = self.storage.identity.instance if self.storage is not None else ""
        return RouteOptions(
            name=cluster.name,
            host=cluster.host,
            port=cluster.port,
            advertise=cluster.advertise,
            no_advertise=cluster.no_advertise,
            routes=cluster.routes,
            connect_retries=cluster.connect_retries,
            user=cluster.user,
            password=cluster.password,
            auth_timeout=cluster.auth_timeout,
            tls=cluster.tls,
            node={"instance": instance, "tags": ",".join(self.settings.broker.tags)} if self.clustered else {},
        )

    def _introduce(self, broker: Broker) -> None:
        """The head of the log, in nats-server's form: tools look for it."""
        settings = self.settings
        self.log.info("Starting nimsnats")
        self.log.info("  Version:  %s (NATS %s)", __version__, NATS_VERSION)
        if settings.broker.cluster_name:
            self.log.info("  Cluster:  %s", settings.broker.cluster_name)
        self.log.info("  Name:     %s", broker.server_name)
        self.log.info("  ID:       %s", broker.server_id)
        if broker.most_clients < broker.options.max_connections:
            text = "At most %d clients, not %d: this process may have %d files open (LimitNOFILE, ulimit -n)"
            self.log.warning(text, broker.most_clients, broker.options.max_connections, broker.descriptors.limit)
        if settings.config_file:
            self.log.info("Using configuration file: %s (%s)", settings.config_file, settings.config_digest)

    async def _start_jetstream(self, broker: Broker, runtime: Runtime) -> None:
        options = self.settings.jetstream
        self.storage = await self._open_storage(
            options.store_dir,
            runtime,
            broker.server_name,
            sync_always=options.sync_always,
            sync_interval=options.sync_interval,
        )
        self.log.info("Starting JetStream")
        self.log.info('  Store Directory: "%s"', options.store_dir)
        identity = self.storage.identity
        # the server's name may be drawn anew at each start; what its groups call it had better stay
        name = broker.server_name if self.clustered else identity.node
        self._host = Host(self.storage, runtime, name, instance=identity.instance)
        options.accounts = entitled_accounts(self.settings)
        for name in sorted(options.accounts or ()):
            broker.account(name)
        self.jetstream = JetStream(broker, self._host, options, runtime, clustered=self.clustered)
        await self.jetstream.start()

    async def _start_http(self, view: NodeView) -> None:
        from nimsnats.monitor.server import MonitorServer  # aiohttp costs a good part of the start: only if wanted

        settings = self.settings.monitor
        host = settings.host or self.settings.broker.host
        self.monitor = MonitorServer(view, host, settings.port, base_path=settings.base_path)
        for install in self.on_http:
            await install(self.monitor)
        await self.monitor.start()
        self.log.info("Starting http monitor on %s:%d", host, self.monitor.port)

    async def stop(self) -> None:
        """Clients first, storage last; everything acknowledged stays. Idempotent."""
        broker, jetstream, host, storage = self._broker, self.jetstream, self._host, self.storage
        if broker is None:
            return
        if self.monitor is not None:
            await self.monitor.stop()
        if self._system is not None:
            self._system.stop()
        if jetstream is not None:
            await jetstream.stop()
        if self.routes is not None:
            await self.routes.stop()
        await broker.stop()
        if host is not None:
            await host.stop()
        if self.view is not None:
            self.view.stop()
        if storage is not None:
            await storage.close()
        self._broker = self.jetstream = self._host = self.storage = self.routes = None
        self.monitor = self._system = self.view = None
        if self._temporary is not None:
            self._temporary.cleanup()

    async def lame_duck(self) -> None:
        """Send the clients away gently; returns when the last one has gone."""
        if self._system is not None:
            self._system.events.lame_duck()
        await self.broker.enter_lame_duck()

    def reload(self, settings: Settings) -> list[str]:
        """Take over what can change while running; a line for each change. Raises StartError naming what cannot."""
        before, after = entitled_accounts(self.settings), entitled_accounts(settings)
        if self.jetstream is None or before == after:
            return reload(self.broker, self.settings, settings)
        if before is None or after is None or before - after:
            raise StartError("config reload not supported for taking JetStream away from an account")
        lines = reload(self.broker, self.settings, settings)
        self.settings.accounts = settings.accounts
        self.jetstream.entitle(after - before)
        return [*lines, *(f"JetStream for account {name}" for name in sorted(after - before))]

    def listening(self) -> dict[str, list[str]]:
        """URLs by kind, as the ports file has them."""
        urls = {"nats": [self.url]}
        if self.routes is not None:
            urls["cluster"] = [f"nats://{self.settings.cluster.host}:{self.routes.port}"]
        if self.monitor is not None:
            urls["monitoring"] = [f"http://{self.monitor.host or '127.0.0.1'}:{self.monitor.port}"]
        return urls

    async def client(self, **options: Any) -> Client:
        """A nats-py client of this server, connected through memory; `options` are those of `nats.connect`."""
        from nimsnats.inprocess import connect

        return await connect(self.broker, **options)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
