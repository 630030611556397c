"""What the monitor looks at, and the little that it keeps counting by itself.

Owns: references to the parts of a node, the meters that nobody else needs (processor use, loop lag, commit histograms)
and the count of HTTP requests. It changes nothing in the parts it looks at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nimsnats.broker.reasons import Reason
from nimsnats.broker.stats import BrokerStats
from nimsnats.collector import Collector
from nimsnats.jetstream.kinds import name_of
from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.histogram import Histogram
from nimsnats.monitor.lag import LagMeter
from nimsnats.monitor.page.journal import Journal
from nimsnats.monitor.process import CpuMeter
from nimsnats.monitor.stall import StallWatch

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.server import Broker
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.registry import RegistryStatus
    from nimsnats.storage.database import CommitReport, Database

SLOW: Final = frozenset({Reason.SLOW_PENDING, Reason.SLOW_DEADLINE})
_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_AMOUNTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_BYTES: Final = tuple(4096 * 4**n for n in range(8))


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as this node sees it. `problems` say in words why it cannot work as it should; empty is healthy.

    `listed` and `connected` count the other nodes that the registry lists and that a route leads to; `waiting` counts
    those without which groups of two do not go on.
    """

    size: int = 1
    peers: Sequence[str] = ()
    replication_factor: int = 1
    problems: Sequence[str] = ()
    listed: int = 0
    connected: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Application:
    """Counters of what runs on top: `samples` yields (name, labels, value), `help` maps names to a sentence."""

    samples: Callable[[], Iterable[tuple[str, dict[str, str], float]]]
    help: Mapping[str, str]


class CommitMeter:
    """Histograms over the storage's commits; every commit is one fsync."""

    def __init__(self) -> None:
        self.seconds = Histogram(_SECONDS)
        self.messages = Histogram(_AMOUNTS)
        self.entries = Histogram(_AMOUNTS)
        self.size = Histogram(_BYTES)

    def observe(self, report: CommitReport) -> None:
        """Count one commit."""
        self.seconds.observe(report.seconds)
        self.messages.observe(report.messages)
        self.entries.observe(report.entries)
        self.size.observe(report.size)


@dataclass(slots=True)
class NodeView:
    """One node under observation; `start` before use, `stop` at the end.

    `registry` and `cluster` are asked each time; a None status means a node without a registry. `problems` adds what
    makes the node unhealthy beyond what the view sees by itself, one sentence each.
    """

    broker: Broker
    jetstream: JetStream | None = None
    storage: Database | None = None
    registry: Callable[[], RegistryStatus | None] = lambda: None
    cluster: Callable[[], ClusterView] = ClusterView
    problems: Callable[[], Sequence[str]] = tuple
    notes: list[Callable[[], str]] = field(default_factory=list[Callable[[], str]])
    """What an operator should know although nothing is wrong: each says a sentence, or nothing."""
    cluster_page: Callable[[], JsonObject] | None = None
    """What `/health/cluster` shows, with its `status`; without it a page is made from `cluster`."""
    registry_page: Callable[[], JsonObject] | None = None
    """The same for `/health/registry`."""
    application: Application | None = None
    stalls: StallWatch | None = None
    collector: Collector | None = None
    config_digest: str = ""
    config_loaded_ns: int = 0
    reload: Callable[[], str] | None = None
    """Reads the configuration again; why that did not work, or nothing."""

    http_host: str = ""
    http_port: int = 0
    http_base_path: str = ""
    http_requests: Counter[str] = field(default_factory=Counter[str])
    commits: CommitMeter = field(default_factory=CommitMeter)
    journal: Journal = field(default_factory=Journal)
    facts: tuple[float, JsonObject] | None = None
    """What `NODEZ` said last, and when on the monotonic clock: many may ask, it is built once for all."""
    started_ns: int = field(init=False)
    cpu: CpuMeter = field(init=False)
    lag: LagMeter = field(init=False)

    def __post_init__(self) -> None:
        self.started_ns = round(self.broker.started.timestamp() * 1_000_000) * 1000
        self.cpu = CpuMeter(self.broker.runtime.monotonic)
        self.lag = LagMeter(self.broker.runtime)

    def start(self) -> None:
        """Begin to measure."""
        self.journal.start()
        self.lag.start()
        if self.storage is not None:
            self.storage.observers.append(self.commits.observe)

    def stop(self) -> None:
        """Stop measuring. Idempotent."""
        self.journal.stop()
        self.lag.stop()
        if self.storage is not None and self.commits.observe in self.storage.observers:
            self.storage.observers.remove(self.commits.observe)

    def subscriptions(self) -> int:
        """Subscriptions in all accounts."""
        return sum(account.interest.count for account in self.broker.accounts.values())

    def told(self) -> list[str]:
        """What there is to know at this moment of what `notes` says."""
        return [text for note in self.notes if (text := note())]

    def damage(self) -> list[str]:
        """What was found damaged on disk, a sentence each."""
        found: list[str] = []
        if self.storage is not None:
            found.extend(self.storage.damage)
            if self.storage.damaged_reads:
                found.append(f"{self.storage.damaged_reads} reads found stored bytes that do not match their checksum")
        if self.jetstream is not None:
            found.extend(self._lost(self.jetstream))
        return found

    @staticmethod
    def _lost(jetstream: JetStream) -> list[str]:
        return [
            f"stream {stream.name} of account {account.name} has lost {len(stream.store.lost)} messages"
            for account in jetstream.accounts.values()
            for stream in account
            if stream.store.lost
        ]

    def refusals(self) -> list[str]:
        """Entries of logs that could not be applied, a sentence for each group."""
        host = self.jetstream.host if self.jetstream is not None else None
        found: list[str] = []
        for group in host.groups() if host is not None else ():
            refusals = group.machine.refusals
            if refusals.count:
                newest = refusals.newest[-1]
                found.append(
                    f"group {group.name} has refused {refusals.count} entries of its log, the last of them entry "
                    f"{newest.index} ({name_of(newest.kind)}): {newest.reason}"
                )
        return found

    def failures(self) -> list[str]:
        """Groups that this node cannot serve any more, a sentence each."""
        host = self.jetstream.host if self.jetstream is not None else None
        groups = host.groups() if host is not None else []
        return [f"group {group.name} has stopped here: {group.failure}" for group in groups if group.failure]

    def traffic(self, account: Account) -> BrokerStats:
        """Messages of one account: its open connections, and the closed ones that are still remembered."""
        total = BrokerStats()
        closed = (client for client in self.broker.closed if client.account is account)
        for client in (*account.clients.values(), *closed):
            total.in_msgs += client.in_msgs
            total.in_bytes += client.in_bytes
            total.out_msgs += client.out_msgs
            total.out_bytes += client.out_bytes
            total.total_connections += 1
            total.slow_consumers += client.reason in SLOW
        return total

    def now_ns(self) -> int:
        """Wall-clock time, nanoseconds since the epoch."""
        return self.broker.runtime.time_ns()
