"""A histogram that costs one bisection to feed and knows no metrics library."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """Counts observations up to each of `bounds` (ascending, in the metric's base unit), and above the last."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        assert list(bounds) == sorted(set(bounds)), "bounds must ascend"
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound as text, observations up to it), the last one `+Inf`: Prometheus's buckets."""
        labels = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(labels, map(float, accumulate(self.counts)), strict=True))
