"""Routes that come up when a test says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nimsnats.cluster.routes import RouteListener


class FakeRoutes:
    """Keeps what was asked for; `up` and `down` play the network. `eager`: adding a route brings it up at once."""

    def __init__(self, eager: Mapping[str, str] | None = None) -> None:
        self.wanted: list[str] = []
        self.removed: list[str] = []
        self._eager = dict(eager or {})
        self._connected: dict[str, str] = {}
        self._listeners: list[RouteListener] = []
        self.instances: dict[str, str] = {}

    def add_route(self, address: str) -> None:
        if address not in self.wanted:
            self.wanted.append(address)
        if address in self._eager:
            self.up(self._eager[address], address)

    def remove_route(self, address: str) -> None:
        self.removed.append(address)
        if address in self.wanted:
            self.wanted.remove(address)

    def connected(self) -> Mapping[str, str]:
        return self._connected

    def instance(self, name: str) -> str:
        return self.instances.get(name, "")

    def watch(self, listener: RouteListener) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @property
    def watchers(self) -> int:
        return len(self._listeners)

    def up(self, name: str, address: str = "") -> None:
        self._connected[name] = address
        for listener in list(self._listeners):
            listener(name, address, True)

    def down(self, name: str) -> None:
        address = self._connected.pop(name)
        for listener in list(self._listeners):
            listener(name, address, False)
