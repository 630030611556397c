"""Ground: what the forest offers to a tree or a nim, in one value, and how it is handed to a plug-in's constructor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from forest.humus import Humus
from forest.metrics import ForestMetrics
from forest.river import River
from forest.soil import Soil
from forest.wind import Wind


@dataclass(frozen=True, slots=True)
class Ground:
    """The forest's parts. `clock` gives seconds since the epoch; everything else is documented in its own module."""

    river: River
    wind: Wind
    humus: Humus
    soil: Soil
    clock: Callable[[], float]
    metrics: ForestMetrics
    log: logging.Logger
