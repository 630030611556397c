"""ForestOptions: everything that can be set about a forest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from forest.signature import TOLERANCE
from forest.wind import DEFAULT_SUBJECTS
from forest.worker import WorkerLimits


@dataclass(frozen=True, slots=True)
class ForestOptions:
    """Settings of one forest. All nodes of a cluster should run the same trees and nims.

    `trees`, `nims`: own ones as `package.module:Class`. `wind_subjects`: subjects of leaves taken over durably, beside
    those that trees and nims declare. `replicas`: copies of each stream when it is created (an existing stream
    keeps its number until `Forest.adjust_replicas`). Durations in seconds: `request_timeout` bounds one request to the
    server, `start_timeout` how long `start` waits for JetStream, `demo_interval` is the pause between two samples,
    `webhook_tolerance` the age that a webhook's signature may have (up to six hours).
    """

    trees: Sequence[str] = ()
    nims: Sequence[str] = ()
    builtin: bool = True
    wind_subjects: Sequence[str] = DEFAULT_SUBJECTS
    replicas: int = 1
    demo: bool = False
    demo_interval: float = 5.0
    request_timeout: float = 5.0
    start_timeout: float = 60.0
    webhook_tolerance: float = TOLERANCE
    limits: WorkerLimits = field(default_factory=WorkerLimits)
