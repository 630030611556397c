"""Who has something to send: connections with output since the last turn, flushed together once per loop turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimsnats.broker.connection import Connection
    from nimsnats.runtime import Runtime


class Outbox:
    """The dirty list of one broker. However much a turn produces for a connection, it is one write."""

    __slots__ = ("_dirty", "_runtime")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._dirty: list[Connection] = []

    def mark(self, connection: Connection) -> None:
        """Remember that `connection` has output. Called when its queue stops being empty."""
        if not self._dirty:
            self._runtime.call_soon(self.flush)
        self._dirty.append(connection)

    def flush(self) -> None:
        """Write what is queued, one write per connection; one that cannot be written to does not stop the others."""
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            try:
                connection.flush()
            except Exception as error:
                connection.output_broke(error)
