"""What every test room shares: the Go server as oracle, and leaving long campaigns out unless asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nimsnats.fence import Fence, named
from tests.conformance.oracle import Oracle


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect `extended` tests unless a marker expression was given on the command line."""
    if config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("extended")]
    if long:
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


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
