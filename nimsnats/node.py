"""A NimsForest node: the composition root. The only module that knows all the rooms.

Owns the eight steps of the start and the order of the stop:

    1  start the embedded server (storage, streams, clients' port, HTTP)      5  wait for the cluster to settle
    2  register in the registry                                               6  streams with the right replication
    3  ask the registry for peers                                             7  the forest
    4  connect to the peers                                                   8  ready

Stop is the reverse: the application first, then the registration, then the server, storage last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from nimsnats.broker.auth import Identity
from nimsnats.cluster import ClusterManager, ClusterState, Pairs, cluster_health, registry_health
from nimsnats.config import Settings, for_node, split_address
from nimsnats.monitor.view import Application, ClusterView
from nimsnats.notify import Notify
from nimsnats.process import Process
from nimsnats.registry import NodeInfo, Registry, RegistryConfigError, RegistryStoreError
from nimsnats.runtime import Runtime, StartError
from nimsnats.server import Server, StorageOpener
from nimsnats.storage import open_database

if TYPE_CHECKING:
    from nats.aio.client import Client

    from forest.app import Forest
    from nimsnats.collector import Collector
    from nimsnats.jetstream.cluster import Cluster as Membership
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.monitor.server import MonitorServer, Slot
    from nimsnats.monitor.stall import StallWatch
    from nimsnats.registry.address import Advertised
    from nimsnats.registry.address_watch import AddressWatch
    from nimsnats.registry.server import RegistryServer

_JOIN_PATIENCE: Final = 10.0
"""Seconds that a starting node waits to become a member of its peers' JetStream."""
_LEAVE_PATIENCE: Final = 2.5
"""Seconds that a stopping node spends on leaving its groups in order."""
_ADJUST_AGAIN: Final = 2.0
"""Seconds after which the forest's streams are asked again to follow the cluster."""
_FOREST_PATIENCE: Final = 2.0
"""Seconds that the forest gets at the stop to finish what is under way; what it cannot finish is redelivered."""


class Node:
    """One node. `settings` default to those of `python -m nimsnats` without any flag.

    `runtime` and `open_storage` are the server's; `find_registry` takes the place of the registry that the settings
    name, for programs that bring their own.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        log: logging.Logger | None = None,
        runtime: Runtime | None = None,
        open_storage: StorageOpener = open_database,
        find_registry: Callable[[Runtime], Registry] | None = None,
    ) -> None:
        self.settings = settings or for_node()
        self.log = log or logging.getLogger("nimsnats")
        self.server = Server(self.settings, log=self.log, runtime=runtime, open_storage=open_storage)
        self.server.clustered = True
        self.server.on_http.append(self._add_webhooks)
        self.progress: Callable[[str], None] = lambda _text: None
        """Called with the step of the start, and then the state of the cluster, in words for people."""
        self.stalls: StallWatch | None = None
        self.collector: Collector | None = None
        """How often the loop was stuck, if somebody counts (the process does)."""
        self.reloading: Callable[[], str] | None = None
        """Reads the configuration again, where there is one to read; returns what was wrong."""
        self.cluster: ClusterManager | None = None
        self.registry: Registry | None = None
        self.pairs: Pairs | None = None
        self.forest: Forest | None = None
        self._find_registry = find_registry
        self._adjusting: asyncio.Task[None] | None = None
        self._reopening = False
        """The forest has left its streams in another cluster."""
        self._address_watch: AddressWatch | None = None
        self._own_registry: RegistryServer | None = None
        self._webhooks: Slot | None = None
        self._client: Client | None = None
        self._is_ready = False

    @property
    def url(self) -> str:
        """Where clients of this machine connect."""
        return self.server.url

    async def client(self, **options: Any) -> Client:
        """A nats-py client of this node, connected through memory; `options` are those of `nats.connect`."""
        return await self.server.client(**options)

    # Start ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Walk the eight steps. Raises StartError in one clear line; then nothing is left running."""
        try:
            self.log.info("Starting nimsforest...")
            self.log.info("Starting embedded NATS cluster node: %s", self.settings.node_name)
            self.progress(f"Step 1 of 8: recovering {self.settings.data_dir} and starting the embedded server")
            self.server.stalls = self.stalls
            self.server.collector = self.collector
            self.server.reloading = self.reloading
            await self.server.start()
            await self._join_cluster()
            await self._grow_forest()
            self.log.info("nimsforest is ready")
            self._tell_state()
        except (RegistryConfigError, RegistryStoreError) as error:
            await self.stop()
            raise StartError(str(error)) from error
        except BaseException:
            await self.stop()
            raise

    async def _add_webhooks(self, http: MonitorServer) -> None:
        """The embedded registry and the webhooks live in the node's HTTP port."""
        registry = await self._open_own_registry()
        http.add_routes(registry.add_routes)
        if self.settings.forest.enabled:
            self._webhooks = http.slot("POST", "/webhooks/{name}")

    async def _join_cluster(self) -> None:
        info = await self._describe()
        self.registry = await self._open_registry(info)
        self.cluster = ClusterManager(info, self.registry, self.server.runtime, routes=self.server.routes)
        assert self.server.view is not None
        self.server.view.registry = lambda: self.registry.status if self.registry else None
        self.server.view.notes.append(self._registry_note)
        self.server.view.cluster = self._cluster_view
        self.server.view.cluster_page = self._cluster_page
        self.server.view.registry_page = partial(registry_health, self.registry)
        self.progress(f"Steps 2 to 4 of 8: registering at {self.registry.status.url}, connecting to peers")
        await self.cluster.start()
        self.cluster.subscribe(self._cluster_changed)
        self.progress("Step 5 of 8: waiting for the cluster to settle")
        jetstream = self.server.jetstream
        if jetstream is not None and jetstream.cluster is not None:
            jetstream.cluster.gone = self._is_gone
            if self.settings.forest.enabled:
                self._let_forest_move(jetstream.cluster)
            self._watch_pairs(self.cluster, jetstream)
            if not await jetstream.cluster.settle(_JOIN_PATIENCE):
                self.log.warning("JetStream is not yet one with all connected nodes: going on with what there is")
        self.cluster.jetstream_initialized()
        if self._address_watch is not None:
            self._address_watch.start()

    def _let_forest_move(self, membership: Membership) -> None:
        """The forest's streams are no reason to stay apart from others as long as nothing was in them."""
        from forest.app import makes_anew

        account = self.server.broker.global_account.name
        membership.replaceable = lambda key, consumers: key[0] == account and makes_anew(key[1], consumers)
        membership.on_moved = self._moved_on

    def _moved_on(self) -> None:
        """This node belongs to another cluster, and its forest finds no stream there, or those of others."""
        self._reopening = True
        self._have_forest_follow()

    def _watch_pairs(self, cluster: ClusterManager, jetstream: JetStream) -> None:
        """Let this node go on alone where the registry is witness that the other of two has gone."""
        assert jetstream.mail is not None and self.server.routes is not None
        self.pairs = Pairs(
            lambda: cluster.info,
            cluster.registry,
            self.server.routes,
            jetstream.host,
            jetstream.mail,
            self.server.runtime,
            self.log,
        )
        self.pairs.start()

    async def _describe(self) -> NodeInfo:
        """What peers are told of this node."""
        cluster = self.settings.cluster
        assert self.server.routes is not None, "a node always listens for routes"
        address, port = _advertised(cluster.advertise, self.server.routes.port)
        if not address:
            from nimsnats.registry.address import find_address
            from nimsnats.registry.address_watch import AddressWatch

            found = await find_address()
            address = found.address
            self.log.info("Advertising %s to other nodes (%s)", address, found.reason)
            self._address_watch = AddressWatch(address, self._moved, self.server.runtime, self.log)
        return self._at(address, port)

    def _at(self, address: str, port: int) -> NodeInfo:
        storage, http = self.server.storage, self.server.monitor
        host = f"[{address}]" if ":" in address else address
        return NodeInfo(
            name=self.settings.node_name,
            address=address,
            port=port,
            instance=storage.identity.instance if storage is not None else "",
            http=f"http://{host}:{http.port}" if http is not None else "",
        )

    async def _moved(self, found: Advertised) -> None:
        """This machine has another address."""
        assert self.cluster is not None
        await self.cluster.move(self._at(found.address, self.cluster.info.port))

    async def _open_registry(self, info: NodeInfo) -> Registry:
        settings = self.settings.registry
        if self._find_registry is not None:
            return self._find_registry(self.server.runtime)
        if settings.url:
            from nimsnats.registry.morpheus import MorpheusRegistry, RegistryTls

            tls = RegistryTls(settings.ca_file, settings.cert_file, settings.key_file)
            return MorpheusRegistry(
                settings.url,
                settings.service,
                runtime=self.server.runtime,
                token=settings.token,
                secret=self.settings.cluster.password,
                owner=self._owner_key(),
                tls=tls if settings.ca_file or settings.cert_file else None,
                heartbeat_interval=settings.heartbeat_interval,
            )
        from nimsnats.registry.local import LocalRegistry

        registry = self._own_registry
        if registry is None:  # no HTTP port: nobody else can reach it, this node can
            registry = await self._open_own_registry()
        if info.http:
            self.log.info(
                "No registry configured: using the embedded one. A second node joins with --registry-url %s", info.http
            )
        else:
            self.log.info("No registry configured and no HTTP port: this node sees only itself")
        return LocalRegistry(
            registry.directory,
            settings.service,
            url=info.http or "local:",
            owner=self._owner_key(),
            heartbeat_interval=settings.heartbeat_interval,
        )

    def _owner_key(self) -> str:
        """What shows the registry that this node's entry is its own."""
        from nimsnats.registry.owner import owner_key

        random = self.server.runtime.random
        try:
            return owner_key(self.settings.data_dir, random)
        except OSError as error:
            self.log.warning("No key for the registry can be kept in %s: %s", self.settings.data_dir, error.strerror)
            return random.randbytes(32).hex()

    async def _open_own_registry(self) -> RegistryServer:
        from nimsnats.registry.server import RegistryServer

        settings = self.settings.registry
        registry = self._own_registry = RegistryServer(
            self.server.runtime,
            ttl=settings.ttl,
            data_dir=self.settings.data_dir,
            token=settings.token,
            secret=self.settings.cluster.password,
        )
        await registry.open()  # `stop` closes what a start that is cut short had begun to open
        return registry

    async def _grow_forest(self) -> None:
        settings = self.settings.forest
        if not settings.enabled:
            return
        from forest.app import Forest
        from forest.errors import ForestError
        from forest.metrics import HELP
        from forest.options import ForestOptions
        from forest.wind import DEFAULT_SUBJECTS
        from nimsnats.inprocess import connect

        assert self.cluster is not None and self.server.view is not None
        self.progress("Steps 6 and 7 of 8: opening the forest's streams and starting the forest")
        broker = self.server.broker
        own = Identity(broker.global_account.name)  # the node's users and tokens are for others
        self._client = await connect(broker, trusted=own, name="nimsforest")
        options = ForestOptions(
            trees=settings.trees,
            nims=settings.nims,
            builtin=settings.builtin,
            wind_subjects=settings.wind_subjects or DEFAULT_SUBJECTS,
            replicas=self.cluster.replication_factor,
            demo=settings.demo,
            webhook_tolerance=settings.webhook_tolerance,
        )
        self.forest = forest = Forest(self._client, options, clock=self._clock, rng=self.server.runtime.random)
        try:
            await forest.start()
        except ForestError as error:
            raise StartError(f"the forest cannot start: {error}") from error
        if self.cluster.replication_factor != options.replicas:
            self._cluster_changed(self.cluster.state)  # it has grown while the forest was starting
        self.server.view.application = Application(forest.metrics.samples, HELP)
        self.server.view.problems = self._forest_problems
        if self._webhooks is not None:
            from forest.webhook import endpoints, webhook_handler

            hooks = settings.webhooks
            self._webhooks.handler = webhook_handler(
                forest.river,
                endpoints(
                    {name: hook.secrets for name, hook in hooks.items() if not hook.unsigned},
                    [name for name, hook in hooks.items() if hook.unsigned],
                ),
                clock=self._clock,
                metrics=forest.metrics,
                log=logging.getLogger("forest.webhook"),
                max_body=settings.webhook_max_size,
                tolerance=settings.webhook_tolerance,
            )

    def _cluster_page(self) -> dict[str, Any]:
        """The cluster's health, and with which connected nodes this one cannot be one JetStream."""
        assert self.cluster is not None
        page = cluster_health(self.cluster, self.pairs.waiting if self.pairs is not None else None)
        jetstream = self.server.jetstream
        conflicts = jetstream.cluster.conflicts if jetstream is not None and jetstream.cluster is not None else {}
        if conflicts:
            page["status"] = "degraded"
            page["cluster"]["conflicts"] = sorted(conflicts)
        return page

    def _registry_note(self) -> str:
        note = self.registry.status.note if self.registry is not None else ""
        return f"registry: {note}" if note else ""

    def _clock(self) -> float:
        return self.server.runtime.time_ns() / 1e9

    # While running ----------------------------------------------------------------------------------------------

    def _cluster_view(self) -> ClusterView:
        assert self.cluster is not None
        state, listed = self.cluster.state, self.cluster.known_peers
        return ClusterView(
            state.size,
            state.peers,
            state.replication_factor,
            listed=len(listed),
            connected=sum(map(self.cluster.is_connected, self.cluster.members)),
            waiting=len(self.pairs.waiting) if self.pairs is not None else 0,
        )

    def _tell_state(self) -> None:
        assert self.cluster is not None
        state = self.cluster.state
        self._is_ready = True
        peers = f" with {', '.join(state.peers)}" if state.peers else ""
        self.progress(f"Ready: cluster of {state.size}{peers}, replication factor {state.replication_factor}")

    def _cluster_changed(self, state: ClusterState) -> None:
        if self._is_ready:
            self._tell_state()
        self._have_forest_follow()

    def _have_forest_follow(self) -> None:
        if self.forest is not None and self.forest.running and (self._adjusting is None or self._adjusting.done()):
            work = self._adjust_replicas(self.forest)
            self._adjusting = self.server.runtime.tend(work, "forest replicas")

    def _is_gone(self, name: str) -> bool:
        """Whether a node has neither a route nor a registration, as far as this node can tell."""
        cluster, registry = self.cluster, self.registry
        if cluster is None or registry is None or not registry.status.connected:
            return False
        return name not in cluster.members and all(peer.name != name for peer in cluster.known_peers)

    async def _adjust_replicas(self, forest: Forest) -> None:
        """Have the forest's streams follow this node and the cluster, as often as it takes. One at a time: an earlier
        factor must not be asked for behind a later one."""
        from forest.errors import ForestError

        told, reached = False, 0
        while (
            forest.running
            and self.cluster is not None
            and (self._reopening or reached != self.cluster.replication_factor)
        ):
            wanted, reopening, self._reopening = self.cluster.replication_factor, self._reopening, False
            try:
                if reopening:
                    await forest.reopen()
                await forest.adjust_replicas(wanted)
                reached = wanted
            except ForestError as error:
                self._reopening |= reopening
                if not told:
                    self.log.warning("The forest's streams keep their replicas for now: %s", error)
                told = True
                await self.server.runtime.sleep(_ADJUST_AGAIN)

    def _forest_problems(self) -> Sequence[str]:
        return self.forest.problems() if self.forest is not None else ()

    async def lame_duck(self) -> None:
        """Send the clients away gently; returns when the last one has gone."""
        await self.server.lame_duck()

    def reload(self, settings: Settings) -> list[str]:
        """Take over what can change while running; a line for each change."""
        return self.server.reload(settings)

    def listening(self) -> dict[str, list[str]]:
        """URLs by kind."""
        return self.server.listening()

    # Stop -------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Application, registration, server, storage: in this order, losing nothing. Idempotent."""
        self._is_ready = False
        self.progress("Stopping: the forest")
        if self.forest is not None:
            if self._webhooks is not None:
                self._webhooks.handler = None
            try:
                async with asyncio.timeout(_FOREST_PATIENCE):
                    await self.forest.stop()
            except TimeoutError:
                self.log.warning("The forest did not stop in time; what was under way will be delivered again")
            self.forest = None
        if self._client is not None:
            await self._client.close()
            self._client = None
        self.progress("Stopping: handing over to other nodes and leaving the registry")
        if self._address_watch is not None:
            await self._address_watch.stop()
            self._address_watch = None
        if self.pairs is not None:
            await self.pairs.stop()
            self.pairs = None
        jetstream = self.server.jetstream
        if jetstream is not None and jetstream.cluster is not None:
            try:
                await jetstream.cluster.leave(_LEAVE_PATIENCE)
            except Exception:  # whatever it is, the rest of the stop is due: the others see a node that crashed
                self.log.exception("The cluster could not be left in order")
        if self.cluster is not None:
            await self.cluster.stop()
            self.cluster = None
        if self.registry is not None:
            await self.registry.close()
            self.registry = None
        self.progress("Stopping: the server and its storage")
        await self.server.stop()
        if self._own_registry is not None:
            await self._own_registry.stop()
            self._own_registry = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _advertised(text: str, port: int) -> tuple[str, int]:
    """Host and port out of `host`, `host:port`, `[ipv6]:port` or a bare IPv6 address; empty stays empty."""
    if text.count(":") == 1 or "]:" in text:
        return split_address(text)
    return text.strip("[]"), port


async def run_node(settings: Settings) -> int:
    """Run a node until a signal ends it; the process's exit code."""
    return await Process(Node(settings), Notify.from_environment()).run()


async def run_server(settings: Settings) -> int:
    """Run the server alone until a signal ends it; the process's exit code."""
    return await Process(Server(settings), Notify.from_environment()).run()
