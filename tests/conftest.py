"""What every test room shares: the Go server as oracle, leaving long campaigns out, and who begins first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from nimsnats.fence import Fence, named
from tests.conformance.oracle import Oracle

# How fast examples are drawn and tried is no property of the code: other work on the machine decides.
settings.register_profile("loaded machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded machine")

_LONG = (
    "simulation/test_simulation.py",
    "acceptance/test_main_job.py",
    "raft/test_faults.py",
    "simulation/test_pairs.py",
    "security/test_apply.py",
    "jetstream/test_cluster_growth.py",
    "jetstream/test_cluster_delivery.py",
    "backup/test_commands.py",
    "forest/test_poison.py",
    "jetstream/test_cluster_api.py",
    "security/test_requests.py",
    "jetstream/test_cluster_leaders.py",
    "forest/test_process.py",
    "security/test_many_filters.py",
    "backup/test_recover.py",
    "jetstream/test_cluster.py",
    "raft/test_kill.py",
    "security/test_fence_campaign.py",
)
"""Files with few tests which take long, the longest first."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect `extended` tests unless a marker expression was given, and let several workers end together.

    A file is given to one worker as a whole. The long ones come first and those with many tests next, so that what
    is left at the end is short, and no worker waits for another.
    """
    if not config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("extended")]
        items[:] = [item for item in items if item not in set(long)]
        config.hook.pytest_deselected(items=long)
    if hasattr(config, "workerinput"):  # one process alone keeps the order in which the files are read
        many = Counter(item.path for item in items)
        rank = {Path(__file__).parent / name: place for place, name in enumerate(_LONG)}
        items.sort(key=lambda item: (rank.get(item.path, len(_LONG)), -many[item.path]))


@pytest.fixture(autouse=True)
def nothing_fenced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An error of our own that ends at a fence is still an error: it fails the test that has not asked for it."""
    found: list[tuple[str, BaseException]] = []
    caught = Fence.caught

    def note(self: Fence, place: Callable[..., object] | str, error: Exception) -> None:
        found.append((place if isinstance(place, str) else named(place), error))
        caught(self, place, error)

    monkeypatch.setattr(Fence, "caught", note)
    yield
    if found and request.node.get_closest_marker("errors_inside") is None:
        place, error = found[0]
        raise AssertionError(f"{len(found)} errors ended at a fence, the first in {place}") from error


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """A Go nats-server with default settings on an ephemeral loopback port, shared by the whole session."""
    with Oracle(tmp_path_factory.mktemp("oracle")) as server:
        yield server


@pytest.fixture
def configured_oracle(tmp_path: Path) -> Iterator[Oracle]:
    """A Go nats-server that the test starts itself: `configured_oracle.start("<configuration text>")`."""
    server = Oracle(tmp_path)
    yield server
    server.stop()
