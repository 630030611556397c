"""Forest: the application, built from its parts and started in order.

Owns: composition, the order of start and stop, own trees and nims, and the list of what is broken. The order matters:
streams, then every durable consumer (nims and decomposer first, so that a leaf dropped by the first tree has
somebody who keeps it), then the workers from the end of the flow to its beginning. Stop is the reverse: first nothing
new comes in, then what is under way is finished.

What a node dying at any point costs: everything unacknowledged is delivered again, to this node or another, and every
step recognises what it has done before (see `wind`, `humus`, `decomposer`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import nats
import nats.errors

from forest.aftersales import AfterSalesNim
from forest.decomposer import CONSUMER as DECOMPOSER
from forest.decomposer import Decomposer
from forest.demo import Feeder, narrate
from forest.errors import BrokenPlugin, ForestError, Refused, Unavailable
from forest.ground import Ground
from forest.humus import STREAM as HUMUS
from forest.humus import Humus
from forest.jet import Jet
from forest.metrics import ForestMetrics, LogGate
from forest.nim import nim_handler
from forest.options import ForestOptions
from forest.payments import PaymentTree
from forest.plugins import as_nim, as_tree, construct, leaf_subjects, load, plugin_name
from forest.river import STREAM as RIVER
from forest.river import River
from forest.soil import STREAM as SOIL
from forest.soil import Soil
from forest.subject import consumer_name, overlap
from forest.tree import Planted, grove
from forest.wind import STREAM as WIND
from forest.wind import Wind
from forest.worker import Handler, Worker

if TYPE_CHECKING:
    from nats.aio.client import Client

_START_PAUSE = 0.2
_CONSUMERS = {RIVER: "tree-", WIND: "nim-", HUMUS: DECOMPOSER, SOIL: ""}
"""The forest's streams, and how the names of its durable consumers on them begin ("": it has none)."""

Factory = Callable[..., Any]


def makes_anew(stream: str, consumers: Iterable[str]) -> bool:
    """Whether a stream that has never held a message, with these consumers, is one that every forest makes for itself
    when it starts: nothing is lost with it."""
    own = _CONSUMERS.get(stream)
    return own is not None and all(own and name.startswith(own) for name in consumers)


class Forest:
    """One forest on one connection: `await start()`, `await stop()`, or `async with`.

    `nats` is a connected client (which stays the caller's) or a server URL. `clock` gives seconds since the epoch,
    `rng` spreads retries and makes the demo's samples.
    """

    def __init__(
        self,
        nats: Client | str,
        options: ForestOptions | None = None,
        *,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        self.options = options or ForestOptions()
        self.metrics = ForestMetrics()
        self.broken: list[BrokenPlugin] = []
        self._nats = nats
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._log = log or logging.getLogger("forest")
        self._gate = LogGate(clock)
        self._client: Client | None = None
        self._ground: Ground | None = None
        self._jet: Jet | None = None
        self._sinks: list[Worker] = []  # decomposer and nims: the end of the flow
        self._sources: list[Worker] = []  # trees: its beginning
        self._feeder: Feeder | None = None

    @property
    def ground(self) -> Ground:
        """The forest's parts. Only between `start` and `stop`."""
        assert self._ground is not None, "the forest has not been started"
        return self._ground

    @property
    def running(self) -> bool:
        """True between the end of `start` and `stop`."""
        return self._ground is not None

    @property
    def river(self) -> River:
        """The river, e.g. for `webhook_handler`. Only between `start` and `stop`."""
        return self.ground.river

    async def __aenter__(self) -> Forest:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything. A broken own tree or nim is reported in `broken` and left out.

        Raises Unavailable when JetStream does not answer for `start_timeout` seconds, Refused when it says no to one
        of the forest's own streams.
        """
        assert not self.running, "started twice"
        self.broken = []
        try:
            async with asyncio.timeout(self.options.start_timeout):
                ground = await self._open_ground()
                await self._open_decomposer(ground)
                await self._open_nims(ground)
                await self._open_trees(ground)
        except TimeoutError as error:
            await self._abandon()
            raise Unavailable("JetStream did not answer in time") from error
        except BaseException:
            await self._abandon()
            raise
        self._ground = ground
        for worker in (*self._sinks, *self._sources):
            worker.start()
        if self.options.demo:
            self._feeder = Feeder(
                ground.river,
                interval=self.options.demo_interval,
                clock=self._clock,
                rng=self._rng,
                metrics=self.metrics,
                log=self._log,
            )
            self._feeder.start()
        await self._name_orphans()
        names = ", ".join(worker.durable for worker in (*self._sources, *self._sinks))
        self._log.info("forest is growing: %s", names)

    async def stop(self) -> None:
        """Stop in order: feeder, trees, nims, decomposer, the connection if it is ours. Safe to call twice."""
        if self._feeder is not None:
            await self._feeder.stop()
            self._feeder = None
        await asyncio.gather(*(worker.stop() for worker in self._sources))
        for stage in (self._sinks[1:], self._sinks[:1]):  # nims, then the decomposer
            await asyncio.gather(*(worker.stop() for worker in stage))
        await self._abandon()

    async def adjust_replicas(self, replicas: int) -> bool:
        """Give all streams `replicas` copies; True if something changed.

        A stream that cannot follow does not hold back the others. Raises the first Unavailable or Refused at the end.
        """
        ground = self.ground
        changed = False
        failure: ForestError | None = None
        for part in (ground.river, ground.wind, ground.humus, ground.soil):
            try:
                changed |= await part.adjust_replicas(replicas)
            except ForestError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return changed

    async def reopen(self) -> None:
        """Make sure that all streams are there: the server belongs to another cluster now, and has left its own ones
        behind. The workers find out by themselves. Raises Unavailable, Refused."""
        ground = self.ground
        for part in (ground.soil, ground.humus, ground.wind, ground.river):
            await part.open()

    def problems(self) -> list[str]:
        """What an operator should look at, one line each; empty when all is well."""
        return [f"left out: {error}" for error in self.broken]

    async def backlogs(self) -> dict[str, int]:
        """Messages that each durable consumer has yet to handle. Raises Unavailable.

        Read in the direction of the flow: if all are zero, what had come in when the call began has been done.
        """
        assert self._jet is not None
        return {
            worker.durable: await self._jet.backlog(worker.stream, worker.durable)
            for worker in (*self._sources, *reversed(self._sinks))
        }

    async def _name_orphans(self) -> None:
        """Log durable consumers that a former tree or nim has left: what waits for them fills the stream."""
        assert self._jet is not None
        known = {worker.durable for worker in (*self._sources, *self._sinks)}
        for stream, kind in ((RIVER, "tree-"), (WIND, "nim-")):
            try:
                consumers = await self._jet.consumers(stream)
            except ForestError as error:
                self._log.debug("consumers of %s are unknown: %s", stream, error)
                continue
            for name, waiting in consumers.items():
                if name.startswith(kind) and name not in known:
                    self._log.warning(
                        "consumer %s on %s (%d waiting) belongs to nobody here: delete it if its owner is gone",
                        name,
                        stream,
                        waiting,
                    )

    async def _abandon(self) -> None:
        self._sources, self._sinks = [], []
        self._ground = self._jet = None
        client, self._client = self._client, None
        if client is not None and isinstance(self._nats, str):
            await client.close()

    async def _connect(self) -> Client:
        if not isinstance(self._nats, str):
            return self._nats
        connect = cast("Callable[..., Awaitable[Client]]", nats.connect)  # its options are not annotated
        return await connect(
            self._nats,
            name="nimsforest",
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.5,
            error_cb=self._connection_error,
        )

    async def _connection_error(self, error: Exception) -> None:
        if self._gate.admit("connection") is not None:
            self._log.warning("connection: %s", error or type(error).__name__)

    async def _open_ground(self) -> Ground:
        self._client = client = await self._retried(self._connect)
        options = self.options
        self._jet = jet = Jet(client, options.request_timeout)
        log, metrics, replicas = self._log, self.metrics, options.replicas
        ground = Ground(
            river=River(jet, self._clock, replicas=replicas, tolerance=options.webhook_tolerance),
            wind=Wind(jet, metrics, log, subjects=options.wind_subjects, replicas=replicas),
            humus=Humus(jet, self._clock, metrics, replicas=replicas),
            soil=Soil(jet, replicas=replicas),
            clock=self._clock,
            metrics=metrics,
            log=log,
        )
        for part in (ground.soil, ground.humus, ground.wind, ground.river):
            await self._retried(part.open)
        return ground

    async def _open_decomposer(self, ground: Ground) -> None:
        told = partial(narrate, log=self._log) if self.options.demo else None
        decomposer = Decomposer(ground.soil, self.metrics, self._log, told)
        worker = self._worker(HUMUS, DECOMPOSER, ("humus.>",), decomposer.handle)
        await self._retried(worker.open)
        self._sinks.append(worker)

    async def _open_nims(self, ground: Ground) -> None:
        taken: set[str] = set()
        for spec, plugin in self._plugins(ground, "forest.aftersales:AfterSalesNim", self.options.nims):
            try:
                nim = as_nim(spec, plugin)
                durable = f"nim-{plugin_name(spec, plugin)}"
                if durable in taken:
                    raise BrokenPlugin(spec, "start", f"there is another nim with its name ({durable})")
                worker = self._worker(WIND, durable, tuple(nim.subjects), nim_handler(nim))
                await self._open_plugin(spec, ground.wind, leaf_subjects(spec, plugin), worker)
            except BrokenPlugin as error:
                self._report(error)
                continue
            taken.add(durable)
            self._sinks.append(worker)

    async def _open_trees(self, ground: Ground) -> None:
        groups: dict[str, list[Planted]] = {}
        leaves: dict[str, list[str]] = {}
        specs: dict[str, str] = {}
        for spec, plugin in self._plugins(ground, "forest.payments:PaymentTree", self.options.trees):
            try:
                tree = as_tree(spec, plugin)
                name, declared = plugin_name(spec, plugin), leaf_subjects(spec, plugin)
                _refuse_overlap(spec, tree.patterns, groups)
            except BrokenPlugin as error:
                self._report(error)
                continue
            for pattern in dict.fromkeys(tree.patterns):
                groups.setdefault(pattern, []).append(Planted(name, tree))
                leaves.setdefault(pattern, []).extend(declared)
                specs.setdefault(pattern, spec)
        for pattern, trees in groups.items():
            durable = consumer_name("tree", pattern)
            handler = grove(trees, ground.wind, self.metrics, durable)
            worker = self._worker(RIVER, durable, (pattern,), handler)
            try:
                await self._open_plugin(specs[pattern], ground.wind, leaves[pattern], worker)
            except BrokenPlugin as error:
                self._report(error)
                continue
            self._sources.append(worker)

    async def _open_plugin(self, spec: str, wind: Wind, subjects: Sequence[str], worker: Worker) -> None:
        """Make room on the wind for what the plug-in declares, then its consumer; BrokenPlugin if refused."""

        async def capture() -> None:
            await wind.open(subjects)

        try:
            await self._retried(capture)
            await self._retried(worker.open)
        except (Refused, ValueError) as error:
            raise BrokenPlugin(spec, "start", str(error)) from error

    def _plugins(self, ground: Ground, builtin: str, own: Sequence[str]) -> list[tuple[str, object]]:
        """Constructed plug-ins with the names they were asked for; broken ones are reported and left out."""
        found: list[tuple[str, object]] = []
        for spec in ([builtin] if self.options.builtin else []) + list(own):
            try:
                found.append((spec, construct(spec, _BUILTIN.get(spec) or load(spec), ground)))
            except BrokenPlugin as error:
                self._report(error)
        return found

    def _report(self, error: BrokenPlugin) -> None:
        self.broken.append(error)
        self.metrics.count("forest_plugins_broken_total", plugin=error.spec, stage=error.stage)
        self._log.error("left out: %s", error, exc_info=error.__cause__)

    def _worker(self, stream: str, durable: str, filters: Sequence[str], handler: Handler) -> Worker:
        assert self._jet is not None
        return Worker(
            self._jet,
            stream,
            durable,
            filters,
            handler,
            limits=self.options.limits,
            metrics=self.metrics,
            gate=self._gate,
            rng=self._rng,
            log=self._log,
        )

    async def _retried(self, step: Callable[[], Any]) -> Any:
        """Repeat a step of the start until JetStream is there; `start`'s time-out ends it."""
        while True:
            try:
                return await step()
            except (Unavailable, nats.errors.NoServersError, OSError) as error:
                if self._gate.admit("start") is not None:
                    self._log.info("waiting for JetStream: %s", error)
                await asyncio.sleep(_START_PAUSE * (0.5 + self._rng.random()))


_BUILTIN: dict[str, Factory] = {
    "forest.aftersales:AfterSalesNim": AfterSalesNim,
    "forest.payments:PaymentTree": PaymentTree,
}


def _refuse_overlap(spec: str, patterns: Sequence[str], groups: dict[str, list[Planted]]) -> None:
    for pattern in patterns:
        for other in (*groups, *patterns):
            if other != pattern and overlap(other, pattern):
                raise BrokenPlugin(
                    spec,
                    "start",
                    f"pattern {pattern!r} overlaps {other!r}: in a work-queue each item has one consumer; "
                    f"watch exactly the same pattern to share it",
                )
